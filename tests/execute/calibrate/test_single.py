"""Fits of single messages: exact where the law holds, and what else the machine does is not taken for the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import RunError
from stanza_sim.execute.calibrate.single import BUDGET_S, MiB, Sizes, Timing, fit, sizes_for

SIZES = Sizes(middle=(128 * 1024, 256 * 1024), large=(4 * MiB, 8 * MiB, 16 * MiB), large_repeats=3)


def timings(sizes: Sizes, latency_s: float, overhead_s: float, goodput_Bps: float, burst_bytes: float) -> list[Timing]:
    found = []
    for some, repeats in sizes.rounds:
        for n in some:
            seconds = overhead_s + latency_s
            if n > sizes.small:
                seconds += (n - burst_bytes) / goodput_Bps
            for repeat in range(repeats):
                for direction in (0, 1):
                    posting_s = overhead_s if n == sizes.small else 5 * overhead_s
                    found.append(
                        Timing(nbytes=n, series=(0, direction), repeat=repeat, seconds=seconds, posting_s=posting_s)
                    )
    return found


@given(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-3), st.floats(1e6, 1e10), st.floats(-60_000, 60_000))
def test_what_was_put_in_comes_out(latency_s: float, overhead_s: float, goodput_Bps: float, burst: float) -> None:
    found = fit(timings(SIZES, latency_s, overhead_s, goodput_Bps, burst), SIZES)
    assert found.latency_s.value == pytest.approx(latency_s, rel=1e-6)
    assert found.overhead_s.value == overhead_s
    assert found.posting_s.value == 5 * overhead_s
    assert found.goodput_Bps.value == pytest.approx(goodput_Bps, rel=1e-6)
    assert found.burst_bytes.value == pytest.approx(burst, abs=1)
    for estimate in (found.latency_s, found.goodput_Bps):
        assert estimate.high - estimate.low < 1e-6 * estimate.value


def test_messages_that_another_program_held_up_change_the_spread_and_not_the_goodput() -> None:
    clean = timings(SIZES, 1e-4, 2e-5, 24e6, 18_000)
    busy = [
        replace(t, seconds=t.seconds * 1.1) if t.nbytes >= 4 * MiB and (t.repeat + t.series[1]) % 3 else t
        for t in clean
    ]
    found = fit(busy, SIZES)
    assert found.goodput_Bps.value == pytest.approx(24e6)
    assert found.goodput_Bps.low < 0.95 * 24e6
    assert found.burst_bytes.value == pytest.approx(18_000, abs=1)


def test_the_first_small_messages_connect_and_do_not_count() -> None:
    late = [
        replace(t, seconds=1.0) if t.nbytes == SIZES.small and t.repeat < 2 else t
        for t in timings(SIZES, 1e-4, 2e-5, 24e6, 0)
    ]
    assert fit(late, SIZES).latency_s.high == pytest.approx(1e-4)


def test_times_that_do_not_grow_are_no_network() -> None:
    same = [replace(t, seconds=1e-3) for t in timings(SIZES, 1e-4, 2e-5, 24e6, 0)]
    with pytest.raises(RunError, match="too busy"):
        fit(same, SIZES)


@given(st.lists(st.floats(12.5e6, 12.5e9), min_size=1, max_size=4))
def test_large_messages_keep_to_the_budget(rates: list[float]) -> None:
    plan = sizes_for(rates)
    took_s = sum(2 * s.large_repeats * sum(s.large) / rate for s, rate in zip(plan, rates, strict=True))
    assert took_s <= BUDGET_S * 1.01
    for s in plan:
        assert s.large_repeats >= 3
        assert max(s.middle) <= min(s.large) <= 4 * MiB
        assert s.small < min(s.middle)
        assert s.again.rounds == ((s.large, s.large_repeats),)


def test_at_usual_rates_messages_are_4_MiB_and_more() -> None:
    (plan,) = sizes_for([62.5e6])
    assert plan.large == (4 * MiB, 8 * MiB, 16 * MiB)
    assert sizes_for([]) == []
