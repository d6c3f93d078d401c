"""The price of a computation can be asked by itself: nothing is folded, placed or lowered for it."""

from __future__ import annotations

import pytest

from stanza_sim.schedule import Compute, Phase
from stanza_sim.simulate.lowering.compute_times import compute_seconds
from stanza_sim.simulate.lowering.lower import Lowering
from stanza_sim.simulate.lowering.op_costs import OpCosts
from stanza_sim.simulate.lowering.quick_bound import quick_bound_s
from stanza_sim.simulate.lowering.resources import Resources
from tests.schedule.toys import SOME, build, cluster, toy

MODEL = toy(50)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("something was lowered to ask for a price")


def test_a_price_needs_nothing_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of 4 samples each and two servers, each of which owns half of every bundle."""
    schedule = build("parameter_server", MODEL, 4, servers=2, assignment="cut")
    for part in (Lowering, Resources):
        monkeypatch.setattr(part, "__init__", refuse)
    costs = OpCosts(schedule, MODEL, lambda rank: SOME)
    worker, server = ({op.phase: op for op in schedule.for_rank(r) if isinstance(op, Compute)} for r in (0, 2))
    forward, update, reduce = worker[Phase.FORWARD], server[Phase.UPDATE], server[Phase.REDUCE]
    assert costs.compute_s(forward, 0) == SOME.forward_s(MODEL.block(forward.target), 4)
    owned = -(-schedule.bundle(update.target).numel // 2) * schedule.itemsize
    assert costs.compute_s(update, 2) == SOME.update_s(owned)
    owned = -(-schedule.bundle(reduce.target).numel // 2) * schedule.itemsize
    assert costs.compute_s(reduce, 2) == SOME.reduce_s(owned, 2)
    seconds = compute_seconds(schedule, MODEL, lambda rank: SOME)
    assert seconds[2][update.name] == costs.compute_s(update, 2)
    assert quick_bound_s(schedule, MODEL, cluster(4), lambda rank: SOME) > 0
