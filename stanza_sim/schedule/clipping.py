"""Clipping by the norm of all gradients together, as a pass over a schedule that has been built, and its rules.

Every owner sums up the squares of its gradients (`norm`), once they are summed over ranks. Where each owner has all of
every bundle, it then has the norm. Elsewhere an all-reduce of one number over all owners adds up their parts, in which
each element counts once: of a bundle that several owners have as a whole, at the first of them. Every update, and what
comes behind it, waits for that; all of these keep their order, since what waits for one update of a lane may rely on
those ahead of it.

Bytes: with n owners that do not have all each, of w bytes an element, a ring sends 2(n-1)/n w from each.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, count

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.schedule.ops import (
    Collective,
    CollectiveKind,
    Compute,
    Group,
    Layout,
    Op,
    Phase,
    Transfer,
    Value,
    ValueKind,
    dependency,
)
from stanza_sim.schedule.printing import print_op
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

NORM = Value(ValueKind.NORM)


def with_clipping(schedule: Schedule) -> Schedule:
    """Return `schedule` with the norm of all gradients found before any update. Raises `InputError` if it cannot be.

    It cannot where gradients come behind an update of the same iteration.
    """
    updates = {op.name: op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.UPDATE}
    if not updates:
        return schedule
    before: list[Op] = []
    behind: list[Op] = []
    updated: set[str] = set()  # bundles whose update has been seen
    later: set[str] = set()  # names of updates and of what comes behind them
    last: dict[tuple[str, str], str] = {}  # of the computations of a group in a lane: the last norm
    for op in schedule.ops:
        if op.name in updates:
            update = updates[op.name]
            name = f"norm.{op.name.removeprefix('upd.')}"
            after = tuple(text for text in op.after if dependency(text)[0] not in later)
            before.append(replace(update, name=name, phase=Phase.NORM, after=after, after_previous=()))
            last[update.ranks, update.lane] = name
            updated.add(update.target)
        elif not any(dependency(text)[0] in later for text in op.after) and not _parameters_of(op) & updated:
            before.append(op)
            continue
        elif _makes_gradients(op):
            raise InputError(
                f"{op.name} makes gradients behind an update, so the norm of all gradients is not known before it",
                where=f"schedule {schedule.name}",
                hint="leave out clip_norm, or choose settings with which updates come last",
            )
        later.add(op.name)
        behind.append(op)
    gates = tuple(last.values())
    groups = schedule.groups
    owners = _together([schedule.group(op.ranks) for op in updates.values()])
    if not _have_all(schedule, owners):
        group = next((g.name for g in groups if g.ranks == owners), "")
        if not group:
            taken = {g.name for g in groups}
            group = next(n for n in chain(["owners"], (f"owners-{i}" for i in count(2))) if n not in taken)
            groups = (*groups, Group(name=group, ranks=owners))
        before.append(
            Collective(
                name=next(n for n in chain(["clip"], (f"clip-{i}" for i in count(2))) if not _has(schedule, n)),
                kind=CollectiveKind.ALL_REDUCE,
                ranks=group,
                value=NORM,
                nbytes=schedule.itemsize,
                after=gates,
            )
        )
        gates = (before[-1].name,)
    waiting = (
        replace(op, after=(*(text for text in op.after if dependency(text)[0] in later), *gates))
        if op.name in updates
        else op
        for op in behind
    )
    return replace(schedule, groups=groups, ops=(*before, *waiting))


def _has(schedule: Schedule, name: str) -> bool:
    return any(op.name == name for op in schedule.ops)


def _makes_gradients(op: Op) -> bool:
    match op:
        case Compute():
            return op.phase is not Phase.UPDATE
        case Collective():
            return op.value.kind.is_gradient
        case _:
            return any(value.kind.is_gradient or value.kind is ValueKind.FACTORS for value in op.values)


def _parameters_of(op: Op) -> set[str]:
    """The bundles whose parameters `op` moves."""
    values = op.values if isinstance(op, Transfer) else (op.value,) if isinstance(op, Collective) else ()
    return {value.name for value in values if value.kind in (ValueKind.PARAM, ValueKind.COPY)}


def _together(groups: list[Ranks]) -> Ranks:
    return Ranks.of({rank for ranks in dict.fromkeys(groups) for rank in ranks})


def _have_all(schedule: Schedule, owners: Ranks) -> bool:
    """Whether each of `owners` has all that is updated."""
    every = (schedule.bundle(op.target) for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.UPDATE)
    return len(owners) == 1 or all(
        bundle.layout is Layout.REPLICATED and schedule.owners(bundle) == owners for bundle in every
    )


def clipping_op(schedule: Schedule) -> Collective | None:
    """The all-reduce that adds up the owners' parts of the norm; None where there is none."""
    return next((op for op in schedule.ops if isinstance(op, Collective) and op.value == NORM), None)


def is_clipped(schedule: Schedule) -> bool:
    """Whether updates wait for the norm of all gradients."""
    return any(isinstance(op, Compute) and op.phase is Phase.NORM for op in schedule.ops)


def check_clipping(schedule: Schedule) -> None:
    """Raise `ScheduleError` unless, where updates are clipped, the norm is of all that is updated, each element once.

    That it comes before the updates is among the rules of data flow.
    """
    norms = [op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.NORM]
    totals = [op for op in schedule.ops if isinstance(op, Collective) and op.value == NORM]
    if not norms and not totals:
        return
    if len(totals) > 1:
        raise _wrong(schedule, totals[1], "the norm has been added up already")
    for update in (op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.UPDATE):
        found = [schedule.group(op.ranks) for op in norms if op.target == update.target]
        owners = schedule.owners(schedule.bundle(update.target))
        if _together(found) != owners or sum(map(len, found)) != len(owners):
            raise _wrong(schedule, update, f"each owner of {update.target} takes its norm once, since others are taken")
    owners = _together([schedule.group(op.ranks) for op in norms])
    if totals and schedule.group(totals[0].ranks) != owners:
        raise _wrong(schedule, totals[0], f"the norm is added up over all owners, ranks {owners}")
    if not totals and not _have_all(schedule, owners):
        raise _wrong(schedule, norms[0], "no owner has all bundles, so the norm must be added up over all of them")


def _wrong(schedule: Schedule, op: Op, message: str) -> ScheduleError:
    return ScheduleError(f"{message}\n  in: {print_op(op)}", where=f"schedule {schedule.name}")
