"""What others call GPUs, models, precisions and strategies, in our words."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.device import DeviceSpec, load_device
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.published_names import source_of
from stanza_sim.model.recorded import extracted

_MODELS = {
    "inception3": "inception_v3",
    "inceptionv3": "inception_v3",
    "resnet50v1": "resnet50",
    "resnet101v1": "resnet101",
    "resnet152v1": "resnet152",
    "resnet50v15": "resnet50",
    "vggd": "vgg16",
    "vgge": "vgg19",
}
"""Other names of models, without signs."""

STAND_IN = "P100"
"""The device that stands in for GPUs without a device file."""


def plain(text: str) -> str:
    """A name in small letters, without signs."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


@cache
def device_name(gpu: str) -> str | None:
    """The device whose name is in `gpu` ("NVIDIA Tesla V100-SXM2-16GB" is V100); None if we have none."""
    found = []
    for name in config.available(config.Kind.DEVICES):
        written = r"[\s_-]*".join(re.findall("[a-z]+|[0-9]+", name.lower()))
        if name != "cpu" and re.search(rf"(?<![a-z0-9]){written}(?![0-9])", gpu.lower()):
            found.append(name)
    return max(found, key=len, default=None)


def device_of(gpu: str) -> DeviceSpec:
    """The device whose name is in `gpu`. Raises `InputError` if we have none."""
    if (name := device_name(gpu)) is None:
        names = config.available(config.Kind.DEVICES)
        known = ", ".join(name for name in names if load_device(name).published)
        raise InputError(f"there is no device for {gpu!r}", hint=f"the devices are {known}")
    return load_device(name)


def precision_of(text: str, device: DeviceSpec) -> str:
    """The precision that a published text means on a device, which need not have it. Raises `InputError`."""
    words = text.lower()
    if re.search(r"bf16|bfloat16", words):
        return "bf16"
    if re.search(r"amp|autocast|fp16|float16|half|mixed", words):
        return "fp16"
    if re.search(r"tf32|fp32|float|single", words):
        return device.published_fp32
    raise InputError(f"the precision {text!r} is not known", hint="such as fp32, TF32, AMP fp16, bf16")


def stand_ins(gpu: str, precision: str, *, calibrated: bool) -> tuple[DeviceSpec, str]:
    """Device and precision of a row or, where one GPU's throughput is known, what stands in for those without data.

    Then only how the time of a step is spread over blocks is theirs. Raises `InputError` for a GPU without a device
    file, and for a precision that its file lacks, if the throughput is not known either.
    """
    device = load_device(STAND_IN) if calibrated and device_name(gpu) is None else device_of(gpu)
    name = precision_of(precision, device)
    if calibrated and name not in device.precisions:
        return device, device.published_fp32
    device.precision(name)
    return device, name


@cache
def model_of(name: str, classes: int | None) -> ModelProfile:
    """The model of that name: a shipped one, or extracted from torchvision's definition.

    A sample of BERT is 128 tokens, as in the first phase of its training (Devlin et al., arXiv 1810.04805).

    Raises `InputError` if neither has it, and if torchvision is needed and missing.
    """
    ours = zoo.available()
    text = plain(name)
    named = next((known for known in ours if plain(known) == text), _MODELS.get(text))
    if named is not None:
        kwargs = {"classes": classes} if classes is not None and named in zoo.WIDE else None
        # Only their heads are one linear layer each, as a strategy that cuts the FC part needs it.
        return zoo.load_model(
            named,
            factory_kwargs=kwargs,
            boundary="head" if named in zoo.WIDE else None,
            sequence=128 if named.startswith("bert") else None,
        )
    return _of_a_library(name)


def _of_a_library(name: str) -> ModelProfile:
    """A model of torchvision or, where that has none of the name and timm is installed, of timm."""
    side = 299 if "inception" in name.lower() else 224
    written = [name, name.lower().replace("-", "_"), plain(name)]
    tries = [(text, "torchvision twin") for text in dict.fromkeys(written)]
    tries += [(text, "timm") for text in dict.fromkeys(written) if find_spec("timm") is not None]
    failed: list[str] = []
    for text, factory in tries:
        try:
            return extracted(source_of(text, factory, side))
        except InputError as error:
            failed.append(error.message)
        except ModuleNotFoundError as error:
            raise InputError(f"model {name!r} is not shipped, and extracting it needs {error.name}") from None
    raise InputError(f"model {name!r} is neither shipped nor extracted: {failed[0]}")
