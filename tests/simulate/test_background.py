"""Background traffic: closed forms, both fabrics, folding, what comes and goes, and what a topology may say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from stanza_sim.base import config
from stanza_sim.base.errors import InputError, RunError
from stanza_sim.cluster import Cluster, Nic, Traffic, load_cluster
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.background import BackgroundFlow, OnOff
from stanza_sim.simulate.plain.fabric import SimClock
from stanza_sim.simulate.plain.fluid import FluidShare, RunningActivity
from stanza_sim.simulate.repeats import simulate_repeats
from stanza_sim.simulate.variation import Variation
from tests.schedule.toys import SOME, ZERO, build, cluster
from tests.simulate.messages import MODEL, refused, run, with_nic

RATE = 1e6


def server_of(workers: int) -> Schedule:
    """Everybody pushes to one server, which then sends everything back; nothing overlaps."""
    return build("parameter_server", MODEL, workers + 1, servers=1, overlap=False)


def star(ranks: int, background: Traffic | None, rate_Bps: float = RATE) -> Cluster:
    """The last rank's host, the server's, has background traffic on both sides."""
    nics = {ranks - 1: Nic(bandwidth_Bps=rate_Bps, background=background)}
    return cluster(ranks, nic=Nic(bandwidth_Bps=rate_Bps), nics=nics)


# ---- constant -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_workers_share_what_background_leaves(workers: int, share: float) -> None:
    """k flows and one of the background: it has all that it wants, or its fair share of k + 1."""
    schedule = server_of(workers)
    plain = run(schedule, star(workers + 1, None)).iteration_s
    found = run(schedule, star(workers + 1, Traffic(bandwidth_Bps=share * RATE)))
    left = 1 - min(share, 1 / (workers + 1))
    assert found.iteration_s == pytest.approx(plain / left, rel=1e-9)
    assert found.steady
    assert found.bound_s == pytest.approx(run(schedule, star(workers + 1, None)).bound_s)
    # One side of the server's NIC is full at any time; the other has the background alone.
    for side in ("transmit", "receive"):
        assert found.utilisation[f"h{workers} {side} side"] == pytest.approx((1 + share) / 2, rel=1e-3)
    assert found.bottleneck.startswith(f"h{workers} ")


@pytest.mark.parametrize("strategy", ["parameter_server", "all_reduce", "stanza"])
def test_folded_or_not_and_on_arrays(strategy: str) -> None:
    pytest.importorskip("numba")
    schedule = build(strategy, MODEL, 6)
    nic = Nic(bandwidth_Bps=RATE, latency_s=1e-4, efficiency=0.9, background=Traffic(bandwidth_Bps=0.3 * RATE))
    on = cluster(6, nic=nic)
    folded = run(schedule, on, SOME)
    assert len(folded.sent_bytes) < 6
    whole = run(schedule, on, SOME, fold_ranks=False)
    arrays = run(schedule, on, SOME, fold_ranks=False, engine="compiled")
    plain = run(schedule, cluster(6, nic=replace(nic, background=None)), SOME)
    assert folded.iteration_s > 1.1 * plain.iteration_s
    for other in (whole, arrays):
        assert other.iteration_s == pytest.approx(folded.iteration_s, rel=1e-6)
        for label, share in folded.utilisation.items():
            if label.endswith("side"):
                assert other.utilisation[label] == pytest.approx(share, rel=2e-3), label


def test_a_ring_is_one_flow() -> None:
    schedule = build("all_reduce", MODEL, 4, overlap=False)
    plain = run(schedule, cluster(4)).iteration_s
    for share, left in ((0.4, 0.6), (0.8, 0.5)):
        nic = Nic(bandwidth_Bps=RATE, background=Traffic(bandwidth_Bps=share * RATE))
        assert run(schedule, cluster(4, nic=nic)).iteration_s == pytest.approx(plain / left, rel=1e-9)


def test_on_links_between_switches(tmp_path: Path) -> None:
    """What crosses two leaves has what is left of the links between them; folded or not."""
    text = """\
name: two
hosts: [{name: node, cores: 2, devices: [V100], nic: {rate: 8Mbps}}]
fabric: {kind: leaf-spine, leaves: 2, hosts_per_leaf: 2, spines: 1, rate: 4Mbps}
"""
    (tmp_path / "plain.yaml").write_text(text)
    (tmp_path / "busy.yaml").write_text(text.replace("rate: 4Mbps", "rate: 4Mbps, background: 0.4Mbps"))
    schedule = build("parameter_server", MODEL, 4, placement="colocated", assignment="cut")
    plain, busy = (load_cluster(tmp_path / f"{name}.yaml") for name in ("plain", "busy"))
    found = run(schedule, busy)
    assert found.iteration_s == pytest.approx(run(schedule, plain).iteration_s / 0.9, rel=1e-6)
    assert found.iteration_s == pytest.approx(run(schedule, busy, fold_ranks=False).iteration_s, rel=1e-6)
    assert found.utilisation["link leaf-0 to spine-0"] == pytest.approx(1.0, rel=1e-3)


# ---- what comes and goes --------------------------------------------------------------------------------------------


def test_short_phases_take_their_mean() -> None:
    """Phases much shorter than a message: what is left is what is left in the mean."""
    traffic = Traffic(bandwidth_Bps=0.4 * RATE, on_s=2e-4, off_s=6e-4, seed=7)
    schedule = server_of(1)
    plain = run(schedule, star(2, None)).iteration_s
    found = run(schedule, star(2, traffic))
    assert found.iteration_s == pytest.approx(plain / (1 - 0.4 / 4), rel=0.01)
    assert found.iteration_s != pytest.approx(plain / (1 - 0.4 / 4), rel=1e-9)
    assert found.utilisation["h1 receive side"] == pytest.approx(0.5 + 0.1 / 2, rel=0.02)


def test_draws_are_seeded_and_alike_on_both_fabrics() -> None:
    pytest.importorskip("numba")
    schedule = build("parameter_server", MODEL, 4, placement="colocated", assignment="cut")

    def on(seed: int) -> Cluster:
        traffic = Traffic(bandwidth_Bps=0.5 * RATE, on_s=0.02, off_s=0.02, seed=seed)
        return cluster(4, nic=Nic(bandwidth_Bps=RATE, background=traffic))

    small = run(schedule, on(1), SOME)
    assert len(small.sent_bytes) == 4  # nothing is folded
    assert run(schedule, on(1), SOME) == small
    assert run(schedule, on(2), SOME).iteration_s != small.iteration_s
    arrays = run(schedule, on(1), SOME, engine="compiled")
    assert arrays.iteration_s == pytest.approx(small.iteration_s, rel=1e-9)
    for label, share in small.utilisation.items():
        assert arrays.utilisation[label] == pytest.approx(share, rel=1e-3), label


def test_repeats_draw_anew() -> None:
    traffic = Traffic(bandwidth_Bps=0.5 * RATE, on_s=0.05, off_s=0.05)
    found = simulate_repeats(server_of(2), MODEL, star(3, traffic), lambda r: ZERO, variation=Variation(), repeats=8)
    assert found.repeats is not None
    assert found.repeats.p5_s < found.repeats.median_s < found.repeats.p95_s


def flow(on_s: float, off_s: float, seed: int) -> BackgroundFlow:
    traffic = Traffic(bandwidth_Bps=1.0, on_s=on_s, off_s=off_s, seed=seed)
    return BackgroundFlow(resource=0, name="link", traffic=traffic, weight=1.0)


def test_phases_have_the_means_that_are_asked_for() -> None:
    clock, seen = SimClock(), []
    on_off = OnOff([flow(1.0, 3.0, 5)], clock, lambda k, there: seen.append((clock.now, there)))
    clock.after(20_000.0, lambda: None)
    on_off.arm()
    while clock.env.peek() < 20_000:
        clock.env.step()
        on_off.arm()
    lasts = {True: [], False: []}
    for (begin, there), (end, _) in pairwise(seen):
        lasts[there].append(end - begin)
    assert fmean(lasts[True]) == pytest.approx(1.0, rel=0.05)
    assert fmean(lasts[False]) == pytest.approx(3.0, rel=0.05)
    begun = [OnOff([flow(1.0, 3.0, seed)], clock, lambda k, there: None).there[0] for seed in range(2000)]
    assert fmean(begun) == pytest.approx(0.25, abs=0.03)


def test_it_does_not_keep_a_simulation_alive_that_cannot_go_on() -> None:
    clock = SimClock()
    on_off = OnOff([flow(1.0, 1.0, 1)], clock, lambda k, there: None)
    on_off.arm()
    assert not clock.pending
    clock.after(5.0, lambda: None)
    on_off.arm()
    on_off.arm()
    steps = 0
    while clock.pending:
        clock.env.step()
        on_off.arm()
        steps += 1
        assert steps < 100
    assert clock.env.now >= 5.0


def test_an_activity_can_be_stopped() -> None:
    share = FluidShare([10.0])
    there = RunningActivity(work=float("inf"), usage=((0, 1.0),), cap=4.0)
    job = RunningActivity(work=60.0, usage=((0, 1.0),))
    share.start(there, 0.0)
    share.start(job, 0.0)
    share.solve(0.0)
    assert (there.rate, job.rate, share.next_finish_s()) == (4.0, 6.0, 10.0)
    share.stop(there, 5.0)
    share.solve(5.0)
    assert (job.rate, share.next_finish_s()) == (10.0, 8.0)
    assert there.served == 20.0
    with pytest.raises((KeyError, RunError)):
        share.stop(there, 6.0)


# ---- topologies -----------------------------------------------------------------------------------------------------


def test_a_topology_states_it(tmp_path: Path) -> None:
    made = load_cluster(with_nic(tmp_path, "background: 2Gbps", "overrides: {node-1: {nic: {background: 1Gbps}}}\n"))
    assert [link.background for link in made.links[:2]] == [Traffic(bandwidth_Bps=2.5e8 * 0.99)] * 2
    assert made.links[2].background == Traffic(bandwidth_Bps=1.25e8 * 0.99)
    assert not made.varies
    made = load_cluster(with_nic(tmp_path, "background: {rate: 2Gbps, on: 10ms, off: 30ms, seed: 4}"))
    assert made.links[7].background == Traffic(bandwidth_Bps=2.5e8 * 0.99, on_s=0.01, off_s=0.03, seed=4)
    assert made.varies


def test_a_free_form_link_states_it(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("""\
name: t
hosts: [{name: a, cores: 1, nic: {rate: 1Gbps}}, {name: b, cores: 1, nic: {rate: 1Gbps}}]
switches: [{name: s}, {name: t}]
links: [{from: a, to: s}, {from: b, to: t}, {from: s, to: t, rate: 1Gbps, background: 0.5Gbps, efficiency: 0.5}]
""")
    trunks = [link for link in load_cluster(path).links if link.kind == "trunk"]
    assert [link.background for link in trunks] == [Traffic(bandwidth_Bps=1.25e8 / 4)] * 2
    path.write_text(path.read_text().replace("rate: 1Gbps, background", "background"))
    with pytest.raises(InputError, match="need a rate"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("nic", "says"),
    [
        ("background: 20Gbps", "more background than the link carries"),
        ("background: 2", "no unit"),
        ("background: {rate: 2Gbps, on: 1ms}", "both on and off"),
        ("background: {rate: 2Gbps, seed: 1}", "takes no seed"),
        ("background: {rate: 2Gbps, on: 0s, off: 1ms}", "zero"),
        ("background: {on: 1ms, off: 1ms}", "rate"),
        ("background: {rate: 2Gbps, of: 1ms}", "of"),
    ],
)
def test_what_a_topology_may_not_say(tmp_path: Path, nic: str, says: str) -> None:
    refused(with_nic(tmp_path, nic), says)


def test_a_lower_rate_may_leave_no_room(tmp_path: Path) -> None:
    path = with_nic(tmp_path, "background: 2Gbps")
    assert load_cluster(path, rate_Bps=2.5e8).links[0].background is not None
    with pytest.raises(InputError, match="more background"):
        load_cluster(path, rate_Bps=1.25e8)


def test_hosts_that_forward_state_it_on_their_cables(tmp_path: Path) -> None:
    text = config.find("topologies", "ring").read_text()
    (tmp_path / "t.yaml").write_text(text.replace("nic: {", "nic: {background: 1Gbps, "))
    with pytest.raises(InputError, match="state it in links"):
        load_cluster(tmp_path / "t.yaml")
