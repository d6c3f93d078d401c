"""Inside a host: PCIe trees, host memory, ranks on its cores; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster
from stanza_sim.model import zoo
from stanza_sim.simulate import simulate
from stanza_sim.simulate.costs import costs_for
from stanza_sim.simulate.one_collective import OneCollective
from tests.cluster.fabric_files import load_text
from tests.schedule.toys import SOME, ZERO, build, predict
from tests.simulate.lowering.test_fold import same
from tests.simulate.messages import MODEL

TREE = "per_switch: 2, switch_rate: 4GB/s, sockets: 2, root_rate: 7GB/s, socket_rate: 3GB/s, host_memory_rate: 5GB/s"
RATE, UPLINK, ROOT, SOCKET, MEMORY = 8e9, 4e9, 7e9, 3e9, 5e9


def text(intra: str, *, hosts: int = 1, devices: int = 8, host: str = "", more: str = "") -> str:
    names = ", ".join(["K80"] * devices)
    nic = "nic: {rate: 100Gbps}, " if hosts > 1 else ""
    return (
        f"name: t\nhosts: [{{name: n, count: {hosts}, cores: 8, {nic}devices: [{names}],\n  intra: {intra}{host}}}]\n"
        f"switches: [{{name: s}}]\n{more}"
    )


def loaded(folder: Path, keys: str = TREE, **given: object) -> Cluster:
    return load_text(folder, text(f"{{kind: pcie, rate: 8GB/s, {keys}}}", **given))  # type: ignore[arg-type]


def used(on: Cluster, src: int | None, dst: int | None, hosts: tuple[int, int] = (0, 0)) -> dict[str, float]:
    found, _ = on.usage(*hosts, 0, src, dst)
    return {on.links[q].name.removeprefix("n-0."): share for q, share in found}


def test_traffic_under_one_switch_stays_there(tmp_path: Path) -> None:
    on = loaded(tmp_path)
    assert used(on, 0, 1) == {"device0.out": 1, "device1.in": 1}
    assert used(on, 1, 2) == {"device1.out": 1, "pcie0.up": 1, "root0": 1, "pcie1.down": 1, "device2.in": 1}


def test_traffic_between_sockets_goes_through_memory(tmp_path: Path) -> None:
    assert used(loaded(tmp_path), 3, 4) == {
        "device3.out": 1,
        "pcie1.up": 1,
        "root0": 1,
        "root1": 1,
        "socket0-1": 1,
        "memory0": 2,
        "pcie2.down": 1,
        "device4.in": 1,
    }


def test_nics_hang_at_root_complexes_or_at_switches(tmp_path: Path) -> None:
    on = loaded(tmp_path, hosts=2)
    assert used(on, 0, None, (0, 1)).items() >= {"device0.out": 1, "pcie0.up": 1, "root0": 1, "tx": 1}.items()
    assert "socket0-1" not in used(on, 0, 0, (0, 1))
    assert used(on, 7, 0, (0, 1))["socket1-0"] == 1
    at_switch = loaded(tmp_path, f"{TREE}, nics_at: switch", hosts=2)
    assert "pcie0.up" not in used(at_switch, 0, 0, (0, 1))
    assert used(at_switch, 2, 0, (0, 1))["pcie0.down"] == 1


def test_memory_is_interleaved_over_sockets(tmp_path: Path) -> None:
    on = loaded(tmp_path)
    assert used(on, 0, None) == {
        "device0.out": 1,
        "pcie0.up": 1,
        "root0": 1,
        "memory0": 0.5,
        "root1": 0.5,
        "socket0-1": 0.5,
        "memory1": 0.5,
    }
    assert used(on, None, None) == {}


def test_without_a_tree_a_switch_never_limits(tmp_path: Path) -> None:
    on = load_text(tmp_path, text("{kind: pcie, rate: 8GB/s}"))
    assert used(on, 0, 5) == {"device0.out": 1, "device5.in": 1}
    assert used(on, 0, None) == {"device0.out": 1}


@pytest.mark.parametrize(
    ("keys", "rate_Bps"),
    [
        ("per_switch: 8", RATE),
        ("per_switch: 2, switch_rate: 4GB/s", UPLINK),
        ("per_switch: 2, switch_rate: 4GB/s, sockets: 2, socket_rate: 3GB/s", SOCKET),
        ("per_switch: 2, root_rate: 7GB/s", ROOT / 4),  # four edges of the ring cross it
        ("per_switch: 2, sockets: 2, host_memory_rate: 5GB/s", MEMORY / 2),  # written and read
    ],
)
def test_a_ring_goes_at_the_rate_of_its_slowest_link(tmp_path: Path, keys: str, rate_Bps: float) -> None:
    schedule = build("all_reduce", MODEL, 8, overlap=False)
    on = loaded(tmp_path, keys)
    found = predict(schedule, MODEL, replace(on, uses_nccl=False), ZERO)
    assert found.iteration_s == pytest.approx(2 * 7 / 8 * MODEL.nbytes / rate_Bps, rel=1e-3)
    layout = OneCollective(on, range(8)).layout
    assert layout is not None
    assert layout.inside_Bps == pytest.approx(rate_Bps)  # NCCL's ring goes the same way
    assert found.bound_s == pytest.approx(found.iteration_s, rel=1e-3)


def test_hosts_with_trees_folded_are_as_unfolded(tmp_path: Path) -> None:
    on = loaded(tmp_path, hosts=2, devices=4)
    for name in ("all_reduce", "parameter_server"):
        schedule = build(name, MODEL, 8, **({"placement": "colocated"} if name == "parameter_server" else {}))
        same(predict(schedule, MODEL, on), predict(schedule, MODEL, on, fold_ranks=False))


# ---- ranks on the cores of a host with devices ----------------------------------------------------------------------


def test_servers_come_behind_the_workers_on_the_cores(tmp_path: Path) -> None:
    on = loaded(
        tmp_path, "per_switch: 1", hosts=2, devices=2, host=", reduce_rate: 5GB/s", more="cpu_ranks_per_host: 2\n"
    )
    assert [(p.host, p.device) for p in on.placement[4:]] == [(0, None), (0, None), (1, None), (1, None)]
    assert [(p.host, p.device) for p in on.placement[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    stated = loaded(
        tmp_path,
        "per_switch: 1",
        hosts=2,
        devices=2,
        host=", reduce_rate: 5GB/s",
        more="placement: [n-0, n-1, n-1/cpu]\n",
    )
    assert [(p.host, p.device) for p in stated.placement] == [(0, 0), (1, 0), (1, None)]


def test_a_server_on_the_cores_against_a_formula(tmp_path: Path) -> None:
    """W workers push and pull S over the links of their devices and host memory, which is the busiest."""
    model, workers = zoo.get("alexnet"), 4
    keys = "root_rate: 100GB/s, host_memory_rate: 5GB/s"
    on = loaded(tmp_path, keys, devices=workers, host=", reduce_rate: 5GB/s", more="cpu_ranks_per_host: 1\n")
    schedule = build("parameter_server", model, workers + 1, overlap=False)
    found = predict(schedule, model, on, ZERO)
    assert found.iteration_s == pytest.approx(2 * workers * model.nbytes / MEMORY, rel=1e-3)
    assert "reduce_rate" in costs_for(on, model).source
    costs = costs_for(on, model)(workers)
    assert costs.reduce_s(10**9, 4) == pytest.approx(4 / 5)
    assert costs.update_s(10**9) == pytest.approx(1 / 5)


def test_servers_on_cores_folded_are_as_unfolded(tmp_path: Path) -> None:
    hosts = "hosts: [{name: n, count: 3, cores: 8, devices: [K80, K80], nic: {rate: 10Gbps}, reduce_rate: 5GB/s}]"
    on = load_text(tmp_path, f"name: t\n{hosts}\nswitches: [{{name: s}}]\ncpu_ranks_per_host: 1\n")
    schedule = build("parameter_server", MODEL, 9, servers=3, assignment="cut")
    folded = predict(schedule, MODEL, on)
    assert len(folded.sent_bytes) < 9
    same(folded, predict(schedule, MODEL, on, fold_ranks=False))


def test_nvlink_hosts_state_a_host_link(tmp_path: Path) -> None:
    def on(host_link: str) -> Cluster:
        intra = f"{{kind: nvlink, rate: 100GB/s{host_link}}}"
        return load_text(tmp_path, text(intra, host=", reduce_rate: 5GB/s", more="cpu_ranks_per_host: 1\n"))

    assert used(on(", host_link: 10GB/s"), 3, None) == {"device3.host.out": 1}
    assert used(on(", host_link: 10GB/s"), None, 3) == {"device3.host.in": 1}
    assert used(on(""), 3, None) == {}
    schedule = build("parameter_server", MODEL, 9, overlap=False)
    found = predict(schedule, MODEL, on(", host_link: 10GB/s"), ZERO)
    assert found.iteration_s == pytest.approx(2 * MODEL.nbytes / 10e9, rel=1e-3)


def test_passes_on_the_cores_of_a_host_with_devices_are_refused(tmp_path: Path) -> None:
    on = loaded(tmp_path, "per_switch: 1", devices=2, host=", reduce_rate: 5GB/s", more="cpu_ranks_per_host: 1\n")
    with pytest.raises(InputError, match="on the cores of n-0, which has devices"):
        simulate(build("all_reduce", MODEL, 3), MODEL, on, costs_for(on, MODEL))


def test_a_host_without_devices_may_state_the_rate_too(tmp_path: Path) -> None:
    hosts = "hosts: [{name: n, count: 2, cores: 8, nic: {rate: 10Gbps}, reduce_rate: 2GB/s}]"
    on = load_text(tmp_path, f"name: t\n{hosts}\nswitches: [{{name: s}}]\n")
    costs = costs_for(on, MODEL)(0)
    assert costs.reduce_s(10**9, 3) == pytest.approx(1.5)
    assert costs.forward_s(MODEL.blocks[0], 4) > 0
    assert predict(build("all_reduce", MODEL, 2), MODEL, on, SOME).iteration_s > 0


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("per_switch: 2, switches: [[0]]", "switches and per_switch exclude each other"),
        ("switches: [[0, 1], [1]]", "device 1 is under two switches"),
        ("switches: [[0, 9]]", "there is no device 9"),
        ("switches: [[0, -1]]", "greater than or equal to 0"),
        ("switches: [[]]", "at least 1 entry"),
        ("per_switch: 0", "greater than or equal to 1"),
        ("switch_rate: 4GB/s", "switch_rate without switches"),
        ("nics_at: switch", "nics_at: switch without switches"),
        ("nics_at: leaf", "'root' or 'switch'"),
        ("socket_rate: 4GB/s", "socket_rate with one socket"),
        ("sockets: 9", "9 sockets, but fewer"),
        ("root_rate: 4", "4 has no unit"),
        ("host_memory_rate: -4GB/s", "negative"),
        ("host_link: 4GB/s", "host_link with pcie"),
    ],
)
def test_bad_trees(tmp_path: Path, keys: str, says: str) -> None:
    with pytest.raises(InputError, match=r"t\.yaml:[23]: hosts\.0\.intra") as error:
        loaded(tmp_path, keys)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("intra", "host", "more", "says"),
    [
        ("{kind: nvlink, rate: 8GB/s, per_switch: 2}", "", "", "per_switch with nvlink"),
        ("{kind: nvlink, rate: 8GB/s}", "", "cpu_ranks_per_host: 1", "which has devices"),
        ("{kind: nvlink, rate: 8GB/s}", "", "cpu_ranks_per_host: 0", "greater than or equal to 1"),
        ("{kind: nvlink, rate: 8GB/s}", ", reduce_rate: 5", "", "5 has no unit"),
        ("{kind: nvlink, rate: 8GB/s}", ", reduce_rate: -5GB/s", "", "negative"),
        ("{kind: nvlink, rate: 8GB/s}", "", "placement: [n-0, n-9/cpu]", "missing host 'n-9'"),
        ("{kind: nvlink, rate: 8GB/s}", "", "placement: [n-0]\ncpu_ranks_per_host: 1", "exclude each other"),
    ],
)
def test_bad_hosts(tmp_path: Path, intra: str, host: str, more: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load_text(tmp_path, text(intra, host=host, more=f"{more}\n"))
    assert says in str(error.value) and "t.yaml" in str(error.value)


def test_ranks_on_cores_need_devices_beside_them(tmp_path: Path) -> None:
    plain = "name: t\nhosts: [{name: n, cores: 8}]\ncpu_ranks_per_host: 1\n"
    with pytest.raises(InputError, match="no host has devices"):
        load_text(tmp_path, plain)
