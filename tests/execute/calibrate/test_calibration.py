"""Calibration measures what was asked for, fits its own model, and adds up messages as the loopback does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.execute.calibrate.answers import MessageCores, RankTimes, Wanted
from stanza_sim.execute.calibrate.calibration import calibrate, merge_times, profile_of, sample_counts
from stanza_sim.execute.calibrate.sections import alone
from stanza_sim.execute.calibrate.under_load import rest_s, schedule_under_load
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import differences
from stanza_sim.schedule import Compute, Phase, Transfer, UnitKind, project
from tests.execute.execute_variants import schedule_of


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


def timed(tiny: ModelProfile) -> RankTimes:
    """What a rank may have timed at 4 samples."""
    phases = (Phase.FORWARD, Phase.BACKWARD, Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)
    times = {(b.name, 4, phase): [3e-3, 1e-3, 2e-3] for b in tiny.blocks for phase in phases}
    times[tiny.blocks[-1].name, 4, Phase.LOSS] = [5e-4] * 3
    return RankTimes(
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


def test_probes_become_latency_and_costs(tiny: ModelProfile) -> None:
    one = timed(tiny)
    wanted = Wanted(model=tiny, samples={b.name: (4,) for b in tiny.blocks}, contributions=2)
    profile = profile_of([one, one], wanted)
    loopback = profile.loopback
    assert loopback is not None
    assert loopback.byte_core_s == pytest.approx(800e-12)
    assert loopback.message_core_s == pytest.approx(120e-6)
    assert loopback.bandwidth_Bps == pytest.approx(1e9)
    assert loopback.latency_s == pytest.approx(140e-6)
    assert profile.blocks[0].forward_s == pytest.approx(2e-3)
    assert profile.blocks[0].spread == pytest.approx(1.0)
    apart = profile_of([one, replace(one, host="other")], wanted)
    assert apart.loopback is None


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_under_load_all_compute_and_all_talk(tiny: ModelProfile, ranks: int) -> None:
    """Each rank sends as many bytes as a block's gradients have in equal parts to all others."""
    schedule = schedule_under_load(alone(tiny, 4, apart=False), tiny, frozenset(b.name for b in tiny.blocks), ranks)
    sizes = {b.name: b.numel * tiny.itemsize for b in tiny.blocks}
    for rank in range(ranks):
        units = project(schedule, rank).units
        computed = [u.op.phase for u in units if isinstance(u.op, Compute)]
        for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.UPDATE):
            assert computed.count(phase) == len(tiny.blocks)
        others = tuple(r for r in range(ranks) if r != rank)
        moved = [(u.kind, u.op.nbytes, tuple(sorted(u.peers))) for u in units if isinstance(u.op, Transfer)]
        parts = [(kind, n // (ranks - 1), others) for n in sizes.values() for kind in (UnitKind.SEND, UnitKind.RECV)]
        assert sorted(moved) == sorted(parts)
        for unit in units:
            if isinstance(unit.op, Compute) and unit.op.phase is Phase.UPDATE:
                awaited = [units[j] for j in unit.needs]
                part = sizes[unit.op.target] // (ranks - 1)
                assert any(u.kind is UnitKind.RECV and u.op.nbytes == part for u in awaited)


def test_the_overhead_of_computations_is_that_without_messages(tiny: ModelProfile) -> None:
    everything = frozenset(b.name for b in tiny.blocks)
    computations = alone(tiny, 4, apart=True)
    quiet = schedule_under_load(computations, tiny, everything, 3, exchanging=False)
    talking = schedule_under_load(computations, tiny, everything, 3)
    assert all(isinstance(op, Compute) for op in quiet.ops)
    names = [op.name for op in talking.ops if isinstance(op, Compute)]
    assert [op.name for op in quiet.ops] == names


def test_blocks_add_up_to_the_median_pass() -> None:
    """What is slow once in three times, each time elsewhere, is in no block's median and in every pass."""
    slow = {0: [2.0, 1.0, 1.0], 1: [1.0, 2.0, 1.0], 2: [1.0, 1.0, 2.0]}
    times = {(f"b{k}", 4, Phase.FORWARD): seconds for k, seconds in slow.items()}
    times |= {(f"b{k}", 4, Phase.BACKWARD): [1.0] * 3 for k in slow}
    times["b0", 4, Phase.BACKWARD_INPUT] = [0.5] * 3  # the same once more, in another way
    times["b0", 8, Phase.FORWARD] = [1.0, 3.0, 1.1]
    found = merge_times([times, times])
    assert found["b0", 4, Phase.FORWARD] == pytest.approx(7 / 6)
    assert sum(found[f"b{k}", 4, p] for k in slow for p in (Phase.FORWARD, Phase.BACKWARD)) == pytest.approx(7)
    assert found["b0", 4, Phase.BACKWARD_INPUT] == pytest.approx(0.5 * 7 / 6)
    assert found["b0", 8, Phase.FORWARD] == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("idle_s", "cores_in_all", "computing", "rests"),
    [(0.02, 2, 2, 1e-3), (6.02, 8, 2, 1e-3), (5.9, 8, 2, 0.0), (0.0, 2, 2, 0.0), (1.0, 2, 2, 4e-3)],
)
def test_cores_rest_beside_those_that_nobody_uses(
    idle_s: float, cores_in_all: int, computing: int, rests: float
) -> None:
    """In ten iterations of 0.1 s each; what is too long for a wait for a core is not counted."""
    assert rest_s(idle_s, 1.0, 10, cores_in_all=cores_in_all, computing=computing) == pytest.approx(rests)


def test_the_wake_up_is_what_cores_rest_when_ranks_meet(tiny: ModelProfile) -> None:
    one = timed(tiny)
    wanted = Wanted(model=tiny, samples={b.name: (4,) for b in tiny.blocks}, contributions=2)
    assert profile_of([one, one], wanted).wakeup_s is None
    rested = [replace(one, rests_s=rests) for rests in ((1e-3, 0.0), (2e-3, 1e-3))]
    assert profile_of(rested, wanted).wakeup_s == pytest.approx(1e-3)


def test_only_some_blocks_under_load(tiny: ModelProfile) -> None:
    name = tiny.blocks[-1].name
    schedule = schedule_under_load(alone(tiny, 4, apart=True), tiny, frozenset([name]), 2)
    assert {op.target for op in schedule.ops if isinstance(op, Compute)} == {name}
    first = schedule.ops[0]
    assert (first.after, first.after_previous) == ((), (f"update.{name}",))


def test_messages_cost_the_cores_what_they_cost_under_load(tiny: ModelProfile) -> None:
    """At rest ten messages of 1 kB take 10 x (120 us + 1,000 x 0.8 ns) of both ends; under load three times that."""
    one = timed(tiny)
    at_rest_s = 10 * (120e-6 + 1000 * 800e-12)
    sections = (
        MessageCores(core_s=3 * at_rest_s / 2, ends=10, nbytes=10_000),
        MessageCores(core_s=1.0, ends=0, nbytes=0),  # of blocks without parameters
    )
    wanted = Wanted(model=tiny, samples={b.name: (4,) for b in tiny.blocks}, contributions=2)
    found = profile_of([replace(one, messages=sections)] * 2, wanted).loopback
    assert found is not None
    assert found.byte_core_s == pytest.approx(3 * 800e-12)
    assert found.message_core_s == pytest.approx(3 * 120e-6)
    assert found.bandwidth_Bps == pytest.approx(1e9)
    assert found.latency_s == pytest.approx(140e-6)
    lost = MessageCores(core_s=-1e-6, ends=10, nbytes=10_000)  # less than what the engine costs
    at_rest = profile_of([one, one], wanted).loopback
    assert profile_of([replace(one, messages=(lost,))] * 2, wanted).loopback == at_rest
