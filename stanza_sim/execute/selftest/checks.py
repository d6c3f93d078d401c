"""Every check, in the order in which they are carried out, and how long each may take. No torch.

On a GPU, those that need one come first, in the order in which they build on each other.
"""

from __future__ import annotations

from stanza_sim.execute.selftest.outcome import Group
from stanza_sim.execute.selftest.variants import ON_ONE_GPU, ON_STANDIN, TRAINED

_HERE = "stanza_sim.execute.selftest"

VERSIONS = Group(names=("versions",), function=f"{_HERE}.on_cores:versions", limit_s=60, needs_s=2)
ON_CORES = (
    Group(
        names=(
            "gloo",
            *(f"train:{name}" for name in TRAINED),
            "staging",
            *(f"standin:{name}" for name in ON_STANDIN),
        ),
        function=f"{_HERE}.on_cores:ranks",
        limit_s=60,
        needs_s=4,
    ),
    Group(names=("predicted",), function=f"{_HERE}.predictions:predicted", limit_s=90, needs_s=15),
)
"""What needs no GPU: under a minute on two idle cores."""
ON_GPU = (
    Group(names=("gpu:provenance",), function=f"{_HERE}.on_gpu:provenance", limit_s=30, needs_s=5, gpu=True),
    Group(names=("gpu:lanes",), function=f"{_HERE}.on_gpu:lanes", limit_s=30, needs_s=10, gpu=True),
    Group(names=("gpu:copies",), function=f"{_HERE}.on_gpu:copies", limit_s=60, needs_s=25, gpu=True),
    Group(
        names=tuple(f"gpu:staged:{name}" for name in ON_ONE_GPU),
        function=f"{_HERE}.on_gpu:staged",
        limit_s=40,
        needs_s=6,
        gpu=True,
    ),
    Group(names=("gpu:nccl",), function=f"{_HERE}.nccl:nccl", limit_s=60, needs_s=20, gpu=True),
    Group(names=("gpu:blocks",), function=f"{_HERE}.blocks:blocks", limit_s=200, needs_s=30, gpu=True),
    Group(
        names=("gpu:local:fp32", "gpu:local:tf32"),
        function=f"{_HERE}.gpu_predictions:local",
        limit_s=90,
        needs_s=20,
        gpu=True,
    ),
    Group(
        names=("gpu:shared:2", "gpu:shared:4"),
        function=f"{_HERE}.gpu_predictions:shared",
        limit_s=60,
        needs_s=20,
        gpu=True,
    ),
    Group(names=("gpu:beside",), function=f"{_HERE}.on_gpu:beside", limit_s=30, needs_s=15, gpu=True),
    Group(
        names=("gpu:repeats", "gpu:repeats:deterministic"),
        function=f"{_HERE}.on_gpu:repeats",
        limit_s=30,
        needs_s=8,
        gpu=True,
    ),
    Group(names=("gpu:fit",), function=f"{_HERE}.refit:refit", limit_s=30, needs_s=4, gpu=True),
)
"""What needs a GPU. All of it runs on the first one that is visible."""


def groups(*, gpu: bool) -> tuple[Group, ...]:
    """All checks, in order; those of a GPU come early where they are to be carried out, else last."""
    return (VERSIONS, *ON_GPU, *ON_CORES) if gpu else (VERSIONS, *ON_CORES, *ON_GPU)
