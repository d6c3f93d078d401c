"""The setting that says in which type activations travel."""

from __future__ import annotations

from typing import Literal

from stanza_sim.schedule.ops import Wire

ActivationType = Literal["fp32", "bf16", "fp16"]
ACTIVATIONS = (
    "Type in which activations and their gradients travel: as they are, or rounded to 2 bytes an element. "
    "Default: that in which the precision of the experiment computes them."
)


def wire_of(activations: ActivationType | None) -> Wire:
    """The type of the setting's transfers; where it is left out, precision has its say later (`strategies.build`)."""
    match activations:
        case "bf16":
            return Wire.BF16
        case "fp16":
            return Wire.FP16
        case "fp32" | None:
            return Wire.NATIVE
