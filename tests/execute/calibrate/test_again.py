"""A profile is brought up to date by timing again what a row needs, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.cluster import load_cluster
from stanza_sim.execute.calibrate.again import block_seconds, mean_of, sections_for, slowdown, time_again, updated
from stanza_sim.execute.calibrate.answers import MessageCores, Section, SectionTimes
from stanza_sim.execute.calibrate.calibration import calibrate
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import fingerprint
from stanza_sim.profiles.blocks import BlockTime, LoopbackTimes, Profile, ProfiledModel, with_profile
from stanza_sim.schedule import Phase
from tests.execute.execute_variants import schedule_of


@pytest.fixture
def known(tiny: ModelProfile) -> Profile:
    """Every phase of every block takes 10 ms at 4 and 20 ms at 8 samples."""
    last = tiny.blocks[-1].name
    return Profile(
        device="cpu x",
        host_cores=2,
        date="2026-01-01T00:00:00Z",
        precision="fp32",
        ranks_at_once=2,
        model=ProfiledModel(name=tiny.name, fingerprint=fingerprint(tiny)),
        blocks=tuple(
            BlockTime(
                block=b.name,
                samples=n,
                forward_s=n * 2.5e-3,
                backward_s=n * 2.5e-3,
                backward_input_s=n * 2.5e-3,
                backward_weight_s=n * 2.5e-3,
                loss_s=n * 2.5e-3 if b.name == last else None,
            )
            for b in tiny.blocks
            for n in (4, 8)
        ),
        reduce_Bps=1e9,
        update_Bps=2e9,
        op_overhead_s=1e-5,
        wakeup_s=1e-3,
        loopback=LoopbackTimes(latency_s=1e-4, message_core_s=2e-4, byte_core_s=1e-9, bandwidth_Bps=1e9),
    )


def timed(block: str, seconds: float, *, core_s: float = 0.0) -> SectionTimes:
    """Forward and backward pass of `block` at 4 samples, and ten messages of 1 kB at one end."""
    return SectionTimes(
        blocks={(block, 4, phase): [seconds] * 3 for phase in (Phase.FORWARD, Phase.BACKWARD)},
        update_Bps=1e9,
        messages=(MessageCores(core_s=core_s, ends=10, nbytes=10_000),) if core_s else (),
        rests_s=(5e-3,),
    )


def test_only_what_the_schedules_compute_is_timed(tiny: ModelProfile) -> None:
    """Of a parameter server's rows gradients come at once; of Stanza's FC worker input first, at all samples."""
    everything = frozenset(b.name for b in tiny.blocks)
    ring = schedule_of(tiny, "all_reduce", 4, {})
    (one,) = sections_for([ring], tiny)
    assert (one.apart, one.blocks) == (False, everything)
    stanza = schedule_of(tiny, "stanza", 4, {"fc_workers": 1})
    n = one.samples
    conv, fc = frozenset({"features.0"}), frozenset({"classifier.1", "classifier.4"})
    assert sections_for([stanza], tiny) == (
        Section(samples=n, apart=False, blocks=conv),
        Section(samples=3 * n, apart=True, blocks=fc),
    )
    assert sections_for([ring, stanza], tiny) == (
        Section(samples=n, apart=False, blocks=everything),
        Section(samples=3 * n, apart=True, blocks=fc),
    )


def test_what_was_timed_replaces_and_the_rest_follows(known: Profile, tiny: ModelProfile) -> None:
    name = tiny.blocks[0].name
    stated_s = (10 * 2e-4 + 10_000 * 1e-9) / 2
    found = updated(known, [timed(name, 15e-3, core_s=3 * stated_s)] * 2)
    times, before = block_seconds(found), block_seconds(known)
    assert times[name, 4, Phase.FORWARD] == times[name, 4, Phase.BACKWARD] == pytest.approx(15e-3)
    left = before.keys() - {(name, 4, Phase.FORWARD), (name, 4, Phase.BACKWARD)}
    assert all(times[what] == pytest.approx(1.5 * before[what]) for what in left)
    assert (found.update_Bps, found.reduce_Bps) == (1e9, pytest.approx(1e9 / 1.5))
    assert found.op_overhead_s == pytest.approx(1.5e-5)
    assert found.wakeup_s == 1e-3
    assert found.loopback is not None
    assert found.loopback.message_core_s == pytest.approx(6e-4)
    assert found.loopback.byte_core_s == pytest.approx(3e-9)
    assert found.loopback.latency_s == 1e-4
    apart = updated(known, [replace(timed(name, 5e-3), update_Bps=None)])  # on hosts of their own, without messages
    assert apart.update_Bps == pytest.approx(4e9)
    assert apart.loopback is not None
    assert apart.loopback.message_core_s == pytest.approx(1e-4)


def test_half_way_between_two_profiles(known: Profile, tiny: ModelProfile) -> None:
    a, b = (updated(known, [timed(tiny.blocks[0].name, s)]) for s in (10e-3, 20e-3))
    mean = mean_of(a, b)
    assert block_seconds(mean) == pytest.approx({what: 1.5 * s for what, s in block_seconds(known).items()})
    assert mean.reduce_Bps == pytest.approx(1e9 / 1.5)
    assert mean_of(known, known) == known


def test_slower_by_the_blocks_that_both_have() -> None:
    before = {("a", 4, Phase.FORWARD): 1.0, ("b", 4, Phase.FORWARD): 3.0}
    after = {("a", 4, Phase.FORWARD): 2.0, ("b", 4, Phase.FORWARD): 3.0, ("c", 4, Phase.FORWARD): 9.0}
    assert slowdown(before, after) == pytest.approx(1.25)
    assert slowdown({}, after) == 1.0


def test_a_profile_brings_its_wake_up_along(known: Profile) -> None:
    cluster = load_cluster("laptop")
    assert with_profile(cluster, known).wakeup_latency_s == 1e-3
    without = known.model_copy(update={"wakeup_s": None})
    assert with_profile(cluster, without).wakeup_latency_s == cluster.wakeup_latency_s


def test_ranks_time_the_sections_of_a_row_again(pool: Pool, tiny: ModelProfile) -> None:
    schedule = schedule_of(tiny, "stanza", 5, {"fc_workers": 1})
    profile = calibrate(pool, tiny, [schedule])
    times = time_again(pool, tiny, sections_for([schedule], tiny), profile)
    assert len(times) == 5
    for one in times:
        timed_blocks = {(block, samples) for block, samples, _ in one.blocks}
        assert timed_blocks == {("features.0", 6), ("classifier.1", 24), ("classifier.4", 24)}
        assert all(s >= 0 for s in one.rests_s)
        assert sum(m.ends for m in one.messages) > 0
    assert 0 < slowdown(block_seconds(profile), block_seconds(updated(profile, times))) < 20
