"""Predicted against measured iterations: small experiments, which the command line runs as a user would.

Only the command is used here, since what predicts lies above the executor.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.base.processes import own_command
from stanza_sim.base.units import format_time
from stanza_sim.execute.selftest.outcome import Here, Wrong, require

FACTOR = 3.0
"""How far a prediction may be from what is measured on cores; ranks that share two cores came within 1.4."""
OTHERS_PCT = 25.0
"""With more of the cores in the hands of other programs, the iteration is not what is to be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One row: seconds of an iteration as predicted and as measured, and the share of the cores that others had."""

    label: str
    predicted_s: float
    measured_s: float
    others_pct: float

    @property
    def error_pct(self) -> float:
        """Predicted over measured, less one, in percent."""
        return 100 * (self.predicted_s / self.measured_s - 1)

    def words(self) -> str:
        """Both times and the error."""
        times = f"{format_time(self.predicted_s)} predicted, {format_time(self.measured_s)} measured"
        return f"{times} ({self.error_pct:+.1f}%)"


def digits(nodes: int, strategies: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The experiment `laptop` in short, on so many ranks."""
    return {
        "name": "selftest",
        "cluster": "laptop",
        "nodes": nodes,
        "batch_per_worker": 32,
        "models": [
            {"model": "stanza_sim.model.examples:digits_cnn", "name": "digits_cnn", "input_shape": [1, 8, 8]},
        ],
        "strategies": list(strategies),
        "training": {"iterations": 14, "warmup": 4, "data": "digits", "optimizer": {"lr": 0.02}},
        "execute": {"timeout": "60s"},
    }


def run(experiment: Mapping[str, object], name: str, here: Here) -> list[Compared]:
    """Predict and execute `experiment`; keeps its file and its result as `NAME.yaml` and `NAME.json`."""
    file = here.folder / f"{name}.yaml"
    file.write_text(json.dumps(experiment, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
    result = json.loads(command(["run", str(file), "--execute", "--json"], here))
    (here.folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [compared(row) for row in result["runs"]]


def compared(row: Mapping[str, Mapping[str, float]]) -> Compared:
    """What a row of a result says."""
    return Compared(
        label=str(row["label"]),
        predicted_s=row["predicted"]["iteration_s"],
        measured_s=row["measured"]["iteration_s"],
        others_pct=float((row.get("machine") or {}).get("others_pct") or 0.0),
    )


def command(arguments: Sequence[str], here: Here) -> str:
    """What `stanza-sim ARGUMENTS` prints. Raises `Wrong` with its message where it fails."""
    done = subprocess.run(
        own_command("stanza_sim", *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * here.limit_s,
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        first = next((n for n, line in enumerate(said) if line.startswith("error:")), max(len(said) - 3, 0))
        raise Wrong(" ".join(line.strip() for line in said[first:]) or f"status {done.returncode}")
    return done.stdout


def predicted(here: Here) -> None:
    """Two ranks train the laptop experiment's model for a few iterations, about as fast as predicted."""
    with here.check("predicted") as said:
        (row,) = run(digits(2, [{"strategy": "all_reduce", "label": "all-reduce"}]), "predicted", here)
        said.detail = judged(row)


def judged(row: Compared) -> str:
    """What is to be said of a row on cores; raises `Wrong` if it is too far off, though no other program ran."""
    if row.others_pct > OTHERS_PCT:
        return f"{row.words()}; not judged, other programs had {row.others_pct:.0f}% of the cores"
    ratio = row.predicted_s / row.measured_s
    require(1 / FACTOR <= ratio <= FACTOR, f"{row.words()}, more than a factor of {FACTOR:g} apart")
    return row.words()
