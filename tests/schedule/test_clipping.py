"""Clipped schedules: the norm is of all gradients, each element once, and comes before any update."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from stanza_sim import strategies
from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.schedule import (
    Collective,
    Compute,
    Layout,
    Phase,
    Schedule,
    Transfer,
    ValueKind,
    check,
    from_json,
    parse,
)
from stanza_sim.schedule.accumulation import accumulated
from stanza_sim.schedule.clipping import clipping_op, is_clipped, with_clipping
from stanza_sim.schedule.order import order_of
from stanza_sim.schedule.rank_cells import bits
from stanza_sim.simulate.lowering.op_costs import NORM_PASSES, OpCosts
from tests.execute.execute_variants import expected_bytes
from tests.schedule.toys import build, cluster, predict, toy


def updates(schedule: Schedule) -> list[Compute]:
    return [op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.UPDATE]


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_clips(name: str) -> None:
    """Some settings of each, of plan's space: legal, of the closed form in bytes, and the same in both engines."""
    model, found = toy(), strategies.get(name)
    space = found.space(model, world_size=5, batch_per_worker=4, local_size=2)
    for number, settings in enumerate(islice(space, 0, 60, 4)):
        plain = found.build(model, world_size=5, batch_per_worker=4, settings=settings)
        if number % 2:
            plain = accumulated(plain, 2)
        made = with_clipping(plain)
        check(made, model)
        assert parse(made.text()) == made == from_json(made.to_json())
        assert is_clipped(made)
        assert not is_clipped(plain)
        owners = {rank for op in updates(made) for rank in made.group(op.ranks)}
        have_all = all(b.layout is Layout.REPLICATED and set(made.owners(b)) == owners for b in made.bundles)
        assert (clipping_op(made) is None) is (have_all or len(owners) == 1)
        n = len(owners)
        more = 2 * (n - 1) * model.itemsize // n if clipping_op(made) else 0
        for before, after in zip(expected_bytes(plain, 1), expected_bytes(made, 1), strict=True):
            assert [b - a for a, b in zip(before, after, strict=True)] == [more * (r in owners) for r in range(5)]
        if number < 3:
            runs = [predict(made, model, cluster(5), fold_ranks=False, engine=e) for e in ("plain", "compiled")]
            assert runs[0].iteration_s == pytest.approx(runs[1].iteration_s, rel=1e-9)
            assert runs[0].bound_s <= runs[0].iteration_s * (1 + 1e-9)
            assert predict(made, model, cluster(5)).iteration_s == pytest.approx(runs[0].iteration_s, rel=1e-9)


def pulled_after_update(schedule: Schedule) -> set[tuple[str, str, int]]:
    """Ops that move parameters, with updates of these that are complete before they start, and where."""
    order, found = order_of(schedule), set()
    for i, op in enumerate(schedule.ops):
        order.add(i)
        values = op.values if isinstance(op, Transfer) else (op.value,) if isinstance(op, Collective) else ()
        for value in values:
            for j, update in enumerate(schedule.ops[:i]):
                if value.kind is ValueKind.PARAM and isinstance(update, Compute) and update.phase is Phase.UPDATE:
                    at = order.before(i, j, order.cells.gated[i] & order.cells.gated[j])
                    ranks = [order.cells.first[a] for a in bits(at)]
                    found |= {(op.name, update.name, rank) for rank in ranks if update.target == value.name}
    return found


@pytest.mark.parametrize("name", strategies.names())
def test_parameters_are_not_pulled_before_they_are_updated(name: str) -> None:
    """What is ahead of a pull by the order of its lane alone stays ahead of it."""
    model, found = toy(), strategies.get(name)
    for settings in islice(found.space(model, world_size=5, batch_per_worker=4, local_size=2), 0, 60, 4):
        plain = found.build(model, world_size=5, batch_per_worker=4, settings=settings)
        assert pulled_after_update(plain) <= pulled_after_update(with_clipping(plain))


SERVERS = with_clipping(build("parameter_server", toy(), 4, servers=2, placement="dedicated"))
EVERYWHERE = with_clipping(build("all_reduce", toy(), 3, first_bucket="1B", bucket="1B"))


def test_updates_wait_for_all_norms() -> None:
    spans = predict(SERVERS, toy(), cluster(4), fold_ranks=False).timeline.spans
    last = max(s.iteration for s in spans)
    norms = [s for s in spans if s.op.startswith("norm.") and s.iteration == last]
    mine = sorted((s for s in spans if s.op.startswith("upd.") and s.iteration == last), key=lambda s: s.start_s)
    assert len(norms) == len(mine) == len(updates(SERVERS))
    assert max(s.end_s for s in norms) < mine[0].start_s


def test_the_norm_is_one_number_and_reads_gradients_once() -> None:
    assert "clip: all_reduce norm @server nbytes=4 algorithm=ring after=norm.c1.0,norm.c1.1" in SERVERS.text()
    assert "upd.f1: update f1 @server.0 after=clip" in SERVERS.text()
    costs = OpCosts(SERVERS, toy(), lambda rank: Passes())
    for op in SERVERS.ops:
        if isinstance(op, Compute) and op.phase is Phase.NORM:
            (rank,) = SERVERS.group(op.ranks)
            assert costs.compute_s(op, rank) == NORM_PASSES * SERVERS.bundle(op.target).numel * 4


class Passes:
    """Costs of an update that are the bytes that it passes over."""

    def update_s(self, nbytes: int, passes: int) -> float:
        return float(nbytes * passes)


@pytest.mark.parametrize(
    ("schedule", "changes", "message"),
    [
        (
            SERVERS,
            {"norm.c1.1: norm c1.1 @server.1 after=red.c1.1\n": "", "after=norm.c1.0,norm.c1.1": "after=norm.c1.0"},
            r"each owner of c1\.1 takes its norm once",
        ),
        (
            SERVERS,
            {"group server 2-3": "group server 2-3\ngroup all 0-3", "norm @server nb": "norm @all nb"},
            "over all owners, ranks 2-3",
        ),
        (SERVERS, {"after=norm.c1.0,norm.c1.1": "after=norm.c1.0,norm.c2"}, r"norm of c1\.1 must be there"),
        (
            SERVERS,
            {"upd.f1: update f1 @server.0 after=clip": "upd.f1: update f1 @server.0 lane=x after=red.f1"},
            "norm",
        ),
        (SERVERS, {"norm f1 @server.0 after=red.f1": "norm f1 @server.0 lane=x"}, "needs the backward pass of f1"),
        (SERVERS, {"all_reduce norm @server nbytes=4": "all_reduce norm @server nbytes=8"}, "nbytes=8"),
        (SERVERS, {"all_reduce norm": "all_gather norm"}, "added up by an all-reduce"),
        (
            EVERYWHERE,
            {"update bucket0 @worker after=norm.bucket7": "update bucket0 @worker lane=x after=ar.bucket0"},
            "norm of bucket0 must be there",
        ),
    ],
)
def test_a_norm_that_is_not_of_all_before_the_update_is_refused(
    schedule: Schedule, changes: dict[str, str], message: str
) -> None:
    text = schedule.text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(ScheduleError, match=message):
        check(parse(text), toy())


def test_parts_that_nobody_adds_up_are_refused() -> None:
    parts = with_clipping(build("parameter_server", toy(), 4, servers=2, placement="dedicated"))
    ops = tuple(
        replace(op, after=("norm.c1.0",) if "server.0" in getattr(op, "ranks", "") else ("norm.c1.1",))
        if op.after == ("clip",)
        else op
        for op in parts.ops
        if op.name != "clip"
    )
    with pytest.raises(ScheduleError, match="must be added up over all of them"):
        check(replace(parts, ops=ops), toy())


def test_gradients_behind_an_update_cannot_be_clipped() -> None:
    text = build("local", toy(), 1).text().replace("after=bwd.f2\n", "after=upd.f2\n", 1)
    lines = text.splitlines()
    update = next(line for line in lines if line.startswith("upd.f2:"))
    lines.remove(update)
    lines.insert(next(i for i, line in enumerate(lines) if line.startswith("bwd.f1:")), update)
    with pytest.raises(InputError, match=r"bwd\.f1 makes gradients behind an update"):
        with_clipping(parse("\n".join(lines)))
