"""The bottleneck is what the bound measures: over random schedules, and where a server's lane is it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Nic
from stanza_sim.schedule import Compute, Schedule
from stanza_sim.simulate import Prediction
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, build, cluster, predict
from tests.simulate.lowering.test_fold import CLUSTERS, MODEL, STRATEGIES

NAMED = re.compile(r"(?P<label>.+?)(?: \((?P<roles>[^()]*)\))?, (?P<share>\d+)% busy")
LANE = re.compile(r"(?P<host>\S+) (?P<lane>\S+) lane(?: of rank (?P<rank>\d+))?")


def is_what_the_bound_measures(schedule: Schedule, found: Prediction) -> None:
    named = NAMED.fullmatch(found.bottleneck)
    assert named is not None, found.bottleneck
    assert int(named["share"]) == pytest.approx(100 * found.bound_s / found.iteration_s, abs=0.51)
    busiest = max(found.utilisation.values(), default=0.0) * found.iteration_s
    if named["label"] in found.utilisation:
        assert found.utilisation[named["label"]] * found.iteration_s == pytest.approx(found.bound_s, rel=1e-5)
        return
    lane = LANE.fullmatch(named["label"])
    assert lane is not None, found.bottleneck
    assert lane["lane"] in {op.lane for op in schedule.ops if isinstance(op, Compute)}
    assert busiest < found.bound_s * (1 - 1e-7), "a resource is as busy, and would be named"


@settings(max_examples=40)
@given(st.data())
def test_of_any_schedule(data: st.DataObject) -> None:
    schedule = data.draw(legal_schedules(MODEL))
    on = CLUSTERS[data.draw(st.sampled_from(sorted(CLUSTERS)))](schedule.world_size)
    is_what_the_bound_measures(schedule, predict(schedule, MODEL, on))


@pytest.mark.parametrize("which", sorted(STRATEGIES))
def test_of_every_strategy(which: str) -> None:
    name, given_settings = STRATEGIES[which]
    schedule = build(name, MODEL, 6, **given_settings)
    where = sorted(CLUSTERS)[sorted(STRATEGIES).index(which) % len(CLUSTERS)]
    is_what_the_bound_measures(schedule, predict(schedule, MODEL, CLUSTERS[where](6)))


def test_a_servers_lane_is_named() -> None:
    """Sums and updates of one server, on one of eight cores, are the bound; no resource is as busy."""
    schedule = build("parameter_server", MODEL, 6)
    fast, slow = Nic(bandwidth_Bps=1e12), replace(SOME, update_byte_s=1e-6)
    found = predict(schedule, MODEL, cluster(6, nic=fast, on_cores=True, cores=8), slow)
    assert re.fullmatch(r"h5 main lane \(server\), \d+% busy", found.bottleneck), found.bottleneck
