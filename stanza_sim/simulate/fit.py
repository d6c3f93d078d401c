"""Fits the efficiency of each model on each device to published throughput, and writes it into the device files.

`python -m stanza_sim.simulate.fit` replaces what stands below the marker line in `stanza_sim/data/devices/*.yaml`. The
published rows are in `stanza_sim/data/gpu_timings.csv`; a device file's `published:` names the GPUs that it takes
rows of. For each precision and model, one efficiency minimises the sum of squares of log(predicted / published time).
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.device import DeviceSpec, PublishedTiming, load_device
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile
from stanza_sim.simulate import cost_model
from stanza_sim.simulate.costs import RooflineCosts

TIMINGS = Path(__file__).parents[1] / "data" / "gpu_timings.csv"
MARKER = "# Written by `python -m stanza_sim.simulate.fit`: everything from here on is replaced."
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "fp32 setting (TF32 likely)": "tf32"}
"""What the precision column means. A row with another one is compared with the fp32 fit, not fitted."""
ASSUMED_BATCH = {"github lambdal/deeplearning-benchmark csv": 640}
"""Batches of sources that print none: that repository's table of batch sizes has 640 for its 80 GB GPUs."""
SMALLEST, LARGEST = 0.005, 5.0
"""Efficiencies that are searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the published timings: `images_per_s` at `batch` of a training step, or of its passes alone."""

    gpu: str
    precision: str
    model: str
    batch: int
    batch_assumed: bool
    images_per_s: float
    kind: str
    source: str

    @property
    def step_s(self) -> float:
        """Published seconds of one step."""
        return self.batch / self.images_per_s

    @property
    def with_update(self) -> bool:
        """Whether the step includes the optimiser, as a row of `train` does and one of `fwd + bwd` does not."""
        return self.kind.startswith("train")


def read_rows(path: Path = TIMINGS) -> tuple[Row, ...]:
    """Return the published timings; raise `InputError` for a row without a batch whose source has no assumed one."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            stated = line["batch"].strip()
            if not stated and line["source"] not in ASSUMED_BATCH:
                hint = "add its source to ASSUMED_BATCH"
                raise InputError("a row without a batch", where=f"{path}:{number}", hint=hint)
            rows.append(
                Row(
                    gpu=line["gpu"],
                    precision=line["precision"],
                    model=line["model"],
                    batch=int(stated) if stated else ASSUMED_BATCH[line["source"]],
                    batch_assumed=not stated,
                    images_per_s=float(line["images_per_s"]),
                    kind=line["kind"],
                    source=line["source"],
                )
            )
    return tuple(rows)


def step_s(costs: RooflineCosts, model: ModelProfile, row: Row) -> float:
    """Return the predicted seconds of the step that `row` timed."""
    return cost_model.step_s(costs, model, row.batch, update=row.with_update)


def fit_efficiency(predict: Callable[[Row, float], float], rows: Sequence[Row]) -> float:
    """Return the efficiency with the least sum of squares of log(predicted / published), to 4 digits.

    `predict(row, efficiency)` falls with the efficiency. A coarse scan, then a golden-section search.
    """

    @cache
    def error(log_efficiency: float) -> float:
        efficiency = exp(log_efficiency)
        return sum(log(predict(row, efficiency) / row.step_s) ** 2 for row in rows)

    steps = 60
    width = log(LARGEST / SMALLEST) / steps
    best = min((log(SMALLEST) + i * width for i in range(steps + 1)), key=error)
    low, high, golden = best - width, best + width, (5**0.5 - 1) / 2
    while high - low > 1e-9:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if error(a) <= error(b) else (a, high)
    return float(f"{exp((low + high) / 2):.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The efficiency of a model, and how each row compares."""

    value: float
    timings: tuple[PublishedTiming, ...]


def fit_device(device: DeviceSpec, rows: Iterable[Row]) -> dict[str, dict[str, Fit]]:
    """Return the fit of every precision and model that the device has rows for.

    Rows of an unstated precision, and rows whose batch is assumed where there are others, are compared but not fitted.
    """
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.gpu.startswith(device.published):
            precision = PRECISIONS.get(row.precision, device.fp32_runs)
            grouped.setdefault((precision, row.model), []).append(row)
    fits: dict[str, dict[str, Fit]] = {}
    for (precision, name), members in sorted(grouped.items()):
        model = zoo.get(name)

        def predict(row: Row, efficiency: float, model: ModelProfile = model, precision: str = precision) -> float:
            return step_s(RooflineCosts(device, model, precision, efficiency=efficiency), model, row)

        usable = [row for row in members if row.precision in PRECISIONS]
        fitted = [row for row in usable if not row.batch_assumed] or usable
        if not fitted:
            continue
        value = fit_efficiency(predict, fitted)
        timings = tuple(
            PublishedTiming(
                gpu=row.gpu,
                batch=row.batch,
                batch_assumed=row.batch_assumed,
                images_per_s=row.images_per_s,
                kind=row.kind,
                source=row.source,
                fitted=row in fitted,
                ratio=round(predict(row, value) / row.step_s, 3),
            )
            for row in members
        )
        fits.setdefault(precision, {})[name] = Fit(value=value, timings=timings)
    return fits


def efficiency_text(fits: dict[str, dict[str, Fit]]) -> str:
    """Return the `efficiency:` section of a device file."""
    lines = [MARKER, "# ratio: predicted over published time of a step.", "efficiency:"]
    for precision, models in fits.items():
        mean = exp(sum(log(fit.value) for fit in models.values()) / len(models))
        source = f"{'geometric mean of ' if len(models) > 1 else 'that of '}{', '.join(models)}"
        lines += [f"  {precision}:", f"    default: {{value: {mean:.4g}, source: {json.dumps(source)}}}", "    models:"]
        for name, fit in models.items():
            lines += [f"      {name}:", f"        value: {fit.value:.4g}", "        timings:"]
            for row in fit.timings:
                assumed = ", batch_assumed: true" if row.batch_assumed else ""
                fitted = "" if row.fitted else ", fitted: false"
                lines += [
                    f"          - {{gpu: {json.dumps(row.gpu)}, kind: {json.dumps(row.kind)},",
                    f"             batch: {row.batch}{assumed}, images_per_s: {row.images_per_s:g},",
                    f"             ratio: {row.ratio:g}{fitted},",
                    f"             source: {json.dumps(row.source)}}}",
                ]
    return "\n".join(lines) + "\n"


def refit(text: str, device: DeviceSpec, rows: Iterable[Row]) -> str:
    """Return a device file's `text` with a fresh efficiency section below its marker line."""
    stated, marker, _ = text.partition(MARKER)
    if not marker:
        raise InputError("has no line that says where the fitted part begins", where=device.name, hint=MARKER)
    return stated + efficiency_text(fit_device(device, rows))


def main() -> None:
    """Rewrite the shipped files of every device with published timings."""
    rows = read_rows()
    for path in sorted((TIMINGS.parent / "devices").glob("*.yaml")):
        device = load_device(str(path))
        if not device.published:
            continue
        path.write_text(refit(path.read_text(encoding="utf-8"), device, rows), encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
