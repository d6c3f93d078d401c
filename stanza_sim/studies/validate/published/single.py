"""One GPU's training throughput, by stated rules, from a row in the columns of `stanza_sim/data/single_timings.csv`.

Rules: the GPU is that of the device file whose name stands in the row's `gpu`. Precision: "AMP" or
"autocast" is fp16 unless bf16 stands there; "TF32" and "fp32" are the device's fp32 setting. The model is torchvision's
or timm's of the row's name as `factory` says; where timm is not installed, torchvision's twin. A step has the
optimiser's update unless the framework says "forward and backward only", and is launched from Python unless it says
"CUDA graphs" or "compile", or is TensorFlow or MXNet. Models are recorded whole on torch's meta device, once on a
machine; no factor of a measured model is used, so that known and unknown models are predicted alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

from stanza_sim.base.errors import InputError
from stanza_sim.model.module_work import ModuleWork, read_works
from stanza_sim.model.published_names import source_of
from stanza_sim.model.recorded import recorded
from stanza_sim.simulate.fit.rows import WORKS
from stanza_sim.simulate.sum_costs import Launch, module_step_s
from stanza_sim.studies.validate.published.names import device_of, precision_of

COLUMNS = ("gpu", "framework", "precision", "model", "factory", "batch", "image")
"""The columns that a prediction reads."""
GRAPHS = ("cuda graphs", "compile", "tensorflow", "mxnet")
"""Words of frameworks that do not launch kernels one by one from Python."""


def predict_single(row: Mapping[str, str]) -> float:
    """Return the predicted samples/s of a row.

    Raises `InputError`, which says why the row cannot be predicted, for a GPU without a device file, a precision that
    the device has no data for, a model that cannot be built or run, and columns that are missing or make no sense.
    """
    if missing := [name for name in COLUMNS if not row.get(name, "").strip()]:
        raise InputError(f"the column {missing[0]!r} is missing or empty", hint=f"columns: {', '.join(COLUMNS)}")
    device, batch = device_of(row["gpu"]), _count(row, "batch")
    framework = row["framework"].lower()
    known = work_of(row["model"].strip(), row["factory"].strip(), _count(row, "image"))
    compiled = any(word in framework for word in GRAPHS)
    seconds = module_step_s(
        device,
        known,
        precision_of(row["precision"], device),
        batch,
        launch=Launch.GRAPHS if compiled else Launch.EAGER,
        update="forward and backward only" not in framework,
    )
    return batch / seconds


def work_of(model: str, factory: str, image: int) -> ModuleWork:
    """Return the work of a published model; without timm, that of its torchvision twin. Raises `InputError`.

    That of the models to which the constants were fitted is shipped, so it needs neither torch nor timm.
    """
    if (shipped := _shipped().get(f"{factory}:{model}:{image}")) is not None:
        return shipped
    if factory == "timm" and find_spec("timm") is None:
        factory = "torchvision twin"
    return recorded(source_of(model, factory, image))


@cache
def _shipped() -> dict[str, ModuleWork]:
    return read_works(WORKS)


def _count(row: Mapping[str, str], key: str) -> int:
    text = row[key].strip()
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{key} is {text!r}", hint="a whole number of at least 1")
    return int(text)
