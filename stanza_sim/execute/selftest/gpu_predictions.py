"""Predicted against measured on one GPU: a rank alone, its memory, and ranks that share the GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stanza_sim.base.config import Kind, available
from stanza_sim.base.errors import InputError
from stanza_sim.base.units import format_bytes
from stanza_sim.cluster.device import device_path, load_device
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import RunJob, Training
from stanza_sim.execute.selftest.outcome import Here, require
from stanza_sim.execute.selftest.predictions import command, digits, run
from stanza_sim.execute.selftest.variants import schedule_of
from stanza_sim.execute.start.fit import is_called
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.worker import run_job
from stanza_sim.model.zoo import get

MODEL, BATCH = "resnet50", 64
ERROR_PCT = 5.0
"""How far the iteration of a rank alone may be from its prediction of block times that were measured right before."""
MEMORY_PCT = (-10.0, 30.0)
"""How far estimated memory may be below and above what was allocated at most: a plan should rather refuse too much."""
LIKE = "H100"
"""Whose data stand in for a GPU that has no file. Times do not follow from them, since blocks are measured."""
STRATEGIES: tuple[dict[str, object], ...] = (
    {"strategy": "parameter_server", "label": "PS", "settings": {"servers": 1}},
    {"strategy": "all_reduce", "label": "all-reduce"},
    {"strategy": "stanza", "label": "Stanza"},
)


def local(here: Here) -> None:
    """A rank alone takes as long as predicted, and as much memory as `plan` estimates."""
    for name in here.names:
        with here.check(name) as said:
            precision = name.rpartition(":")[2]
            experiment = alone(topology(here.folder, None), precision)
            (row,) = run(experiment, f"local-{precision}", here)
            said.detail = row.words()
            require(abs(row.error_pct) <= ERROR_PCT, f"{row.words()}, more than {ERROR_PCT:g}% apart")
            if precision == "fp32":
                here.note("memory")
                said.detail += f"; {memory(here, here.folder / f'local-{precision}.yaml')}"


def alone(cluster: Path, precision: str) -> dict[str, object]:
    """The experiment of one rank."""
    return {
        "name": "selftest-local",
        "cluster": str(cluster),
        "batch_per_worker": BATCH,
        "precision": precision,
        "models": [MODEL],
        "strategies": ["local"],
        "training": {"iterations": 40, "warmup": 10, "data": "synthetic"},
        "execute": {"timeout": "60s"},
    }


def shared(here: Here) -> None:
    """PS, all-reduce and Stanza with ranks that share the GPU: predicted against measured is told, and not judged."""
    for name in here.names:
        with here.check(name) as said:
            ranks = int(name.rpartition(":")[2])
            experiment = digits(ranks, STRATEGIES) | {"cluster": str(topology(here.folder, ranks))}
            experiment["execute"] = {"timeout": "60s", "backend": "gloo"}
            found = run(experiment, f"shared-{ranks}", here)
            said.detail = "; ".join(f"{row.label} {row.error_pct:+.0f}%" for row in found)


# --- a topology for this GPU -----------------------------------------------------------------------------------------


def topology(folder: Path, ranks: int | None) -> Path:
    """The file, made in `folder`, of one host with this GPU, which so many `ranks` share (None: one has it alone)."""
    host: dict[str, object] = {"name": "local", "cores": "this-machine", "devices": [device(folder)]}
    about: dict[str, object] = {"name": "this-gpu", "description": "One host with the GPU of the self-test."}
    if ranks is not None:
        about |= {"name": "this-gpu-shared", "scales": "ranks", "ranks_per_device": ranks}
        # As in the shipped topology one-gpu-shared, whose figures are assumptions; loopback is measured before.
        host["staging"] = {"rate": "50GB/s", "latency": "10us"}
        host["loopback"] = {"rate": "1.5GB/s", "latency": "50us", "message_core": "100us", "byte_core": "0.8ns"}
    path = folder / ("topology.yaml" if ranks is None else f"topology-shared-{ranks}.yaml")
    path.write_text(json.dumps({**about, "hosts": [host]}, indent=1) + "\n", encoding="utf-8")
    return path


def device(folder: Path) -> str:
    """What a topology calls this GPU: a shipped device, or a file that is made of another's data."""
    found = torch.cuda.get_device_properties(0)
    if (name := device_called(found.name)) is not None:
        return name
    path = folder / "device.yaml"
    path.write_text(
        renamed(device_path(LIKE).read_text(encoding="utf-8"), found.name, found.total_memory), encoding="utf-8"
    )
    return str(path)


def device_called(driver_name: str) -> str | None:
    """The shipped device that a driver calls so."""
    for name in available(Kind.DEVICES):
        try:
            spec = load_device(name)
        except InputError:  # a user's own, and wrong
            continue
        if spec.name != "cpu" and is_called(spec, driver_name):
            return name
    return None


def renamed(text: str, driver_name: str, memory_nbytes: int) -> str:
    """A device file with another name and memory, for any form factor and without published timings of its own."""
    text = re.sub(r"^(form|published|reported):.*\n", "", text, flags=re.MULTILINE)
    changes = {
        "name": json.dumps(driver_name),
        "description": json.dumps(f"{driver_name}, with the other data of {LIKE}"),
        "memory": f"{memory_nbytes / 1e9:.1f}GB",
    }
    for key, value in changes.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {value}", text, count=1, flags=re.MULTILINE)
    return text


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeakTask:
    """Run a job, and say how many bytes torch had allocated on the GPU at most."""

    job: RunJob

    def __call__(self, context: Context, beat: Beat) -> int:
        """Bytes."""
        context.start_thread()  # there are no statistics before CUDA has started
        torch.cuda.reset_peak_memory_stats(context.device)
        run_job(self.job, context, beat)
        return torch.cuda.max_memory_allocated(context.device)


def memory(here: Here, experiment: Path) -> str:
    """Estimated against allocated memory of the rank alone; raises `Wrong` if they are too far apart."""
    plan = json.loads(command(["plan", str(experiment), "--json", "--max-evaluations", "8"], here))
    estimated = estimate(plan)
    model = get(MODEL)
    schedule = schedule_of(model, "local", 1, {}, batch_per_worker=BATCH)
    job = RunJob(schedule=schedule, model=model, training=Training(iterations=6, warmup=1), timeout_s=here.limit_s)
    with Pool(1, timeout_s=here.limit_s, kind="cuda") as pool:
        (allocated,) = pool.run(PeakTask(job))
    return memory_words(estimated, allocated)


def estimate(plan: Mapping[str, Any]) -> int:
    """Bytes that `plan` expects of the strategy `local`, or of the best, where one rank needs the same."""
    (answer,) = plan["plans"]
    rows = [row for row in answer["ranked"] if row["strategy"] == "local"] or [answer["best"]]
    return int(rows[0]["memory_nbytes"])


def memory_words(estimated: int, allocated: int) -> str:
    """Both and the error; raises `Wrong` if it is too large."""
    off = 100 * (estimated / allocated - 1)
    words = f"memory {format_bytes(estimated)} estimated, {format_bytes(allocated)} allocated ({off:+.0f}%)"
    least, most = MEMORY_PCT
    require(least <= off <= most, f"{words}, not within {least:+g}..{most:+g}%")
    return words
