"""How gradients are exchanged: by all-reduce, or by servers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stanza_sim.model.profile import Block
from stanza_sim.schedule.ops import Bundle, Pattern, Phase, Value, ValueKind
from stanza_sim.strategies._shared.builder import Builder, fuse, fuse_to_fit
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings

if TYPE_CHECKING:
    from stanza_sim.strategies._shared.hosts import Hosts


def exchange_by_all_reduce(
    b: Builder,
    blocks: Sequence[Block],
    ranks: str,
    *,
    prefix: str,
    first_bytes: int,
    cap_bytes: int,
    settings: CollectiveSettings,
    algorithm: Choice,
    grads_ready: dict[str, str],
    lane: str = "main",
    params_ready: dict[str, list[str]],
    fits: int | None = None,
) -> None:
    """All-reduce the gradients of `blocks` over `ranks` in buckets by `algorithm`, then update everywhere.

    Buckets are those of `fuse`, or with `fits` those of `fuse_to_fit` for a buffer of so many bytes.
    `grads_ready[block]` is the op after which the block's gradients are complete.
    """
    tensors = [t for block in blocks for t in block.tensors]
    made: list[tuple[Bundle, str]] = []
    itemsize = b.model.itemsize
    buckets = fuse(tensors, itemsize, first_bytes, cap_bytes) if fits is None else fuse_to_fit(tensors, itemsize, fits)
    for i, bucket in enumerate(buckets):
        bundle = b.bundle(f"{prefix}{i}", list(reversed(bucket)), ranks)
        after = dict.fromkeys(grads_ready[block] for block in reversed(b.blocks_of(bundle)))
        how = settings.how(algorithm, bundle.numel * b.model.itemsize, len(b.groups[ranks].ranks))
        made.append((bundle, b.all_reduce(bundle, ranks, how, after=after)))
    for bundle, op in made:
        update = b.compute(Phase.UPDATE, bundle.name, ranks, after=[op], lane=lane)
        for block in b.blocks_of(bundle):
            params_ready.setdefault(block, []).append(update)


def exchange_among(
    b: Builder,
    blocks: Sequence[Block],
    ranks: str,
    *,
    prefix: str,
    first_bytes: int,
    cap_bytes: int,
    settings: CollectiveSettings,
    algorithm: Choice,
    grads_ready: dict[str, str],
    lane: str = "main",
    params_ready: dict[str, list[str]],
) -> None:
    """As `exchange_by_all_reduce` where there are several `ranks`; one updates each block by itself."""
    if len(b.groups[ranks].ranks) > 1:
        exchange_by_all_reduce(
            b,
            blocks,
            ranks,
            prefix=prefix,
            first_bytes=first_bytes,
            cap_bytes=cap_bytes,
            settings=settings,
            algorithm=algorithm,
            grads_ready=grads_ready,
            lane=lane,
            params_ready=params_ready,
        )
        return
    for block in reversed(blocks):
        if block.tensors:
            bundle = b.bundle(block.name, block.tensors, ranks)
            update = b.compute(Phase.UPDATE, bundle.name, ranks, after=[grads_ready[block.name]], lane=lane)
            params_ready[block.name] = [update]


def exchange_by_servers(
    b: Builder,
    bundles: Sequence[Bundle],
    workers: str,
    *,
    overlap: bool,
    lane: str,
    grads_ready: dict[str, str],
    params_ready: dict[str, list[str]],
    credit: int = 0,
    hosts: Hosts | None = None,
    share_pulls: bool = True,
    pull_together: bool = False,
) -> None:
    """Push gradients of `bundles` from `workers` to their owners, reduce, update, and pull parameters back.

    With `overlap` a bundle is pushed as soon as the backward pass of its blocks is done and pulled as soon as it is
    updated; without, everything is pushed after the backward pass, pulled after the last update, and the next forward
    pass waits for all of it. `grads_ready[block]` is the op after which the gradients of a block of `bundles` are
    complete. With `credit`, what is pushed and pulled goes by priority: see `Transfer`; owners then have a lane per
    block. With `hosts`, gradients are added up on each host first, and only the sum is pushed; parameters are pulled by
    one rank of each host, which passes them on, or by every worker itself unless they `share_pulls`. To `pull_together`
    is to pull nothing before the last update at an owner, but to begin the next forward pass with what is there.
    """
    passing = hosts if share_pulls else None
    last = [grads_ready[block.name] for block in b.model.blocks if block.tensors and block.name in grads_ready]
    updates: dict[str, dict[str, str]] = {}  # owners -> updates; of parts of tensors, which are many, each lane's last
    parts = len({bundle.tensors for bundle in bundles}) < len(bundles)
    for place, bundle in enumerate(bundles):
        inward = Pattern.ALL_PAIRS if len(b.groups[bundle.owners].ranks) > 1 else Pattern.FAN_IN
        after = dict.fromkeys(grads_ready[name] for name in b.blocks_of(bundle)) if overlap else dict.fromkeys(last)
        pushers, kind = workers, ValueKind.GRAD
        if hosts is not None:
            pushers, kind = hosts.leaders(place), ValueKind.SUM
            after = dict.fromkeys([hosts.gather(b, bundle, place, list(after), credit)])
        push = b.transfer(
            f"push.{bundle.name}",
            pushers,
            bundle.owners,
            inward,
            [Value(kind, bundle.name)],
            channel="push",
            priority=b.priority(bundle),
            credit=credit,
            after=after,
        )
        # A lane works in program order: what overtakes on the way must not wait at the server.
        at = f"{lane}.{b.blocks_of(bundle)[0]}" if credit else lane
        reduce = b.compute(Phase.REDUCE, bundle.name, bundle.owners, after=[push], lane=at)
        update = b.compute(Phase.UPDATE, bundle.name, bundle.owners, after=[reduce], lane=at)
        updates.setdefault(bundle.owners, {})[at if parts else bundle.name] = update
        if overlap and not pull_together:
            pull = _pull(b, bundle, workers, [update], credit, passing, place)
            for name in b.blocks_of(bundle):
                params_ready.setdefault(name, []).append(pull)
    if overlap and not pull_together:
        return
    everything: list[str] = []
    for place, bundle in reversed(list(enumerate(bundles))):
        everything.append(_pull(b, bundle, workers, updates[bundle.owners].values(), credit, passing, place))
        for name in b.blocks_of(bundle):
            params_ready.setdefault(name, []).append(everything[-1])
    if not overlap:
        for block in b.model.blocks:
            params_ready[block.name] = everything


def _pull(
    b: Builder, bundle: Bundle, workers: str, after: Iterable[str], credit: int, hosts: Hosts | None, place: int
) -> str:
    """Add the pull of `bundle`, and where there are `hosts` its passing on; returns the op after which all have it."""
    outward = Pattern.ALL_PAIRS if len(b.groups[bundle.owners].ranks) > 1 else Pattern.FAN_OUT
    pull = b.transfer(
        f"pull.{bundle.name}",
        bundle.owners,
        workers if hosts is None else hosts.leaders(place),
        outward,
        [Value(ValueKind.PARAM, bundle.name)],
        channel="pull",
        priority=b.priority(bundle),
        credit=credit,
        after=after,
    )
    return pull if hosts is None else hosts.spread(b, bundle, place, pull, credit)
