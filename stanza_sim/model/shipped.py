"""Which layer tables are shipped, where they lie, and what each was extracted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Scalar = str | int | float | bool | None
InputShape = tuple[int, ...] | Mapping[str, tuple[int, ...]]
"""Shape of one sample, without the batch; of several tensors, that of each by the name of forward's argument."""
DATA = Path(__file__).with_name("data")
"""The folder of the tables, one JSON file each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a table was extracted from."""

    factory: str
    input_shape: tuple[int, ...]
    factory_kwargs: dict[str, Scalar] = field(default_factory=dict)


def _imagenet(name: str) -> Source:
    return Source(factory=f"torchvision.models:{name}", input_shape=(3, 224, 224))


#: Every shipped table. Inception-v3 is without its auxiliary classifier, which a chain of blocks cannot hold. Language
#: models are no tables: they are computed, for any sequence length and vocabulary (`model.language`).
SOURCES: dict[str, Source] = {
    "alexnet": _imagenet("alexnet"),
    "vgg16": _imagenet("vgg16"),
    "vgg19": _imagenet("vgg19"),
    "inception_v3": Source(
        factory="torchvision.models:inception_v3",
        input_shape=(3, 299, 299),
        factory_kwargs={"aux_logits": False, "init_weights": True},
    ),
    "resnet50": _imagenet("resnet50"),
    "resnet101": _imagenet("resnet101"),
    "resnet152": _imagenet("resnet152"),
    "vit_b_16": _imagenet("vit_b_16"),
}

#: Tables that end in a linear layer without bias of any number of `classes`, which a user may set.
WIDE: dict[str, Source] = {
    "iresnet18": Source(
        factory="stanza_sim.model.examples.wide_heads:iresnet18",
        input_shape=(3, 112, 112),
        factory_kwargs={"classes": 100_000},
    ),
    "iresnet50": Source(
        factory="stanza_sim.model.examples.wide_heads:iresnet50",
        input_shape=(3, 112, 112),
        factory_kwargs={"classes": 100_000},
    ),
    "lstm_2048_512": Source(
        factory="stanza_sim.model.examples.wide_heads:lstm_2048_512",
        input_shape=(3072,),
        factory_kwargs={"classes": 793_471},
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of the shipped models that are what they are; those whose head has any width are in `WIDE`."""
    return tuple(SOURCES)
