"""`on`: which ranks serve or train the FC part."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from stanza_sim import strategies
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.cluster import Cluster, Host, Nic, Traffic, device, star
from stanza_sim.cluster.device import DeviceSpec
from stanza_sim.experiment.slow_places import slow_places
from stanza_sim.schedule import Schedule, check
from stanza_sim.strategies._shared.places import kinds_of_places, worth_trying
from stanza_sim.studies.plan.choices import as_yaml, choices
from tests.schedule.toys import toy

SLOW, FAST = Nic(bandwidth_Bps=1e8), Nic(bandwidth_Bps=1e9)


def host(name: str, nic: Nic = FAST, device: str = "V100", count: int = 1) -> Host:
    return Host(name=name, cores=8, nic=nic, devices=(device,) * count)


MIXED = star([host("a"), host("b", device="K80"), host("c"), host("d", SLOW), host("e", device="K80")])
PAIRS = star([host("a", count=2), host("b", count=2), host("c", SLOW, count=2)])


def build(name: str, there: Cluster = MIXED, /, **settings: object) -> Schedule:
    made = strategies.build(
        name,
        toy(),
        world_size=there.world_size,
        batch_per_worker=4,
        settings=strategies.get(name).Settings.model_validate(settings),
        cluster=there,
    )
    check(made, toy())
    return made


def ranks(schedule: Schedule, group: str) -> list[int]:
    return list(schedule.group(group))


@pytest.mark.parametrize(
    ("settings", "serve"),
    [
        ({"on": "b"}, [1]),
        ({"on": ["c", "a"]}, [0, 2]),  # as many as there are places
        ({"on": "fastest"}, [4]),  # networks alike: the last of them, whatever it computes on
        ({"on": "fastest", "servers": 4, "assignment": "cut"}, [0, 1, 2, 4]),
        ({"on": ["d"], "placement": "colocated"}, [3]),
        ({"on": ["a/0"], "assignment": "sliced"}, [0]),
        ({}, [4]),
    ],
)
def test_servers(settings: dict[str, object], serve: list[int]) -> None:
    made = build("parameter_server", **settings)
    assert ranks(made, "server") == serve
    everyone = list(range(5))
    train = everyone if settings.get("placement") == "colocated" else [r for r in everyone if r not in serve]
    assert ranks(made, "worker") == train


@pytest.mark.parametrize(
    ("settings", "fc"),
    [
        ({"on": "fastest"}, [2]),  # of the fast networks the fastest device
        ({"on": "fastest", "fc_workers": 2}, [0, 2]),
        ({"on": ["b", "a"]}, [0, 1]),
        ({"on": ["b", "a"], "fc_parallel": "model", "microbatches": 2}, [0, 1]),
        ({"on": ["e", "b"], "placement": "colocated", "fc_compute": "arrival"}, [1, 4]),
        ({"on": "d", "conv_exchange": "parameter_server"}, [3]),
    ],
)
def test_fc_workers(settings: dict[str, object], fc: list[int]) -> None:
    made = build("stanza", **settings)
    assert ranks(made, "fc_worker") == fc
    if settings.get("placement") != "colocated":
        assert ranks(made, "conv_worker") == [r for r in range(5) if r not in fc]


def test_hosts_of_several_ranks_take_turns() -> None:
    assert ranks(build("parameter_server", PAIRS, on=["a", "b"], servers=3), "server") == [0, 1, 2]
    assert ranks(build("parameter_server", PAIRS, on=["b", "a"], servers=3), "server") == [0, 2, 3]
    assert ranks(build("parameter_server", PAIRS, on=["a/1"]), "server") == [1]
    assert ranks(build("parameter_server", PAIRS, on=["a"], servers=2, local=2), "server") == [0, 1]
    with pytest.raises(InputError, match="ranks 1, 2 would have to share a host"):
        build("parameter_server", PAIRS, on=["a"], local=2)


def test_background_traffic_makes_a_network_slow() -> None:
    busy = replace(FAST, background=Traffic(bandwidth_Bps=9.5e8))
    hosts = star([host("a"), host("b", SLOW), host("c", busy)])
    assert ranks(build("parameter_server", hosts, on="fastest"), "server") == [0]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"on": ["f1"]}, "star has no host 'f1'", "its hosts are a, b, c, d, e"),
        ({"on": ["a", "a"]}, "names a rank twice", "name each place once"),
        ({"on": ["a", "a/0"]}, "names a rank twice", "name each place once"),
        ({"on": ["a", "b"], "servers": 1}, "2 places for 1", "name 1, or set their number to 2 or more"),
        ({"on": ["a"], "servers": 2}, "there is 1 rank at a, and 2 are asked for", "name more places"),
        ({"on": ["a/cpu"]}, "there is no rank on the cores of a", "name a alone"),
        ({"on": ["a/3"]}, "there is no rank on device 3 of a", "name a alone"),
        ({"on": ["a", "b", "c", "d", "e"]}, "leave 0 workers", "use at most 4 servers"),
    ],
)
def test_what_is_refused(settings: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        build("parameter_server", **settings)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_without_a_cluster_no_place_is_known() -> None:
    settings = strategies.get("stanza").Settings.model_validate({"on": "fastest"})
    with pytest.raises(InputError, match="stanza: on: names hosts, and this schedule is built for no cluster"):
        strategies.build("stanza", toy(), world_size=4, batch_per_worker=4, settings=settings)


def test_slow_places_are_pointed_out() -> None:
    def told(name: str, there: Cluster = MIXED, /, **settings: object) -> tuple[str, ...]:
        return slow_places(build(name, there, **settings), there, Precision.FP32)

    slow = "but a's network is faster (8 Gbps, not 800 Mbps)"
    assert told("parameter_server", on="d") == (f"the server is on d, {slow}; `on` chooses other places",)
    assert told("parameter_server", on=["a", "d"]) == (f"a server is on d, {slow}; `on` chooses other places",)
    assert told("parameter_server", placement="colocated") == (f"d serves like all others, {slow}",)
    assert told("stanza") == ("the FC worker is on e, but a's V100 is faster than its K80; `on` chooses other places",)
    assert told("stanza", on="fastest") == told("all_reduce") == ()
    assert told("parameter_server", star([host("a"), host("b"), host("c")])) == ()


def test_the_fastest_device_is_so_at_the_precision() -> None:
    """An RTX3090 has the higher peak in fp32, an A100 in all others."""
    there = star([host("a", device="A100"), host("b", device="RTX3090"), host("c", device="RTX3090")])
    settings = strategies.get("stanza").Settings.model_validate({"on": "fastest"})
    found = {}
    for precision in Precision:
        made = strategies.build(
            "stanza", toy(), world_size=3, batch_per_worker=4, settings=settings, cluster=there, precision=precision
        )
        found[precision] = ranks(made, "fc_worker")
        assert slow_places(made, there, precision) == ()
    assert found == {Precision.FP32: [2], Precision.TF32: [0], Precision.BF16: [0], Precision.FP16: [0]}


def test_plan_tries_places_where_hosts_differ() -> None:
    def tried(on: Cluster) -> list[str]:
        found, _ = choices(toy(), world_size=5, batch_per_worker=4, local_size=1, rows=(), cluster=on)
        return [as_yaml(choice) for choice in found]

    alike = star([host(name) for name in "abcde"])
    assert not any(re.search(r"\bon: ", one) for one in tried(alike))
    found = tried(MIXED)
    assert "{strategy: stanza, settings: {on: fastest}}" in found
    assert "{strategy: stanza, settings: {on: [d]}}" in found
    assert any("servers: 2" in one and "on: [a, c]" in one for one in found)
    assert list(worth_trying(kinds_of_places(MIXED), 2)) == ["fastest", ("a", "c"), ("b", "e")]


def test_hosts_that_are_alike_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand hosts, each with hundreds of plans, kept `plan` from beginning."""
    looked: list[str] = []

    def load_device(name: str) -> DeviceSpec:
        looked.append(name)
        return device.load_device(name)

    monkeypatch.setattr("stanza_sim.strategies._shared.places.load_device", load_device)
    many = star([host(f"h{i}", device="K80" if i % 2 else "V100") for i in range(200)])
    choices(toy(), world_size=200, batch_per_worker=4, local_size=1, rows=(), cluster=many)
    build("stanza", many, on="fastest")
    assert len(looked) <= 4
