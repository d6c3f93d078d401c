"""The published timings: which device, precision and model each row is about, and how the step was run."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.model import zoo
from stanza_sim.model.module_work import ModuleWork, read_works, work_of_profile
from stanza_sim.simulate.sum_costs import Launch

DATA = Path(__file__).parents[2] / "data"
TIMINGS, SINGLE, WORKS = DATA / "gpu_timings.csv", DATA / "single_timings.csv", DATA / "single_work.json"
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "fp32 setting (TF32 likely)": "tf32", "AMP fp16, NCHW": "fp16"}
"""What the precision column means. A row with another one is compared with the device's fp32, not fitted."""
ASSUMED_BATCH = {"github lambdal/deeplearning-benchmark csv": 640}
"""Batches of sources that print none: that repository's table of batch sizes has 640 for its 80 GB GPUs."""
EAGER = ("PyTorch", "lambdal/deeplearning-benchmark")
"""Words in a row's source or framework that tell eager PyTorch. The others (TensorFlow 1 and 2, MXNet, Torch7) launch
kernels from C++, most of them from a graph that is known beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A published timing: `samples_per_s` at `batch` of a training step, or of its passes and the loss alone."""

    gpu: str
    precision: str
    model: str
    factory: str
    image: int
    batch: int
    batch_assumed: bool
    samples_per_s: float
    kind: str
    source: str
    launch: Launch
    with_update: bool

    @property
    def step_s(self) -> float:
        """Published seconds of one step."""
        return self.batch / self.samples_per_s

    @property
    def key(self) -> str:
        """Names the module in the file of works."""
        return f"{self.factory}:{self.model}:{self.image}"


def read_rows(timings: Path = TIMINGS, single: Path | None = SINGLE) -> tuple[Row, ...]:
    """Return the published timings; raise `InputError` for a row without a batch whose source has no assumed one."""
    rows = []
    with timings.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            stated = line["batch"].strip()
            if not stated and line["source"] not in ASSUMED_BATCH:
                hint = "add its source to ASSUMED_BATCH"
                raise InputError("a row without a batch", where=f"{timings}:{number}", hint=hint)
            rows.append(
                Row(
                    gpu=line["gpu"],
                    precision=line["precision"],
                    model=line["model"],
                    factory="",
                    image=0,
                    batch=int(stated) if stated else ASSUMED_BATCH[line["source"]],
                    batch_assumed=not stated,
                    samples_per_s=float(line["images_per_s"]),
                    kind=line["kind"],
                    source=line["source"],
                    launch=_launch(line["source"]),
                    with_update=line["kind"].startswith("train"),
                )
            )
    if single is not None:
        with single.open(newline="", encoding="utf-8") as file:
            rows += [single_row(line) for line in csv.DictReader(file)]
    return tuple(rows)


def single_row(line: dict[str, str]) -> Row:
    """Return a line of a file in the columns of `single_timings.csv` as a row."""
    framework = line["framework"]
    return Row(
        gpu=line["gpu"],
        precision=line["precision"],
        model=line["model"],
        factory=line["factory"],
        image=int(line["image"]),
        batch=int(line["batch"]),
        batch_assumed=False,
        samples_per_s=float(line["samples_per_s"]),
        kind=framework,
        source=re.sub(r"^https://", "", line["address"]).partition(" (")[0],
        launch=_launch(framework),
        with_update="forward and backward only" not in framework,
    )


def _launch(text: str) -> Launch:
    compiled = any(word in text for word in ("compile", "CUDA graphs"))
    return Launch.EAGER if any(word in text for word in EAGER) and not compiled else Launch.GRAPHS


def works_of(rows: tuple[Row, ...]) -> dict[str, ModuleWork]:
    """Return the work of each row's model by the row's key: of shipped tables, and of the file of works."""
    recorded = read_works(WORKS)
    found = {}
    for row in rows:
        if not row.factory:
            found[row.key] = work_of_profile(zoo.get(row.model))
        elif row.key in recorded:
            found[row.key] = recorded[row.key]
        else:
            hint = "write it with python -m stanza_sim.simulate.fit --record"
            raise InputError(f"{WORKS.name} has no {row.key}", hint=hint)
    return found


def family_of(model: str) -> str:
    """Return the family of a model: those of one kind of building block, by the name."""
    plain = model.lower()
    for family, words in (
        ("inverted residuals", ("mnasnet", "mobilenet", "efficientnet")),
        ("residual", ("resnet", "resnext")),
        ("transformer", ("vit", "deit", "swin")),
    ):
        if any(word in plain for word in words):
            return family
    found = re.match(r"[a-z]+", plain)
    return found[0] if found else plain
