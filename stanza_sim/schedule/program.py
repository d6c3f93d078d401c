"""The projection that both engines run: one rank's units of work and what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from stanza_sim.schedule.ops import Collective, Compute, Op, Phase, Transfer, ValueKind, dependency
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

_NOBODY = Ranks(())


class UnitKind(StrEnum):
    """The part that a rank plays in an op."""

    COMPUTE = "compute"
    SEND = "send"
    RECV = "recv"
    COLLECTIVE = "collective"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One rank's part in one op; a rank that both sends and receives in a transfer has two units.

    `needs` and `needs_previous` are indices into `RankProgram.units` that must be complete in the same and in
    the previous iteration. `peers` are the ranks that it sends to or hears from, or the other members of a collective,
    without the rank itself; `local` says that the pair (rank, rank) exists: then a `RECV` unit also waits for what
    gates the sending side, since the value is there already.
    """

    index: int
    op: Op
    kind: UnitKind
    needs: tuple[int, ...]
    needs_previous: tuple[int, ...]
    peers: Ranks = _NOBODY
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProgram:
    """Units of `rank` in program order. Where a rank sends and receives in one op, the send comes first."""

    rank: int
    units: tuple[Unit, ...]


def project(schedule: Schedule, rank: int) -> RankProgram:
    """Return what `rank` does, with dependencies resolved to units.

    A dependency on an op in which the rank takes no part does not gate it. Bare `X` means `X.recv` where the
    rank receives in X, and `X.sent` otherwise. Updates also wait for sends of what they would overwrite: see
    `_overwritten`.
    """
    done: dict[tuple[str, str], int] = {}  # (op, side) -> unit
    units: list[Unit] = []
    previous: list[tuple[int, tuple[str, ...]]] = []

    def resolve(names: tuple[str, ...]) -> tuple[int, ...]:
        found = {done[d] for d in map(dependency, names) if d in done}
        return tuple(sorted(found))

    def add(op: Op, kind: UnitKind, *, gated: bool, peers: Ranks = _NOBODY, local: bool = False) -> int:
        index = len(units)
        units.append(
            Unit(
                index=index,
                op=op,
                kind=kind,
                needs=resolve(op.after) if gated else (),
                needs_previous=(),
                peers=peers,
                local=local,
            )
        )
        if gated and op.after_previous:
            previous.append((index, op.after_previous))
        return index

    for op in schedule.ops:
        match op:
            case Compute():
                if rank in schedule.group(op.ranks):
                    done[op.name, ""] = add(op, UnitKind.COMPUTE, gated=True)
            case Collective():
                if rank in schedule.group(op.ranks):
                    peers = _without(schedule.group(op.ranks), rank)
                    done[op.name, ""] = add(op, UnitKind.COLLECTIVE, gated=True, peers=peers)
            case Transfer():
                to, source = schedule.destinations(op, rank), schedule.sources(op, rank)
                local = rank in to
                if to.spans:
                    sent = add(op, UnitKind.SEND, gated=True, peers=_without(to, rank), local=local)
                    done[op.name, "sent"] = done[op.name, ""] = sent
                if source.spans:
                    got = add(op, UnitKind.RECV, gated=local, peers=_without(source, rank), local=local)
                    done[op.name, "recv"] = done[op.name, ""] = got
    for index, names in previous:
        units[index] = replace(units[index], needs_previous=resolve(names))
    for index, sends in _overwritten(units).items():
        u = units[index]
        units[index] = replace(
            u,
            needs=tuple(sorted({*u.needs, *(v for v in sends if v < index)})),
            needs_previous=tuple(sorted({*u.needs_previous, *(v for v in sends if v > index)})),
        )
    return RankProgram(rank=rank, units=tuple(units))


def _overwritten(units: list[Unit]) -> dict[int, list[int]]:
    """The sends of parameters that each update must wait for, lest it overwrites what is being sent.

    Sends before the update in program order are those of its iteration, later ones those of the iteration before. Where
    all receivers of the parameters also send gradients of which the update is made, they have the parameters already,
    by causality; elsewhere the update waits.
    """
    sends: dict[str, list[Unit]] = {}
    pushers: dict[str, set[Ranks]] = {}
    for u in units:
        if isinstance(u.op, Transfer):
            for value in u.op.values:
                if u.kind is UnitKind.SEND and value.kind is ValueKind.PARAM and len(u.peers):
                    sends.setdefault(value.name, []).append(u)
                elif u.kind is UnitKind.RECV and value.kind in (ValueKind.GRAD, ValueKind.SUM, ValueKind.FACTORS):
                    pushers.setdefault(value.name, set()).add(u.peers)
    found: dict[int, list[int]] = {}
    for u in units:
        if isinstance(u.op, Compute) and u.op.phase is Phase.UPDATE:
            known = pushers.get(u.op.target, set())
            for send in sends.get(u.op.target, ()):
                if send.peers not in known and not {*send.peers} <= {p for peers in known for p in peers}:
                    found.setdefault(u.index, []).append(send.index)
    return found


def _without(ranks: Ranks, rank: int) -> Ranks:
    if rank not in ranks:
        return ranks
    spans: list[tuple[int, int]] = []
    for a, b in ranks.spans:
        if a <= rank < b:
            spans += [s for s in ((a, rank), (rank + 1, b)) if s[0] < s[1]]
        else:
            spans.append((a, b))
    return Ranks(tuple(spans))
