"""Bytes that each rank sends and receives per iteration under `stanza`, by the closed form in its docstring."""

from __future__ import annotations

from collections.abc import Callable

from stanza_sim.model.profile import Block, ModelProfile, with_boundary
from stanza_sim.schedule import slice_bounds

LABEL = 8


def stanza_bytes(
    model: ModelProfile,
    world_size: int,
    batch: int,
    *,
    fc_workers: int = 1,
    placement: str = "dedicated",
    cut: str | None = None,
    conv_exchange: str = "all_reduce",
    conv_servers: str = "fc",
    activations: str = "fp32",
    **_: object,
) -> list[tuple[int, int]]:
    """(sent, received) of each rank, for buckets that hold a whole part and the backend's own all-reduce.

    Micro-batches and what is computed at once make no difference.
    """
    model = model if cut is None else with_boundary(model, cut)
    sent, received = [0] * world_size, [0] * world_size

    def move(a: int, b: int, nbytes: int) -> None:
        if a != b:
            sent[a] += nbytes
            received[b] += nbytes

    k = fc_workers
    conv = list(range(world_size if placement == "colocated" else world_size - k))
    n = len(conv)
    if placement == "colocated":
        fc = [min(i for i in conv if i * k // n == d) for d in range(k)]
    else:
        fc = list(range(n, world_size))
    floats = batch * model.conv_blocks[-1].output_numel * (2 if activations == "bf16" else model.itemsize)
    for i in conv:
        move(i, fc[i * k // n], floats + batch * LABEL)
        move(fc[i * k // n], i, floats)

    def ring(ranks: list[int], blocks: tuple[Block, ...]) -> None:
        nbytes = model.itemsize * sum(b.numel for b in blocks)
        for r in ranks:
            sent[r] += 2 * (len(ranks) - 1) * nbytes // len(ranks)
            received[r] += 2 * (len(ranks) - 1) * nbytes // len(ranks)

    ring(fc, model.fc_blocks)
    if conv_exchange == "all_reduce":
        ring(conv, model.conv_blocks)
        return list(zip(sent, received, strict=True))
    by_servers(model, conv, {"fc": fc, "sharded": conv, "single": conv[:1]}[conv_servers], move)
    return list(zip(sent, received, strict=True))


def by_servers(
    model: ModelProfile, workers: list[int], servers: list[int], move: Callable[[int, int, int], None]
) -> None:
    """Call `move(source, destination, nbytes)` for what servers of the CONV part, cut over them, get and send."""
    for block in model.conv_blocks:
        for j, server in enumerate(servers):
            lo, hi = slice_bounds(block.numel, len(servers), j)
            for worker in workers:
                move(worker, server, (hi - lo) * model.itemsize)
                move(server, worker, (hi - lo) * model.itemsize)
