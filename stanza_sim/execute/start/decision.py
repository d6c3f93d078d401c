"""One decision for all ranks: which GPU each takes, and whether NCCL can be used. Pure; no torch.

Every rank calls `decide` with the same gathered facts. So all decide the same, or all stop with the same message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.decision import Decision, RankFacts, Seat
from stanza_sim.execute.rank.devices import GpuInfo
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start.fit import fitting_hint

MOST_LISTED = 6
"""A list in a message names no more groups of ranks than this."""
SHARED_TOPOLOGY = "one-gpu-shared"
"""The shipped topology whose ranks share a GPU."""


def decide(facts: Sequence[RankFacts], wanted: Backend, seats: Sequence[Seat] | None = None) -> Decision:
    """What all ranks hold to, from the facts of all, in rank order.

    A rank takes the GPU whose number is that of its device in the topology (without `seats`: its local rank), modulo
    how many it sees; so it takes the only one that it sees, as with Slurm's `--gpus-per-task=1`. NCCL can be used where
    every rank has a GPU, all UUIDs differ, over hosts too, and every rank's torch has NCCL. Ranks may share a GPU where
    the topology places them on one device, and nowhere else; they then talk over gloo.

    Raises `InputError` for ranks without a GPU, unlike GPUs where the topology has like ones, GPUs that are shared in
    another way than the topology says, and a backend `wanted` that cannot be had.
    """
    if seats is not None and len(seats) != len(facts):
        what = f"{len(facts)} ranks run, the topology has {len(seats)}"
        raise InputError(what, where="--execute", hint=f"start {len(seats)} ranks")
    kinds = [f.kind for f in facts]
    if len(set(kinds)) > 1:
        who = _grouped((r, f"for {kind}") for r, kind in enumerate(kinds))
        hint = "start every rank with the same experiment and settings"
        raise InputError(f"ranks were started for different kinds of device: {who}", where="--execute", hint=hint)
    if "cuda" not in kinds:
        decision = Decision(gpus=(None,) * len(facts), why_not="ranks compute on cores")
        decision.backend(wanted)
        return decision
    on_gpus = [r for r in range(len(facts)) if seats is None or seats[r].device is not None]
    _check_seen(facts, on_gpus)
    taken: dict[int, GpuInfo] = {}
    for r in on_gpus:
        number = facts[r].local_rank if seats is None else seats[r].device or 0
        taken[r] = facts[r].gpus[number % len(facts[r].gpus)]
    _check_alike(facts, seats, taken)
    shared = _groups((r, _identity(facts[r], gpu)) for r, gpu in taken.items())
    _check_shared(facts, seats, taken, shared)
    without = [r for r in on_gpus if not facts[r].nccl]
    why_not = ""
    if len(on_gpus) < len(facts):
        others = sorted(set(range(len(facts))) - set(on_gpus))
        why_not = f"{say_ranks(others)} {_verb(others, 'computes', 'compute')} on cores"
    elif shared:
        why_not = f"{say_ranks(shared[0])} share {taken[shared[0][0]].name}"
    elif without:
        why_not = f"the torch of {say_ranks(without)} has no NCCL"
    decision = Decision(
        gpus=tuple(taken.get(r) for r in range(len(facts))), shared=shared, nccl=not why_not, why_not=why_not
    )
    decision.backend(wanted)
    return decision


def _check_seen(facts: Sequence[RankFacts], on_gpus: Sequence[int]) -> None:
    """Refuse ranks that are to compute on a GPU and see none."""
    missing = [r for r in on_gpus if not facts[r].gpus]
    if not missing:
        return
    if len(missing) == len(on_gpus):
        raise InputError(
            "the topology has GPUs, but torch finds none on any host of the ranks",
            where="--execute",
            hint="use a topology without devices, such as laptop; else check the driver, CUDA_VISIBLE_DEVICES, "
            "and that torch is a CUDA build",
        )
    seen = [(r, _seen(facts[r])) for r in on_gpus]
    raise InputError(
        f"{say_ranks(missing)} {_verb(missing, 'finds', 'find')} no GPU: {_grouped(seen)}",
        where="--execute",
        hint="start each rank where a GPU is visible; check CUDA_VISIBLE_DEVICES and the launcher's request for GPUs",
    )


def _seen(rank: RankFacts) -> str:
    if not rank.gpus:
        return f"none on {rank.host}"
    names = dict.fromkeys(g.name for g in rank.gpus)
    return f"{len(rank.gpus)} x {' and '.join(names)} on {rank.host}"


def _check_alike(facts: Sequence[RankFacts], seats: Sequence[Seat] | None, taken: dict[int, GpuInfo]) -> None:
    """Refuse unlike GPUs for ranks that the topology places on devices of one name."""
    for name in dict.fromkeys("" if seats is None else seats[r].name for r in taken):
        ranks = [r for r in taken if seats is None or seats[r].name == name]
        if len({taken[r].name for r in ranks}) > 1:
            who = _grouped((r, f"{taken[r].name} on {facts[r].host}") for r in ranks)
            raise InputError(
                f"the ranks have unlike GPUs{f', the topology says {name} for all of them' if name else ''}: {who}",
                where="--execute",
                hint="start ranks on hosts with one kind of GPU, or list each host's own devices in the topology",
            )


def _check_shared(
    facts: Sequence[RankFacts],
    seats: Sequence[Seat] | None,
    taken: dict[int, GpuInfo],
    shared: tuple[tuple[int, ...], ...],
) -> None:
    """Refuse GPUs that ranks share in another way than the topology says."""
    placed = () if seats is None else _groups((r, (seats[r].host, seats[r].device)) for r in taken)
    if shared == placed:
        return
    if more := [group for group in shared if group not in placed]:
        who = "; ".join(f"{say_ranks(g)} on {facts[g[0]].host} have one {taken[g[0]].name}" for g in more[:MOST_LISTED])
        rest = f"; and {len(more) - MOST_LISTED} more" if len(more) > MOST_LISTED else ""
        raise InputError(
            f"ranks would share a GPU that the topology places on different devices: {who}{rest}",
            where="--execute",
            hint=f"start one rank for each GPU: {fitting_hint(_gpus_of_hosts(facts))}; or use a topology that places "
            f"them on one device, such as {SHARED_TOPOLOGY}",
        )
    apart = [group for group in placed if group not in shared]
    raise InputError(
        f"the topology places {say_ranks(apart[0])} on one device, but each sees another GPU",
        where="--execute",
        hint="show the same GPU to them (CUDA_VISIBLE_DEVICES), or use a topology with a device for each rank: "
        + fitting_hint(_gpus_of_hosts(facts)),
    )


def _gpus_of_hosts(facts: Sequence[RankFacts]) -> list[list[GpuInfo]]:
    """The GPUs that ranks see on each machine, each once."""
    found: dict[tuple[str, str], dict[object, GpuInfo]] = {}
    for rank in facts:
        on = found.setdefault((rank.host, rank.machine), {})
        on |= {_identity(rank, g): g for g in rank.gpus}
    return [list(on.values()) for on in found.values() if on]


def _identity(rank: RankFacts, gpu: GpuInfo) -> object:
    """What two ranks have in common if their GPU is one: its UUID or, where there is none, its number on its machine.

    Without UUIDs a mask per rank makes different GPUs look like one, never one like several.
    """
    return gpu.uuid or (rank.host, rank.machine, gpu.index)


def _groups(items: Iterable[tuple[int, object]]) -> tuple[tuple[int, ...], ...]:
    """The ranks that have something in common with others, by what they have."""
    found: dict[object, list[int]] = {}
    for rank, what in items:
        found.setdefault(what, []).append(rank)
    return tuple(tuple(ranks) for ranks in found.values() if len(ranks) > 1)


def _grouped(items: Iterable[tuple[int, str]]) -> str:
    """Who has what, as in `ranks 0 and 1: 2 x NVIDIA L4 on a; rank 2: none on b`."""
    found: dict[str, list[int]] = {}
    for rank, what in items:
        found.setdefault(what, []).append(rank)
    said = [f"{say_ranks(ranks)}: {what}" for what, ranks in found.items()]
    if len(said) > MOST_LISTED:
        said = [*said[:MOST_LISTED], f"and {len(said) - MOST_LISTED} more"]
    return "; ".join(said)


def _verb(ranks: Sequence[int], one: str, several: str) -> str:
    return one if len(ranks) == 1 else several


def say_ranks(ranks: Sequence[int]) -> str:
    """Ranks in words.

    >>> say_ranks([3]), say_ranks([0, 1]), say_ranks([0, 1, 2, 5])
    ('rank 3', 'ranks 0 and 1', 'ranks 0 to 2 and 5')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    ordered = sorted(ranks)
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1), len(ordered)]
    runs: list[str] = []
    for a, b in pairwise(starts):
        run = ordered[a:b]
        runs += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(r) for r in run]
    return "ranks " + (f"{', '.join(runs[:-1])} and {runs[-1]}" if len(runs) > 1 else runs[0])
