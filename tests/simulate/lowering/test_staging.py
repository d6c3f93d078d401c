"""Staging: messages and collectives of devices whose data is copied through their host's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.cluster import Cluster, Intra, IntraKind, Nic, Staging, load_cluster, star
from stanza_sim.schedule import Collective
from stanza_sim.simulate import Collectives, Prediction, simulate
from stanza_sim.timeline.spans import Span
from tests.schedule.toys import SOME, ZERO, Costs, build, cluster
from tests.simulate.messages import CHAIN, MODEL, ONE, changed_star, refused, run

RATE, COPY, LATE, WIRE = 1e6, 4e6, 1e-3, 1e-4
SLOW = Costs(flops_s=1e-3)  # so that messages of two iterations do not meet
STAGING = Staging(bandwidth_Bps=COPY, latency_s=LATE)


def staged(on: Cluster, *hosts: int) -> Cluster:
    """The cluster with staging on some hosts; on all if none is named."""
    chosen = hosts or range(len(on.hosts))
    return replace(on, hosts=tuple(replace(h, staging=STAGING) if i in chosen else h for i, h in enumerate(on.hosts)))


def wires(ranks: int, **more: object) -> Cluster:
    return cluster(ranks, nic=Nic(bandwidth_Bps=RATE, latency_s=WIRE), **more)


def spans(p: Prediction, op: str, iteration: int) -> dict[str, Span]:
    return {s.side: s for s in p.timeline.spans if s.op == op and s.iteration == iteration}


@pytest.mark.parametrize("hosts", [(), (0,), (1,), (0, 1)])
def test_one_message_is_copied_sent_and_copied(hosts: tuple[int, ...]) -> None:
    n = 32
    on = wires(2)
    p = run(CHAIN, staged(on, *hosts) if hosts else on, SLOW)
    copy_s, send_s = LATE + n / COPY, 2 * WIRE + n / RATE
    for i in range(3):
        found, (ready,) = spans(p, "act", i), spans(p, "fc2", i).values()
        assert found["sent"].start_s == pytest.approx(ready.end_s)
        assert found["sent"].end_s == pytest.approx(ready.end_s + (0 in hosts) * copy_s + send_s)
        assert found["recv"].end_s == pytest.approx(ready.end_s + len(hosts) * copy_s + send_s)


def test_copies_of_one_device_share_its_rate() -> None:
    """A server's k pulls are copied out together, and the pushes in, each at 1/k of the rate."""
    k = 4
    schedule = build("parameter_server", ONE, k + 1, servers=1, overlap=False)
    fast = replace(STAGING, latency_s=0.0)
    # Wires that take no time, and only the server staged: an iteration is k copies in and k copies out.
    on = cluster(k + 1, nic=Nic(bandwidth_Bps=1e15))
    hosts = (*on.hosts[:-1], replace(on.hosts[-1], staging=fast))
    found = simulate(schedule, ONE, replace(on, hosts=hosts), lambda r: ZERO)
    nbytes = sum(b.numel for b in schedule.bundles) * 4
    assert found.iteration_s == pytest.approx(2 * k * nbytes / COPY, rel=1e-6)
    assert found.bound_s == pytest.approx(k * nbytes / COPY, rel=1e-6)
    assert found.utilisation[f"h{k} gpu staging in"] == pytest.approx(0.5, rel=1e-6)
    assert found.bottleneck.startswith(f"h{k} gpu staging ")


@pytest.mark.parametrize("strategy", ["parameter_server", "all_reduce", "stanza"])
def test_folded_or_not(strategy: str) -> None:
    schedule = build(strategy, MODEL, 6)
    folded = run(schedule, staged(wires(6)), SOME)
    whole = run(schedule, staged(wires(6)), SOME, fold_ranks=False)
    assert len(folded.sent_bytes) < len(whole.sent_bytes) == 6
    assert whole.iteration_s == pytest.approx(folded.iteration_s, rel=1e-6)
    assert whole.bound_s == pytest.approx(folded.bound_s, rel=1e-6)
    plain = run(schedule, wires(6), SOME)
    assert folded.iteration_s > plain.iteration_s + 2 * LATE
    assert folded.sent_bytes == plain.sent_bytes
    some = run(schedule, staged(wires(6), 2), SOME)  # a host that differs is told apart
    assert plain.iteration_s < some.iteration_s <= folded.iteration_s * (1 + 1e-9)
    assert len(some.sent_bytes) > len(folded.sent_bytes)


@pytest.mark.parametrize("how", list(Collectives))
def test_a_collective_is_copied_as_a_whole(how: Collectives) -> None:
    schedule = build("all_reduce", MODEL, 4, overlap=False)
    (op,) = [op for op in schedule.ops if isinstance(op, Collective)]
    plain = run(schedule, wires(4), collectives=how).iteration_s
    found = run(schedule, staged(wires(4)), collectives=how).iteration_s
    assert found == pytest.approx(plain + 2 * (LATE + op.nbytes / COPY), rel=1e-6)


def test_own_steps_copy_what_they_move() -> None:
    """A ring of 4 sends and receives 3/2 of what is reduced."""
    schedule = build("all_reduce", MODEL, 4, overlap=False, algorithm="ring")
    (op,) = [op for op in schedule.ops if isinstance(op, Collective)]
    found, plain = run(schedule, staged(wires(4))), run(schedule, wires(4))
    copied = plain.sent_bytes[0]
    assert copied == pytest.approx(1.5 * op.nbytes, rel=1e-2)
    assert found.iteration_s == pytest.approx(plain.iteration_s + 2 * (LATE + copied / COPY), rel=1e-3)


def test_devices_of_one_host() -> None:
    """Over the loopback they go through memory; over NVLink they do not."""
    on = cluster(1, ranks_per_host=2)
    plain, there = run(CHAIN, on, SLOW), run(CHAIN, staged(on), SLOW)
    assert spans(there, "act", 0)["recv"].end_s == pytest.approx(
        spans(plain, "act", 0)["recv"].end_s + 2 * (LATE + 32 / COPY)
    )
    nvlink = Intra(kind=IntraKind.NVLINK, bandwidth_Bps=1e9)
    joined = star([replace(h, intra=nvlink) for h in on.hosts], ranks_per_host=2)
    assert run(CHAIN, staged(joined)).iteration_s == run(CHAIN, joined).iteration_s


def test_copies_to_a_device_have_a_rate_and_a_latency_of_their_own() -> None:
    schedule = build("all_reduce", MODEL, 4, overlap=False)
    (op,) = [op for op in schedule.ops if isinstance(op, Collective)]
    on = wires(4)
    copies = replace(STAGING, back_Bps=COPY / 2, back_latency_s=3 * LATE)
    slower = replace(on, hosts=tuple(replace(h, staging=copies) for h in on.hosts))
    found, plain = run(schedule, slower).iteration_s, run(schedule, on).iteration_s
    assert found == pytest.approx(plain + 4 * LATE + 3 * op.nbytes / COPY, rel=1e-6)


def test_ranks_on_cores_copy_nothing() -> None:
    schedule = build("all_reduce", MODEL, 3)
    on = cluster(3, on_cores=True)
    assert run(schedule, staged(on), SOME).iteration_s == run(schedule, on, SOME).iteration_s


def test_many_messages_are_staged_too() -> None:
    """Compiled code copies as Python does."""
    schedule = build("parameter_server", MODEL, 4, placement="colocated", assignment="cut")
    plain = run(schedule, staged(wires(4)), SOME, fold_ranks=False)
    found = run(schedule, staged(wires(4)), SOME, fold_ranks=False, engine="compiled")
    assert found.iteration_s == pytest.approx(plain.iteration_s, rel=1e-9)
    assert found.iteration_s > 1.1 * run(schedule, wires(4), SOME, fold_ranks=False).iteration_s
    assert found.utilisation == pytest.approx(plain.utilisation, rel=1e-6)


# ---- topologies -----------------------------------------------------------------------------------------------------


def test_a_topology_states_it(tmp_path: Path) -> None:
    old, more = "    devices: [V100]\n", "overrides: {node-1: {staging: {rate: 6GB/s}}}\n"
    made = load_cluster(changed_star(tmp_path, old, f"{old}    staging: {{rate: 12GB/s, latency: 10us}}\n", more))
    assert made.hosts[0].staging == Staging(bandwidth_Bps=12e9, latency_s=10e-6)
    assert made.hosts[1].staging == Staging(bandwidth_Bps=6e9)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    devices: [V100]\n", "    staging: {rate: 12GB/s}\n", "staging is for devices"),
        ("[V100]\n", "[V100]\n    staging: {latency: 12us}\n", "rate"),
        ("[V100]\n", "[V100]\n    staging: 12GB/s\n", "staging"),
        (
            "[V100]\n",
            "[V100]\n    staging: {rate: 12GB/s}\n    intra: {kind: pcie, rate: 12GB/s}\n",
            "exclude each other",
        ),
    ],
)
def test_what_a_topology_may_not_say(tmp_path: Path, old: str, new: str, says: str) -> None:
    refused(changed_star(tmp_path, old, new), says)
