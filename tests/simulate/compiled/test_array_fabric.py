"""The fabric on arrays gives what the one in plain Python gives, on the same unfolded ranks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.schedule import Schedule
from stanza_sim.simulate import Prediction
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, build, predict
from tests.simulate.lowering.test_fold import CLUSTERS, MODEL, STRATEGIES

pytest.importorskip("numba")

# In one worker, which compiles what others then find in numba's cache: in a new checkout that takes half a minute.
pytestmark = pytest.mark.xdist_group("compiled")


def both(*arguments: object, **options: object) -> tuple[Prediction, Prediction]:
    found = []
    for engine in ("plain", "compiled"):
        found.append(predict(*arguments, fold_ranks=False, engine=engine, **options))
    return found[0], found[1]


def same(plain: Prediction, arrays: Prediction) -> None:
    assert arrays.steady == plain.steady
    assert arrays.iteration_s == pytest.approx(plain.iteration_s, rel=1e-9, abs=1e-15)
    assert arrays.exposed_comm_s == pytest.approx(plain.exposed_comm_s, rel=1e-6, abs=1e-12)
    assert arrays.bound_s == pytest.approx(plain.bound_s, rel=1e-9, abs=1e-15)
    assert arrays.sent_bytes == plain.sent_bytes
    assert arrays.received_bytes == plain.received_bytes
    assert arrays.bottleneck == plain.bottleneck
    first = {(s.op, s.rank, s.iteration, s.side): s for s in plain.timeline.spans if s.iteration < 2}
    second = {(s.op, s.rank, s.iteration, s.side): s for s in arrays.timeline.spans if s.iteration < 2}
    assert first.keys() == second.keys()
    for key, span in first.items():
        assert second[key].start_s == pytest.approx(span.start_s, rel=1e-9, abs=1e-12), key
        assert second[key].end_s == pytest.approx(span.end_s, rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("where", list(CLUSTERS))
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_same_as_plain(name: str, where: str) -> None:
    strategy, options = STRATEGIES[name]
    schedule = build(strategy, MODEL, 5, **options)
    same(*both(schedule, MODEL, CLUSTERS[where](5), SOME))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_same_on_random_schedules(data: st.DataObject) -> None:
    schedule: Schedule = data.draw(legal_schedules(MODEL))
    where = data.draw(st.sampled_from(list(CLUSTERS)))
    same(*both(schedule, MODEL, CLUSTERS[where](schedule.world_size), SOME))
