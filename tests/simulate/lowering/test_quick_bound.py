"""The quick bound is never above the exact one, and near it where there is nothing that it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Intra, IntraKind, Nic, PcieTree, Transport, star
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.lowering.quick_bound import quick_bound_s
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, ZERO, build, cluster, predict
from tests.simulate.lowering.test_fold import CLUSTERS, MODEL, STRATEGIES


def quick(schedule: Schedule, on: Cluster) -> float:
    made = {h.device_speed: SOME.at_speed(h.device_speed) for h in on.hosts}
    return quick_bound_s(schedule, MODEL, on, lambda rank: made[on.host_of(rank).device_speed])


def not_above(schedule: Schedule, on: Cluster) -> float:
    """Check it, and that the exact bound holds; return the rough one's share of the exact one."""
    found = predict(schedule, MODEL, on)
    bound = quick(schedule, on)
    assert 0 < bound <= found.bound_s * (1 + 1e-9)
    assert bound <= found.iteration_s * (1 + 1e-9)
    return bound / found.bound_s


@settings(max_examples=60)
@given(st.sampled_from(sorted(STRATEGIES)), st.sampled_from(sorted(CLUSTERS)), st.integers(2, 6))
def test_of_every_strategy(which: str, where: str, world_size: int) -> None:
    name, given_settings = STRATEGIES[which]
    need = 2 * max(int(str(given_settings.get("fc_workers", 0))), 1)
    if world_size < max(need, 1 + int(str(given_settings.get("servers", 1)))):
        world_size = 6
    not_above(build(name, MODEL, world_size, **given_settings), CLUSTERS[where](world_size))


@settings(max_examples=60)
@given(st.data())
def test_of_any_schedule(data: st.DataObject) -> None:
    schedule = data.draw(legal_schedules(MODEL))
    not_above(schedule, CLUSTERS[data.draw(st.sampled_from(sorted(CLUSTERS)))](schedule.world_size))


@pytest.mark.parametrize("which", ["one server", "co-located, cut", "two servers, slices", "all-reduce", "Stanza"])
def test_where_links_are_busiest_it_is_the_exact_bound(which: str) -> None:
    name, given_settings = STRATEGIES[which]
    assert not_above(build(name, MODEL, 5, **given_settings), cluster(5)) == pytest.approx(1.0)


@pytest.mark.parametrize("which", ["one server", "co-located, cut", "two servers, slices"])
def test_where_processes_are_busiest_it_is_the_exact_bound(which: str) -> None:
    name, given_settings = STRATEGIES[which]
    slow = Nic(bandwidth_Bps=1e6, transport=Transport(process_Bps=1e5))
    assert not_above(build(name, MODEL, 5, **given_settings), cluster(5, nic=slow)) == pytest.approx(1.0)


@pytest.mark.parametrize("which", ["one server", "two servers, cut", "co-located, cut", "all-reduce", "Stanza"])
def test_of_hosts_with_trees(which: str) -> None:
    name, given_settings = STRATEGIES[which]
    tree = PcieTree(switches=((0, 1), (2, 3)), switch_Bps=5e5, sockets=2, memory_Bps=9e5)
    intra = Intra(kind=IntraKind.PCIE, bandwidth_Bps=1e6, tree=tree)
    hosts = cluster(2, ranks_per_host=4).hosts
    for count in (1, 2):
        on = star(replace(host, devices=("K80",) * 4, intra=intra) for host in hosts[:count])
        not_above(build(name, MODEL, 4 * count, **given_settings), on)


def test_without_a_network_there_is_computing() -> None:
    schedule = build("local", MODEL, 2)
    on = cluster(2)
    assert quick(schedule, on) > 0
    assert quick_bound_s(schedule, MODEL, on, lambda rank: ZERO) == 0.0
