"""Calibration measures what was asked for, fits its own model, and adds up messages as the loopback does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from execute_variants import schedule_of

from stanza_sim.execute.calibration import calibrate, profile_of, sample_counts
from stanza_sim.execute.launch import Pool
from stanza_sim.execute.protocol import RankTimes, Wanted
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles import differences
from stanza_sim.schedule import Phase


def test_counts_are_those_of_the_schedules(tiny: ModelProfile) -> None:
    schedules = [schedule_of(tiny, "stanza", 5, {"fc_workers": 2}), schedule_of(tiny, "all_reduce", 5, {})]
    assert sample_counts(schedules, tiny) == {"features.0": (6,), "classifier.1": (6, 12), "classifier.4": (6, 12)}


def test_a_calibration_times_every_block_and_message(pool: Pool, tiny: ModelProfile) -> None:
    schedule = schedule_of(tiny, "stanza", 5, {"fc_workers": 2})
    profile = calibrate(pool, tiny, [schedule])
    assert differences(profile, tiny, "fp32") == []
    assert {(b.block, b.samples) for b in profile.blocks} == {
        ("features.0", 6),
        ("classifier.1", 6),
        ("classifier.1", 12),
        ("classifier.4", 6),
        ("classifier.4", 12),
    }
    for row in profile.blocks:
        assert 0 < row.forward_s < 0.1
        assert 0 < row.backward_s < 0.1
        assert (row.loss_s is not None) == (row.block == "classifier.4")
    assert profile.ranks_at_once == 5
    assert profile.loopback is not None
    assert 1e-6 < profile.loopback.message_core_s < 0.01
    assert 1e8 < profile.loopback.bandwidth_Bps < 1e11
    assert 0 < profile.op_overhead_s < 1e-3


def test_probes_become_latency_and_costs(tiny: ModelProfile) -> None:
    phases = (Phase.FORWARD, Phase.BACKWARD, Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)
    times = {(b.name, 4, phase): [3e-3, 1e-3, 2e-3] for b in tiny.blocks for phase in phases}
    times[tiny.blocks[-1].name, 4, Phase.LOSS] = [5e-4]
    one = RankTimes(
        host="h",
        device="cpu x",
        driver=None,
        cores=2,
        torch_version="2",
        blocks=times,
        reduce_Bps=1e9,
        update_Bps=2e9,
        op_overhead_s=1e-5,
        small_bytes=0,
        large_bytes=1_000_000,
        small=(200e-6, 60e-6),
        large=(1200e-6, 460e-6),
    )
    wanted = Wanted(model=tiny, samples={b.name: (4,) for b in tiny.blocks}, contributions=2)
    profile = profile_of([one, one], wanted, "fp32")
    loopback = profile.loopback
    assert loopback is not None
    assert loopback.byte_core_s == pytest.approx(800e-12)
    assert loopback.message_core_s == pytest.approx(120e-6)
    assert loopback.bandwidth_Bps == pytest.approx(1e9)
    assert loopback.latency_s == pytest.approx(140e-6)
    assert profile.blocks[0].forward_s == 2e-3
    assert profile.blocks[0].spread == pytest.approx(1.0)
    apart = profile_of([one, replace(one, host="other")], wanted, "fp32")
    assert apart.loopback is None
