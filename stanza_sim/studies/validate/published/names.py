"""What others call GPUs, models, precisions and strategies, in our words."""

from __future__ import annotations

import re
from functools import cache

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.device import load_device
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile

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

_PRECISIONS = {"amp": "fp16", "mixed": "fp16", "half": "fp16", "float16": "fp16", "float32": "fp32", "single": "fp32"}


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


def precision_of(device: str, stated: str) -> str:
    """The precision as the device's file calls it; raises `InputError` if the device has no data for it."""
    name = _PRECISIONS.get(stated, stated)
    load_device(device).precision(name)
    return name


@cache
def model_of(name: str, classes: int | None) -> ModelProfile:
    """The model of that name: a shipped table, or extracted from torchvision's definition.

    Raises `InputError` if neither has it, and if torchvision is needed and missing.
    """
    ours = [*zoo.SOURCES, *zoo.WIDE]
    text = plain(name)
    named = next((known for known in ours if plain(known) == text), _MODELS.get(text))
    if named is not None:
        kwargs = {"classes": classes} if classes is not None and named in zoo.WIDE else None
        # Only their heads are one linear layer each, as a strategy that cuts the FC part needs it.
        return zoo.load_model(named, factory_kwargs=kwargs, boundary="head" if named in zoo.WIDE else None)
    return _from_torchvision(name)


def _from_torchvision(name: str) -> ModelProfile:
    side = 299 if "inception" in name.lower() else 224
    try:
        return zoo.load_model(f"torchvision.models:{name}", input_shape=(3, side, side))
    except InputError as error:
        raise InputError(f"model {name!r} is neither shipped nor extracted: {error.message}", hint=error.hint) from None
