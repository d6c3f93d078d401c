"""The commands: a golden of each kind, and packets that find their way by them as by the simulator's routes."""

import re
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.base.units import rate
from stanza_sim.cluster import Cluster, TokenBucket, load_cluster
from stanza_sim.testbed.network import network_of
from stanza_sim.testbed.plan import INTERFACE, CommandPlan, make_plan, prefix_of
from stanza_sim.testbed.shaping import QUANTUM_BYTES, shape_lines, shaper_of
from stanza_sim.testbed.steps import Tool
from tests.testbed.testbed_clusters import leaf_spine_text, load, star_text

HERE = Path(__file__).parent
EXPLICIT = "{kind: explicit, paths: [{from: n-0, to: n-3, via: [leaf-0, spine-0, leaf-1]}]}"


def plan_of(cluster: Cluster) -> CommandPlan:
    return make_plan(network_of(cluster), "stz-test")


def printed(plan: CommandPlan) -> str:
    return "".join(f"[{s.tool} in {s.namespace}]\n" + "".join(f"{line}\n" for line in s.lines) for s in plan.steps)


@pytest.mark.parametrize(
    ("golden", "text"),
    [
        ("golden_star.txt", star_text(hosts=2, more="overrides: {n-1: {nic: {rate: 50Mbps}}}\n")),
        ("golden_leaf_spine.txt", leaf_spine_text(each=1, spines=2)),
    ],
)
def test_commands(tmp_path, golden, text):
    assert printed(plan_of(load(tmp_path, text))) == (HERE / golden).read_text()


def lines(plan: CommandPlan, tool: Tool, namespace: str) -> list[str]:
    return [line for s in plan.steps if (s.tool, s.namespace) == (tool, namespace) for line in s.lines]


def follow(plan: CommandPlan, src: int, dst: int) -> list[str]:
    """Return the ports that a packet leaves by, as routers that obey the plan's commands would choose them."""
    links = {}
    for step in plan.steps:
        for line in step.lines:
            if made := re.fullmatch(r"link add (\S+) .* type veth peer name (\S+) .* netns (\S+)", line):
                links[step.namespace, made[1]] = made[3], made[2]
                links[made[3], made[2]] = step.namespace, made[1]
    source, target = plan.addresses[src], plan.addresses[dst]
    namespace, device, taken = plan.namespaces[src], INTERFACE, []
    while True:
        taken.append(f"{namespace.removeprefix('stz-test-')}/{device}")
        namespace, _ = links[namespace, device]
        if namespace in plan.namespaces:
            assert namespace == plan.namespaces[dst]
            return taken
        found = lines(plan, Tool.IP, namespace)
        rules = (re.fullmatch(rf"rule add from {source}/32 to {target}/32 table (\d+) .*", line) for line in found)
        table = next((rule[1] for rule in rules if rule), None)
        way = rf"route add {target}/32 (?:via \S+ )?dev (\S+) (?:scope link|onlink)(?: table (\d+))?"
        routes = (re.fullmatch(way, line) for line in found)
        (device,) = [route[1] for route in routes if route and route[2] == table]
        assert len(taken) < 10


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    leaves=st.integers(2, 3),
    each=st.integers(1, 3),
    spines=st.integers(1, 3),
    routing=st.sampled_from(["shortest", "spread", EXPLICIT]),
)
def test_packets_take_the_ways_of_the_network_and_wires_lead_there(tmp_path, leaves, each, spines, routing):
    if routing == EXPLICIT and each != 2:
        return
    plan = plan_of(load(tmp_path, leaf_spine_text(leaves=leaves, each=each, spines=spines, routing=routing)))
    for pair, way in plan.network.ways.items():
        src, dst = pair
        hops = [f"s{a}/s{b}" for a, b in pairwise(way)]
        taken = follow(plan, src, dst)
        assert taken == [f"h{src}/e0", *hops, f"s{way[-1]}/h{dst}"]
        shaped = {f"{s.namespace.removeprefix('stz-test-')}/{s.device}" for s in plan.shaped if pair in s.wire.pairs}
        assert shaped == set(taken)


def test_packets_take_their_ways_in_a_fat_tree(tmp_path):
    hosts = "name: t\nhosts: [{name: n, cores: 2, nic: {rate: 100Mbps}}]\n"
    text = f"{hosts}fabric: {{kind: fat-tree, k: 4}}\nrouting: shortest\n"
    plan = plan_of(load(tmp_path, text))
    for (src, dst), way in plan.network.ways.items():
        assert len(follow(plan, src, dst)) == len(way) + 1


@pytest.mark.parametrize("name", ["star", "leaf-spine", "ec2-p3-10"])
def test_every_direction_is_shaped_to_its_rate_with_a_class_for_each_pair(name):
    plan = plan_of(load_cluster(name, rate_Bps=rate("200Mbps")))
    for one in plan.shaped:
        found = [line for line in lines(plan, Tool.TC, one.namespace) if f" dev {one.device} " in line]
        (root,) = (line for line in found if " classid 1:1 " in line)
        rate_bps = round(one.wire.rate_Bps * 8)
        assert f" rate {rate_bps}bit " in root
        assert f" ceil {rate_bps}bit " in root
        own = [int(m[1]) for line in found if (m := re.search(r" parent 1:1 classid \S+ htb rate (\d+)bit", line))]
        assert len(own) == 1 + len(one.wire.pairs)
        assert sum(own) <= rate_bps
        matches = re.findall(r"match ip src (\S+)/32 match ip dst (\S+)/32 flowid (\S+)", "\n".join(found))
        addresses = [(plan.addresses[a], plan.addresses[b]) for a, b in one.wire.pairs]
        assert [(a, b) for a, b, _ in matches] == addresses
        assert len({flow for _, _, flow in matches}) == len(addresses)


def test_nothing_is_made_outside_of_own_namespaces():
    plan = plan_of(load_cluster("leaf-spine", rate_Bps=rate("100Mbps")))
    own = {*plan.namespaces, *plan.switches}
    outside = [line for step in plan.steps if step.namespace is None for line in step.lines]
    assert outside == [f"netns add {name}" for name in (*plan.namespaces, *plan.switches)]
    assert {step.namespace for step in plan.steps} - {None} == own
    peers = re.findall(r" netns (\S+)", printed(plan))
    assert set(peers) <= own
    assert all(name.startswith("stz-test-") for name in own)


def test_addresses_of_hosts_and_ports_are_all_different():
    plan = plan_of(load_cluster("star", nodes=64, rate_Bps=rate("10Mbps")))
    assert len(set(plan.addresses)) == 64
    assert all(ip_address(a) in ip_network("10.77.0.0/24") for a in plan.addresses)
    macs = re.findall(r" address (\S+) mtu", printed(plan))
    assert len(set(macs)) == len(macs) == 128


def test_testbeds_of_other_names_and_users_have_other_prefixes():
    names = [prefix_of("a", 0), prefix_of("b", 0), prefix_of("a", 1000)]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"stz-[0-9a-f]{8}", name) for name in names)
    assert prefix_of("a", 0) == names[0]


def test_a_plan_that_differs_has_another_digest(tmp_path):
    one, same, other = (plan_of(load(tmp_path, star_text(rate=r))) for r in ("100Mbps", "100Mbps", "101Mbps"))
    assert one.digest() == same.digest() != other.digest()


@given(st.floats(1e5, 2e9))
def test_sizes_of_packets_and_bursts_fit_the_rate(rate_Bps):
    shaper = shaper_of(rate_Bps)
    assert 3_000 < shaper.packet_bytes < shaper.burst_bytes
    assert shaper.packet_bytes <= 32_000 < QUANTUM_BYTES
    assert shaper.burst_bytes >= 0.25e-3 * rate_Bps
    assert shaper.rate_bps == round(rate_Bps * 8)


@pytest.mark.parametrize(
    ("mbit", "packet", "burst"), [(100, 16_000, 18_000), (500, 32_000, 34_000), (1000, 32_000, 64_000)]
)
def test_sizes_are_those_that_were_measured_to_be_best(mbit, packet, burst):
    shaper = shaper_of(mbit * 1e6 / 8)
    assert (shaper.packet_bytes, shaper.burst_bytes) == (packet, burst)


def test_a_burst_that_the_topology_states_is_that_of_the_shaper():
    slow = shaper_of(25e6, TokenBucket(nbytes=100_000))
    assert (slow.burst_bytes, slow.peak_bps) == (100_000, None)
    peaked = shaper_of(25e6, TokenBucket(nbytes=100_000, peak_Bps=50e6))
    root = next(line for line in shape_lines("e0", peaked, [("1.1.1.1", "1.1.1.2")]) if "classid 1:1 " in line)
    assert "rate 200000000bit burst 100000 ceil 400000000bit cburst 1600" in root
