"""What a device can train in. No torch: a question about a rank is answered before anything starts."""

from __future__ import annotations

from stanza_sim.base.precision import Precision

TENSOR_CORES = {Precision.TF32: (8, 0), Precision.BF16: (8, 0), Precision.FP16: (7, 0)}
"""From which compute capability on NVIDIA's tensor cores take a type (CUDA C++ Programming Guide, compute
capabilities). Below, torch emulates bf16 and leaves fp16 to slower units, and computes fp32 where TF32 is asked for."""


def unsupported(precision: Precision, kind: str, capability: tuple[int, int] | None) -> str | None:
    """Why a device of `kind` (`cpu`, `cuda`) cannot train in `precision`; None if it can.

    `capability` is CUDA's compute capability (major, minor); where it is None, as it is on cores, no GPU is refused.
    Cores train in bf16 and fp16 too, which torch's autocast has there as well, if slowly.
    """
    if precision is Precision.FP32:
        return None
    match kind:
        case "cpu":
            return "TF32 is a mode of NVIDIA's tensor cores" if precision is Precision.TF32 else None
        case "cuda":
            needed = TENSOR_CORES[precision]
            if capability is None or capability >= needed:
                return None
            has, needs = (".".join(map(str, one)) for one in (capability, needed))
            return f"{precision} needs compute capability {needs}, and this GPU has {has}"
        case _:
            return f"nothing is known of {precision} there"


def supported(kind: str, capability: tuple[int, int] | None) -> list[str]:
    """The precisions that such a device can train in."""
    return [str(one) for one in Precision if unsupported(one, kind, capability) is None]
