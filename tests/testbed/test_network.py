"""What a cluster comes down to: wires for all links, the simulator's ways, and words about what cannot be emulated."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import rate
from stanza_sim.cluster import LinkKind, load_cluster
from stanza_sim.cluster.dilation import dilated
from stanza_sim.testbed import GOODPUT_SHARE
from stanza_sim.testbed.network import Network, check_machine, network_of
from stanza_sim.testbed.shaping import shaper_of
from tests.testbed.testbed_clusters import leaf_spine_text, load, star_text

in_one_folder = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
MBPS = 1e6 / 8


def wires_of(network: Network) -> dict[str, float]:
    """Rates by label, in Mbit/s."""
    return {wire.label: round(wire.rate_Bps / MBPS, 6) for wire in network.wires}


def test_a_star_has_both_sides_of_every_nic_at_their_own_rates(tmp_path):
    more = "overrides: {n-1: {nic: {rate: 100Mbps}}, n-2: {nic: {rate: {send: 50Mbps, receive: 80Mbps}}}}\n"
    network = network_of(load(tmp_path, star_text(more=more)))
    assert wires_of(network) == {
        "n-0 transmit side": 200,
        "n-0 receive side": 200,
        "n-1 transmit side": 100,
        "n-1 receive side": 100,
        "n-2 transmit side": 50,
        "n-2 receive side": 80,
    }
    assert network.sent_Bps == 350 * MBPS
    by_label = {wire.label: wire for wire in network.wires}
    assert by_label["n-1 transmit side"].pairs == ((1, 0), (1, 2))
    assert by_label["n-1 receive side"].pairs == ((0, 1), (2, 1))
    assert set(network.ways.values()) == {(0,)}


@in_one_folder
@given(
    leaves=st.integers(1, 4),
    each=st.integers(1, 3),
    spines=st.integers(1, 3),
    over=st.sampled_from([1, 2, 3.5]),
    routing=st.sampled_from(["shortest", "spread"]),
)
def test_flows_are_limited_as_the_cluster_limits_them(tmp_path, leaves, each, spines, over, routing):
    """Every pair crosses the wires of just the links that it uses, and a wire carries link rate / share of the pair."""
    if leaves * each == 1:
        return
    cluster = load(tmp_path, leaf_spine_text(leaves=leaves, each=each, spines=spines, over=over, routing=routing))
    network = network_of(cluster)
    links = sorted(link for wire in network.wires for link in wire.links)
    assert links == list(range(len(cluster.links)))
    share = cluster.hosts[0].nic.efficiency
    for src, way in network.ways:
        pair = src, way
        used = dict(cluster.usage(*pair)[0])
        crossed = [wire for wire in network.wires if pair in wire.pairs]
        assert sorted(link for wire in crossed for link in wire.links) == sorted(used)
        for wire in crossed:
            capacity_Bps = min(cluster.links[link].bandwidth_Bps / used[link] for link in wire.links)
            assert wire.rate_Bps * share == pytest.approx(capacity_Bps, rel=1e-12)
    trunks = [wire for wire in network.wires if wire.start.switch and wire.end.switch]
    up_Bps = sum(wire.rate_Bps for wire in trunks if wire.start.index == network.home[0])
    assert up_Bps * over == pytest.approx(each * 200 * MBPS)


def test_spines_that_flows_are_spread_over_become_one_and_a_note_says_so(tmp_path):
    network = network_of(load(tmp_path, leaf_spine_text(spines=3, routing="spread")))
    assert network.switches == ("leaf-0", "leaf-1", "3 spines")
    assert network.ways[0, 3] == (0, 2, 1)
    assert wires_of(network)["link leaf-0 to spine-0 and 2 more"] == 200
    assert any("3 spines is emulated as one" in note for note in network.notes)


def test_a_path_of_a_pair_that_is_stated_is_its_way(tmp_path):
    routing = "{kind: explicit, paths: [{from: n-0, to: n-3, via: [leaf-0, spine-0, leaf-1]}]}"
    cluster = load(tmp_path, leaf_spine_text(spines=2, routing=routing))
    names = cluster.switches
    network = network_of(cluster)
    assert [names[s] for s in network.ways[0, 3]] == ["leaf-0", "spine-0", "leaf-1"]
    assert [names[s] for s in network.ways[1, 3]] == ["leaf-0", "spine-1", "leaf-1"]


def test_the_rate_of_a_link_between_switches_gives_the_goodput_that_the_simulator_takes(tmp_path):
    cluster = load(
        tmp_path,
        "name: t\n"
        "hosts: [{name: a, cores: 2, nic: {rate: 200Mbps, efficiency: 0.956}},"
        " {name: b, cores: 2, nic: {rate: 200Mbps, efficiency: 0.956}}]\n"
        "switches: [{name: s}, {name: t}]\n"
        "links: [{from: a, to: s}, {from: b, to: t},"
        " {from: s, to: t, rate: {forward: 100Mbps, backward: 40Mbps}, efficiency: 0.956}]\n",
    )
    wires = wires_of(network_of(cluster))
    assert wires["link s to t"] == pytest.approx(100)
    assert wires["link t to s"] == pytest.approx(40)
    assert pytest.approx(0.9564, abs=1e-4) == GOODPUT_SHARE


CABLE = "links: [{from: n-0, to: n-1, rate: 1Gbps}]\n"
REFUSED = {
    "one host": (star_text(hosts=1), "a single host cannot be emulated"),
    "many hosts": (star_text(hosts=65), "65 hosts and 1 switches cannot be emulated"),
    "cable": (star_text(more=CABLE), "cables between hosts"),
    "background": (
        star_text(more="overrides: {n-0: {nic: {background: 1Mbps}}}\n"),
        "background traffic (n-0 transmit",
    ),
    "backplane": (star_text().replace("name: switch", "name: switch, backplane: 1Gbps"), "a backplane (switch)"),
    "several NICs": (star_text().replace("cores: 2", "cores: 2, nics: 2"), "n-0, which has several NICs,"),
    "nvlink": (
        star_text().replace("cores: 2", "cores: 2, devices: [A100], intra: {kind: nvlink, rate: 1GB/s}"),
        "nvlink inside n-0",
    ),
    "transport": (star_text().replace("rate:", "stream_rate: 1Mbps, rate:"), "the transport of n-0"),
    "ecmp": (leaf_spine_text(spines=2, routing="ecmp"), "ECMP over several ways"),
    "burst": (
        leaf_spine_text(spines=2, routing="spread").replace("spines: 2", "spines: 2, burst: 64KiB"),
        "their links have bursts",
    ),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_emulated_is_refused_in_words(tmp_path, text, said):
    with pytest.raises(InputError, match=r"\S") as refused:
        network_of(load(tmp_path, text))
    assert said in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(("name", "said"), [("ring", "cables"), ("torus", "cables"), ("fat-tree", "spreading")])
def test_shipped_fabrics_that_are_no_tree_of_switches_are_refused(name, said):
    with pytest.raises(InputError, match=said):
        network_of(load_cluster(name, rate_Bps=rate("100Mbps")))


def test_ecmp_without_a_choice_is_a_way_like_any_other(tmp_path):
    network = network_of(load(tmp_path, leaf_spine_text(routing="ecmp")))
    assert network.ways[0, 2] == (0, 2, 1)


def test_what_is_another_value_here_is_noted():
    notes = " ".join(network_of(load_cluster("star", rate_Bps=rate("100Mbps"))).notes)
    for text in ("latency (up to 25 us a link)", "overhead per message (up to 15 us)", "payload gets 0.956", "devices"):
        assert text in notes


def test_an_ideal_star_of_this_efficiency_needs_no_note(tmp_path):
    assert network_of(load(tmp_path, star_text())).notes == ()


def test_rates_that_the_machine_does_not_reach_are_refused(tmp_path):
    slow, busy, much, fast = (
        network_of(load(tmp_path, star_text(hosts=8, rate=rate)))
        for rate in ("500Mbps", "600Mbps", "1.1Gbps", "2.5Gbps")
    )
    assert check_machine(slow, cores=2) == ()
    assert "keep the 2 cores" in check_machine(busy, cores=2)[0]
    assert check_machine(busy, cores=4) == ()
    with pytest.raises(InputError, match=r"8\.8 Gbps together are more than the 2 cores") as refused:
        check_machine(much, cores=2)
    assert "at most 1 Gbps for each of 8 hosts" in str(refused.value)
    with pytest.raises(InputError, match=r"n-0 receive side: 2\.5 Gbps is more than a port"):
        check_machine(fast, cores=64)


def test_what_is_too_fast_may_be_dilated_and_what_is_too_slow_not_so_much(tmp_path):
    cluster = load(tmp_path, star_text(hosts=10, rate="10Gbps"))
    for dilation, least in ((1.0, 13), (4.0, 13), (12.0, 13)):
        with pytest.raises(InputError, match=rf"--dilate {least} or more"):
            check_machine(network_of(dilated(cluster, dilation)), 2, dilation)
    assert check_machine(network_of(dilated(cluster, 13.0)), 2, 13.0) != ()  # possible, but the machine is busy
    assert check_machine(network_of(dilated(cluster, 25.0)), 2, 25.0) == ()
    assert check_machine(network_of(dilated(cluster, 10_000.0)), 2, 10_000.0) == ()
    with pytest.raises(
        InputError, match=r"500 kbps is less than can be shaped here \(dilated 20000 times\)"
    ) as refused:
        check_machine(network_of(dilated(cluster, 20_000.0)), 2, 20_000.0)
    assert refused.value.hint == "at least 1 Mbps: dilate by 10000 at most"
    with pytest.raises(InputError, match="900 kbps is less than can be shaped here") as refused:
        check_machine(network_of(load(tmp_path, star_text(rate="900kbps"))), 2)
    assert refused.value.hint == "at least 1 Mbps"


def test_a_dilated_token_bucket_holds_as_many_bytes_and_has_a_slower_peak(tmp_path):
    text = star_text(rate="1Gbps").replace("efficiency: 0.956", "burst: 64KiB, peak: 2Gbps")
    (wire, *_) = network_of(dilated(load(tmp_path, text), 10.0)).wires
    shaper = shaper_of(wire.rate_Bps, wire.bucket)
    assert (shaper.rate_bps, shaper.burst_bytes, shaper.peak_bps) == (100_000_000, 65536, 200_000_000)


def test_trunks_of_a_cluster_keep_their_names(tmp_path):
    cluster = load(tmp_path, leaf_spine_text())
    labels = {link.label for link in cluster.links if link.kind is LinkKind.TRUNK}
    assert labels <= {wire.label for wire in network_of(cluster).wires}
