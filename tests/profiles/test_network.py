"""Network profiles: what is written reads back, what is wrong is named, and figures find their links."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, LinkKind, TokenBucket, load_cluster
from stanza_sim.profiles.blocks import BlockTime, LoopbackTimes, Profile, ProfiledModel, write_profile
from stanza_sim.profiles.network import (
    Estimate,
    Machine,
    NetworkProfile,
    PairTimes,
    Stretch,
    estimate,
    in_words,
    mismatches,
    read_either,
    read_network,
    with_network,
    write_network,
)

MBPS = 125e3
"""Bytes per second of 1 Mbit/s."""


def about(value: float, *, spread: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value - spread * abs(value), high=value + spread * abs(value))


def pair(
    sender: float = 200,
    receiver: float = 200,
    between: float | None = None,
    *,
    efficiency: float = 0.95,
    latency_s: float = 80e-6,
    overhead_s: float = 20e-6,
    burst: float = 19_000,
    burst_spread: float = 0.1,
) -> PairTimes:
    """Figures of a kind of pair; rates in Mbit/s."""
    bottleneck = min(sender, receiver, between or sender) * MBPS
    return PairTimes(
        sender_Bps=sender * MBPS,
        receiver_Bps=receiver * MBPS,
        between_Bps=None if between is None else between * MBPS,
        source=0,
        destination=1,
        messages=100,
        latency_s=about(latency_s),
        overhead_s=about(overhead_s),
        posting_s=about(300e-6),
        goodput_Bps=about(efficiency * bottleneck, spread=0.001),
        burst_bytes=about(burst, spread=burst_spread),
    )


def profile(
    *pairs: PairTimes, load: float = 0.5, loopback: LoopbackTimes | None = None, **more: object
) -> NetworkProfile:
    return NetworkProfile(
        cluster="t",
        date="2026-01-01T00:00:00Z",
        testbed=True,
        ranks=4,
        machine=Machine(
            device="cpu X", cores=2, kernel="6.1", versions={"torch": "2.13.0", "python": "3.11.7"}, load=load
        ),
        pairs=pairs,
        loopback=loopback,
        stretches=(Stretch(busy=1, factor=about(1.0)), Stretch(busy=4, factor=about(2.0))),
        hop_s=about(90e-6),
        reduce_Bps=about(8e9),
        update_Bps=about(2e9),
        **more,  # type: ignore[arg-type]
    )


def cluster(
    folder: Path, nics: str = "rate: 200Mbps, latency: 5us, overhead: 1us, efficiency: 0.9", more: str = ""
) -> Cluster:
    path = folder / "t.yaml"
    path.write_text(
        f"name: t\nhosts: [{{name: n, count: 4, cores: 2, nic: {{{nics}}}}}]\nswitches: [{{name: s}}]\n{more}"
    )
    return load_cluster(path)


def leaf_spine(folder: Path, over: int) -> Cluster:
    path = folder / "t.yaml"
    path.write_text(
        "name: t\nhosts: [{name: n, cores: 2, nic: {rate: 200Mbps, efficiency: 0.9}}]\n"
        "fabric: {kind: leaf-spine, leaves: 2, hosts_per_leaf: 2, spines: 1, latency: 3us, "
        f"oversubscription: {over}}}\n"
    )
    return load_cluster(path)


# --- files -----------------------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1), st.floats(-1e6, 1e6), st.floats(0.1, 1))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, latency_s: float, burst: float, share: float) -> None:
    path = tmp_path_factory.mktemp("p") / "n.json"
    timed = Profile(
        device="cpu X",
        host_cores=2,
        date="2026-01-01T00:00:00Z",
        precision="fp32",
        ranks_at_once=4,
        model=ProfiledModel(name="m", fingerprint="f"),
        blocks=(BlockTime(block="b", samples=1, forward_s=1, backward_s=1, backward_input_s=1, backward_weight_s=1),),
        reduce_Bps=1.0,
        update_Bps=1.0,
    )
    loopback = LoopbackTimes(latency_s=1e-5, message_core_s=2e-5, byte_core_s=1e-9, bandwidth_Bps=3e9)
    made = profile(
        pair(latency_s=latency_s, burst=burst, efficiency=share), pair(100, 200), loopback=loopback, models=(timed,)
    )
    write_network(made, path)
    assert read_network(path) == made == read_either(path)
    assert json.loads(path.read_text())["format"] == "stanza-sim-network/1"
    assert [p.name for p in path.parent.iterdir()] == ["n.json"]
    write_profile(timed, path)
    assert read_either(path) == timed


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("stanza-sim-network/1", "stanza-sim-network/9", "should be 'stanza-sim-network/1'"),
        ('"hop_s"', '"hop"', "unknown key"),
        ('"sender_Bps": 25000000.0', '"sender_Bps": 0', "pairs.0.sender_Bps"),
        ('"sender_Bps": 25000000.0', '"sender_Bps": "25Mbps"', "pairs.0.sender_Bps: is a text"),
        ('"sender_Bps": 25000000.0', '"sender_Bps": Infinity', "not JSON"),
        ('"receiver_Bps": 12500000.0', '"receiver_Bps": 25000000.0', "pairs.1: this kind of pair is given twice"),
        ('"value": 8e-05', '"value": -8e-05', "pairs.0"),
        ('"low": 7.2e-05', '"low": 1', "low is more than high"),
        ('"cores": 2', '"cores": 0', "machine.cores"),
        ('"source": 0', '"source": -1', "pairs.0.source"),
        ("}\n", "", "not JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "n.json"
    write_network(profile(pair(), pair(200, 100)), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old != "}\n" else text[:-20])
    for read in (read_network, read_either):
        with pytest.raises(InputError) as caught:
            read(path)
        assert says in str(caught.value)
        assert str(path) in str(caught.value)


@given(st.binary(max_size=40))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("p") / "n.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"n\.json"):
        read_either(path)


def test_an_unwritable_place_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_network(profile(pair()), tmp_path / "missing" / "n.json")


def test_estimates_are_medians_with_the_middle_80_percent() -> None:
    found = estimate(range(11))
    assert (found.value, found.low, found.high) == (5, 1, 9)
    assert estimate([3.0]) == Estimate(value=3, low=3, high=3)
    assert estimate([1.0, 2.0]).value == 1.5


# --- applied ---------------------------------------------------------------------------------------------------------


def test_a_star_gets_what_was_measured(tmp_path: Path) -> None:
    before = cluster(tmp_path)
    after = with_network(before, profile(pair()))
    for h, host in enumerate(after.hosts):
        assert host.nic.bandwidth_Bps == 25e6
        assert host.nic.efficiency == pytest.approx(0.95)
        assert host.nic.overhead_s == pytest.approx(20e-6)
        assert host.nic.bucket == TokenBucket(nbytes=pytest.approx(19_000 / 0.95))
        for other in range(4):
            if other != h:
                assert after.latency_s(h, other) == pytest.approx(80e-6)
    for link in after.links:
        assert link.bandwidth_Bps == pytest.approx(0.95 * 25e6)
        assert link.bucket == TokenBucket(nbytes=pytest.approx(19_000))
    assert after.wakeup_latency_s == 90e-6
    assert [link.label for link in after.links] == [link.label for link in before.links]
    assert after.placement == before.placement
    # Once more changes nothing, so a profile may be applied to what it has been applied to.
    again = with_network(after, profile(pair()))
    assert again.hosts[0].nic.efficiency == pytest.approx(after.hosts[0].nic.efficiency)
    assert again.links[0].bandwidth_Bps == pytest.approx(after.links[0].bandwidth_Bps)


def test_each_nic_gets_the_figures_of_its_rate(tmp_path: Path) -> None:
    slow = cluster(tmp_path, more="overrides: {n-3: {nic: {rate: 100Mbps}}}")
    found = profile(
        pair(200, 200, efficiency=0.95, overhead_s=20e-6, burst=20_000),
        pair(200, 100, efficiency=0.90, overhead_s=20e-6, burst=8_000),
        pair(100, 200, efficiency=0.90, overhead_s=30e-6, burst=8_000),
    )
    assert mismatches(found, slow) == []
    after = with_network(slow, found)
    fast, late = after.hosts[0].nic, after.hosts[3].nic
    assert (fast.efficiency, late.efficiency) == pytest.approx((0.95, 0.90))
    assert (fast.overhead_s, late.overhead_s) == pytest.approx((20e-6, 30e-6))
    assert after.links[6].bandwidth_Bps == after.links[7].bandwidth_Bps == pytest.approx(0.9 * 12.5e6)
    assert after.links[6].bucket == TokenBucket(nbytes=pytest.approx(8_000))


def test_another_rate_takes_the_nearest_kind_and_a_warning(tmp_path: Path) -> None:
    faster = cluster(tmp_path, "rate: 400Mbps")
    found = profile(pair(200, 200, efficiency=0.95), pair(100, 100, efficiency=0.5))
    (line,) = mismatches(found, faster)
    assert "no messages from a NIC of 400 Mbps to one of 400 Mbps: those of the nearest kind are used" in line
    after = with_network(faster, found)
    assert after.links[0].bandwidth_Bps == pytest.approx(0.95 * 50e6)
    assert after.links[0].bucket == TokenBucket(nbytes=pytest.approx(2 * 19_000))  # as long a time as before


def test_a_late_start_is_latency_and_a_burst_within_chance_is_none(tmp_path: Path) -> None:
    late = with_network(cluster(tmp_path), profile(pair(burst=-23_750)))
    assert late.latency_s(0, 1) == pytest.approx(80e-6 + 1e-3)
    assert late.links[0].bucket is None
    noisy = with_network(cluster(tmp_path), profile(pair(burst=5_000, burst_spread=1.5)))
    assert noisy.links[0].bucket is None


@pytest.mark.parametrize("over", [1, 4])
def test_what_switches_add_lies_between_them(tmp_path: Path, over: int) -> None:
    before = leaf_spine(tmp_path, over)
    far = 400 / over
    found = profile(
        pair(200, 200, efficiency=0.95, latency_s=60e-6, burst=20_000),
        pair(200, 200, far, efficiency=0.94, latency_s=90e-6, burst=9_000),
    )
    assert mismatches(found, before) == []
    after = with_network(before, found)
    assert after.latency_s(0, 1) == pytest.approx(60e-6)
    assert after.latency_s(0, 3) == pytest.approx(90e-6)
    trunks = [link for link in after.links if link.kind is LinkKind.TRUNK]
    for link in trunks:
        if over == 4:  # it limits messages, so they say what it is like
            assert link.bandwidth_Bps == pytest.approx(0.94 * 100 * MBPS)
            assert link.bucket == TokenBucket(nbytes=pytest.approx(9_000))
        else:  # no single message can fill it
            assert link.bandwidth_Bps == pytest.approx(400 * MBPS * 0.945)
            assert link.bucket is None
    if over == 4:
        assert after.hosts[0].nic.efficiency == pytest.approx(0.95)


def test_without_messages_over_switches_these_stay_as_stated(tmp_path: Path) -> None:
    before = leaf_spine(tmp_path, 4)
    found = profile(pair(200, 200, latency_s=60e-6))
    assert "over 100 Mbps between switches" in mismatches(found, before)[0]
    after = with_network(before, found)
    assert after.latency_s(0, 3) == pytest.approx(60e-6 + 2 * 3e-6)


def test_one_host_gets_its_loopback_and_wake_up(tmp_path: Path) -> None:
    loopback = LoopbackTimes(latency_s=1e-5, message_core_s=2e-5, byte_core_s=1e-9, bandwidth_Bps=3e9)
    laptop = load_cluster("laptop", nodes=4)
    after = with_network(laptop, profile(loopback=loopback))
    assert after.hosts[0].loopback.bandwidth_Bps == 3e9
    assert after.hosts[0].nic == laptop.hosts[0].nic
    assert after.wakeup_latency_s == 90e-6
    assert with_network(laptop, profile(pair())).links == laptop.links


# --- does it fit? ----------------------------------------------------------------------------------------------------


def test_another_machine_warns_in_words(tmp_path: Path) -> None:
    found = profile(pair())
    same = found.machine
    assert mismatches(found, cluster(tmp_path), machine=same, testbed=True, realtime=False) == []
    other = Machine(
        device="cuda Y", driver="12.8", cores=8, kernel="6.6", versions={"torch": "2.14.0", "numpy": "2"}, load=0.0
    )
    lines = mismatches(found, machine=other, testbed=False, realtime=True)
    assert len(lines) == 6
    for line, words in zip(
        lines,
        (
            "device cpu X, here it is cuda Y",
            "cores 2, here it is 8",
            "kernel 6.1",
            "torch 2.13.0",
            "testbed",
            "real time",
        ),
        strict=True,
    ):
        assert words in line
        assert "2026-01-01" in line


def test_a_busy_machine_is_named() -> None:
    (line,) = mismatches(profile(pair(), load=3.5))
    assert "busy machine (load 3.5 on 2 cores)" in line


def test_kinds_read_as_words() -> None:
    assert in_words(pair(100, 200, 50).kind) == (
        "from a NIC of 100 Mbps to one of 200 Mbps over 50 Mbps between switches"
    )
