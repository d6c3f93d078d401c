"""Bytes that each rank sends and receives per iteration where the FC part is cut: the docstrings' closed forms."""

from __future__ import annotations

from stanza_sim.model.profile import ModelProfile, with_boundary
from tests.strategies.stanza_bytes import by_servers

LABEL = 8


def sliced_bytes(
    model: ModelProfile,
    strategy: str,
    world_size: int,
    batch: int,
    *,
    fc_workers: int = 0,
    placement: str = "dedicated",
    microbatches: int = 1,
    fc_compute: str = "",
    activations: str = "fp32",
    conv_exchange: str = "all_reduce",
    conv_servers: str = "fc",
    cut: str | None = None,
    rows: bool = True,
    sums: int = 4,
    **_: object,
) -> list[tuple[int, int]]:
    """(sent, received) of each rank of `stanza` with `fc_parallel: model`, or of `sharded_head`.

    The first layer is cut by `rows`, or by columns; partial sums have `sums` bytes an element. For all-reduces of the
    backend's own; the CONV part's gradients are in one bucket.
    """
    model = model if cut is None else with_boundary(model, cut)
    w, size = model.itemsize, batch // microbatches
    k = fc_workers if strategy == "stanza" else world_size
    together = placement == "colocated" or strategy == "sharded_head"
    conv = list(range(world_size if together else world_size - k))
    n = len(conv)
    fc = [min(i for i in conv if i * k // n == d) for d in range(k)] if together else list(range(n, world_size))
    wire = 2 if activations == "bf16" else w
    sent, received = [0] * world_size, [0] * world_size
    boundary = model.conv_blocks[-1].output_numel
    by_turns = fc_compute in ("arrival", "turns") or (strategy == "sharded_head" and not fc_compute)

    def move(a: int, b: int, nbytes: int) -> None:
        if a != b:
            sent[a] += nbytes
            received[b] += nbytes

    for i in conv:
        for d, r in enumerate(fc):
            features = boundary // k + (d < boundary % k) if rows else boundary
            move(i, r, batch * (features * wire + LABEL))
            if rows:
                move(r, i, batch * features * wire)
        if not rows:  # whole gradients come from the rank that serves the worker
            move(fc[i * k // n], i, batch * boundary * wire)

    def ring(ranks: list[int], nbytes: int) -> None:
        for r in ranks:
            sent[r] += 2 * (len(ranks) - 1) * nbytes // len(ranks)
            received[r] += 2 * (len(ranks) - 1) * nbytes // len(ranks)

    samples = size if by_turns else size * n
    for _piece in range(batch * n // samples):
        inputs, by_rows = boundary, rows
        for block in model.fc_blocks:
            ring(fc, samples * (block.output_numel if by_rows else inputs) * sums)
            inputs, by_rows = block.output_numel, not by_rows
        if by_rows:  # the last is cut by columns
            for r in fc:
                sent[r], received[r] = sent[r] + (k - 1) * samples * w, received[r] + (k - 1) * samples * w
    if conv_exchange == "parameter_server":
        by_servers(model, conv, {"fc": fc, "sharded": conv, "single": conv[:1]}[conv_servers], move)
    else:
        ring(conv, w * sum(b.numel for b in model.conv_blocks))
    return list(zip(sent, received, strict=True))
