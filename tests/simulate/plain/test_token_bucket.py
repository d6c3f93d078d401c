"""Token buckets of shaped links: closed forms, sharing, folding, and what a topology may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base import config
from stanza_sim.cluster import Cluster, Nic, TokenBucket, load_cluster
from stanza_sim.simulate import Prediction
from stanza_sim.simulate.plain.fabric import SimClock
from stanza_sim.simulate.plain.fluid import FluidShare, RunningActivity
from stanza_sim.simulate.plain.token_bucket import TokenBuckets
from tests.schedule.toys import SOME, Costs, build, cluster
from tests.simulate.messages import CHAIN, MODEL, refused, run, with_nic

RATE = 100.0
NBYTES = 32
INFINITE = float("inf")


def wires(bucket: TokenBucket | None, hosts: int = 2, *, only: int | None = None, rate: float = RATE) -> Cluster:
    shaped = Nic(bandwidth_Bps=RATE, bucket=bucket)
    if only is None:
        return cluster(hosts, nic=shaped)
    return cluster(hosts, nic=Nic(bandwidth_Bps=rate), nics={only: shaped})


def sent_s(p: Prediction, iteration: int) -> float:
    (span,) = [s for s in p.timeline.spans if s.op == "act" and s.side == "sent" and s.iteration == iteration]
    return span.end_s - span.start_s


def alone_s(n: float, credit: float, peak: float) -> float:
    """A message by itself: at the peak while credit lasts, then at the rate."""
    return n / peak if n * (1 - RATE / peak) <= credit else (n - credit) / RATE


@pytest.mark.parametrize("peak", [150.0, 400.0, 1e4, INFINITE])
@pytest.mark.parametrize("burst", [4, 16, 31, 100])
def test_a_message_after_a_long_idle_time(burst: int, peak: float) -> None:
    """c1, pool and c2 take 1.41 s, in which the bucket fills."""
    p = run(CHAIN, wires(TokenBucket(nbytes=burst, peak_Bps=peak)), Costs(flops_s=1e-3))
    for i in range(p.iterations):
        assert sent_s(p, i) == pytest.approx(alone_s(NBYTES, burst, peak), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("wire", [120.0, 250.0, 1000.0])
def test_another_link_may_limit_the_burst(wire: float) -> None:
    for only in (0, 1):
        on = wires(TokenBucket(nbytes=16), only=only, rate=wire)
        p = run(CHAIN, on, Costs(flops_s=1e-3))
        assert sent_s(p, 1) == pytest.approx(alone_s(NBYTES, 16, wire), rel=1e-6)


def test_a_short_idle_time_fills_a_bucket_in_part() -> None:
    """The first message finds what 0.0141 s have filled."""
    p = run(CHAIN, wires(TokenBucket(nbytes=1000)), Costs(flops_s=1e-5, loss=1.0))
    assert sent_s(p, 0) == pytest.approx((NBYTES - 0.0141 * RATE) / RATE, rel=1e-6)


def test_what_is_always_busy_has_no_burst() -> None:
    """Sending takes longer than computing, so no credit is left over: the rate is what counts."""
    schedule = build("all_reduce", MODEL, 4)
    costs = Costs(flops_s=1e-9)
    plain = run(schedule, wires(None, 4), costs)
    found = run(schedule, wires(TokenBucket(nbytes=1e4, peak_Bps=10 * RATE), 4), costs)
    assert found.iteration_s == pytest.approx(plain.iteration_s, rel=1e-3)
    assert found.bound_s == pytest.approx(plain.bound_s)
    assert found.iteration_s >= found.bound_s * (1 - 1e-9)


@pytest.mark.parametrize("workers", [1, 3, 6])
def test_flows_use_up_the_credit_alike(workers: int) -> None:
    """k pushes into a server at once: together they save what its credit lets pass, and end together."""
    share = FluidShare([RATE])
    clock = SimClock()
    token_buckets = TokenBuckets([(0, TokenBucket(nbytes=60.0, peak_Bps=5 * RATE))], share, clock)
    clock.env.run(until=10.0)
    flows = [RunningActivity(work=90.0, usage=((0, 1.0),)) for _ in range(workers)]
    for flow in flows:
        share.start(flow, 10.0)
    token_buckets.refill()
    share.solve(10.0)
    empty_s = token_buckets.drain()
    assert empty_s == pytest.approx(10.0 + 60.0 / (4 * RATE))
    assert {f.rate for f in flows} == {5 * RATE / workers}
    clock.env.run(until=empty_s)
    token_buckets.refill()
    share.solve(empty_s)
    assert token_buckets.drain() == INFINITE
    assert share.next_finish_s() == pytest.approx(10.0 + (90.0 * workers - 60.0) / RATE)


@settings(max_examples=25)
@given(st.floats(1.0, 3000.0), st.floats(1.01, 50.0), st.sampled_from(["parameter_server", "stanza", "all_reduce"]))
def test_never_slower_never_beyond_the_bound(burst: float, peak: float, strategy: str) -> None:
    schedule = build(strategy, MODEL, 4)
    costs = replace(SOME, flops_s=1e-2)
    plain = run(schedule, wires(None, 4), costs)
    found = run(schedule, wires(TokenBucket(nbytes=burst, peak_Bps=peak * RATE), 4), costs)
    whole = run(schedule, wires(TokenBucket(nbytes=burst, peak_Bps=peak * RATE), 4), costs, fold_ranks=False)
    assert found.bound_s * (1 - 1e-3) <= found.iteration_s <= plain.iteration_s * (1 + 1e-3)
    assert whole.iteration_s == pytest.approx(found.iteration_s, rel=2e-3)


def test_it_pays_where_there_is_idle_time() -> None:
    schedule = build("all_reduce", MODEL, 4, overlap=False)
    costs = Costs(flops_s=1e-1)
    plain = run(schedule, wires(None, 4), costs).iteration_s
    found = run(schedule, wires(TokenBucket(nbytes=1000.0, peak_Bps=INFINITE), 4), costs).iteration_s
    assert found == pytest.approx(plain - 1000.0 / RATE, rel=1e-6)


def test_a_peak_at_the_rate_is_no_bucket() -> None:
    schedule = build("stanza", MODEL, 4)
    assert run(schedule, wires(TokenBucket(nbytes=1000.0, peak_Bps=RATE), 4), SOME) == run(
        schedule, wires(None, 4), SOME
    )


def test_many_messages_are_shaped_too() -> None:
    """Compiled code has buckets as Python has them."""
    schedule = build("parameter_server", MODEL, 4, placement="colocated", assignment="cut")
    costs = Costs(flops_s=1e-2)  # links are idle for long
    on = wires(TokenBucket(nbytes=1000.0), 4)
    plain = run(schedule, on, costs, fold_ranks=False)
    found = run(schedule, on, costs, fold_ranks=False, engine="compiled")
    assert found.iteration_s == pytest.approx(plain.iteration_s, rel=1e-9)
    assert found.iteration_s < 0.99 * run(schedule, wires(None, 4), costs, fold_ranks=False).iteration_s
    assert found.utilisation == pytest.approx(plain.utilisation, rel=1e-6)


# ---- topologies -----------------------------------------------------------------------------------------------------


def test_a_topology_states_it(tmp_path: Path) -> None:
    made = load_cluster(with_nic(tmp_path, "burst: 64KiB, peak: 100Gbps", "overrides: {node-1: {nic: {burst: 1MB}}}\n"))
    assert [k.bucket for k in made.links[:2]] == [TokenBucket(nbytes=65536 * 0.99, peak_Bps=12.5e9 * 0.99)] * 2
    assert made.links[2].bucket == TokenBucket(nbytes=1e6 * 0.99)
    text = (
        config.find("topologies", "leaf-spine").read_text().replace("oversubscription: 4", "rate: 10Gbps\n  burst: 1MB")
    )
    (tmp_path / "l.yaml").write_text(text)
    trunks = [k for k in load_cluster(tmp_path / "l.yaml").links if k.kind == "trunk"]
    assert {k.bucket for k in trunks} == {TokenBucket(nbytes=1e6 * 0.99)}


@pytest.mark.parametrize(
    ("nic", "says"),
    [
        ("peak: 100Gbps", "peak without burst"),
        ("burst: 64KiB, peak: 1Gbps", "a peak below the rate"),
        ("burst: 64", "no unit"),
        ("burst: 0B", "zero"),
        ("burst: 64Kib", "unknown unit"),
    ],
)
def test_what_a_topology_may_not_say(tmp_path: Path, nic: str, says: str) -> None:
    refused(with_nic(tmp_path, nic), says)
