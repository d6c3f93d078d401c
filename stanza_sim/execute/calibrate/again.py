"""A profile brought up to date: its blocks are timed again, since the speed of a machine's cores drifts. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from pydantic import BaseModel

from stanza_sim.base.precision import Precision
from stanza_sim.execute.calibrate.answers import Section, SectionsWanted, SectionTimes, TimeId
from stanza_sim.execute.calibrate.calibration import APART, PHASES, factor_under_load, merge_times
from stanza_sim.execute.calibrate.tasks import SectionsTask
from stanza_sim.execute.start.protocol import Workers
from stanza_sim.execute.train.samples import follow
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile
from stanza_sim.schedule import Compute, Phase, Schedule
from stanza_sim.schedule.factors import factor_transfers, joined_samples, require_factors

AGAIN_S, LEAST_AGAIN = 0.4, 2
"""Seconds spent on each section where a profile is there already: long enough for medians, short beside a run."""


def sections_for(schedules: Iterable[Schedule], model: ModelProfile) -> tuple[Section, ...]:
    """The sections in which every computation of a block in `schedules` is timed at least once, and no others."""
    blocks: dict[tuple[int, bool], set[str]] = {}
    for schedule in schedules:
        rows, apart = follow(schedule, model).rows, _computed_apart(schedule)
        for (_, block, _), held in rows.items():
            for way in apart.get(block, {False}):
                blocks.setdefault((len(held), way), set()).add(block)
        for name, moved in factor_transfers(schedule).items():
            linear, _ = require_factors(schedule, model, name)
            for r in schedule.group(moved.dst):
                blocks.setdefault((joined_samples(schedule, moved, r), True), set()).add(linear.name)
    return tuple(Section(samples=n, apart=way, blocks=frozenset(names)) for (n, way), names in sorted(blocks.items()))


def _computed_apart(schedule: Schedule) -> dict[str, set[bool]]:
    """For each block, whether its gradients are computed one after the other, at once, or both."""
    found: dict[str, set[bool]] = {}
    for op in schedule.ops:
        if isinstance(op, Compute) and op.phase in (Phase.BACKWARD, *APART):
            found.setdefault(op.target, set()).add(op.phase in APART)
    return found


def time_again(
    workers: Workers, model: ModelProfile, sections: Sequence[Section], known: Profile, *, seed: int = 1
) -> Sequence[SectionTimes]:
    """Time `sections` of `model` on all ranks of `workers` at once: what `known` says of them as it is now."""
    wanted = SectionsWanted(
        model=model,
        sections=tuple(sections),
        seconds=AGAIN_S,
        least=LEAST_AGAIN,
        op_overhead_s=known.op_overhead_s,
        seed=seed,
        precision=Precision(known.precision),
        moments=known.moments,
    )
    return workers.run(SectionsTask(wanted))


def updated(known: Profile, times: Sequence[SectionTimes]) -> Profile:
    """`known` with what was timed again in the place of what it says; all else changes as those did in sum.

    Its wake-up stays: one timing is too short for it.
    """
    merged = merge_times([t.blocks for t in times])
    slower = slowdown(block_seconds(known), merged)
    blocks = []
    for row in known.blocks:
        changed = {
            field: merged.get((row.block, row.samples, phase), slower * seconds)
            for field, phase in PHASES.items()
            if (seconds := getattr(row, field)) is not None
        }
        blocks.append(row.model_copy(update=changed))
    updates = [t.update_Bps for t in times if t.update_Bps is not None]
    loopback = known.loopback
    if loopback is not None:
        sections = [m for t in times for m in t.messages]
        dearer = factor_under_load(sections, loopback.message_core_s, loopback.byte_core_s) if sections else slower
        cores = {"message_core_s": dearer * loopback.message_core_s, "byte_core_s": dearer * loopback.byte_core_s}
        loopback = loopback.model_copy(update=cores)
    return known.model_copy(
        update={
            "blocks": tuple(blocks),
            "reduce_Bps": known.reduce_Bps / slower,
            "update_Bps": median(updates) if updates else known.update_Bps / slower,
            "op_overhead_s": known.op_overhead_s * slower,
            "loopback": loopback,
        }
    )


def mean_of(a: Profile, b: Profile) -> Profile:
    """The profile half-way between two of the same blocks: times are averaged, and rates as times."""

    def mean(x: float, y: float) -> float:
        return (x + y) / 2

    def rate(x: float, y: float) -> float:
        return 2 * x * y / (x + y)

    def fields(x: BaseModel, y: BaseModel, names: Iterable[str]) -> dict[str, float]:
        pairs = ((name, getattr(x, name), getattr(y, name)) for name in names)
        return {name: mean(one, other) for name, one, other in pairs if one is not None and other is not None}

    loopback = a.loopback
    if loopback is not None and b.loopback is not None:
        loopback = loopback.model_copy(update=fields(loopback, b.loopback, ("message_core_s", "byte_core_s")))
    blocks = tuple(x.model_copy(update=fields(x, y, PHASES)) for x, y in zip(a.blocks, b.blocks, strict=True))
    return a.model_copy(
        update={
            "blocks": blocks,
            "reduce_Bps": rate(a.reduce_Bps, b.reduce_Bps),
            "update_Bps": rate(a.update_Bps, b.update_Bps),
            "loopback": loopback,
            **fields(a, b, ("op_overhead_s",)),
        }
    )


def block_seconds(profile: Profile) -> dict[TimeId, float]:
    """The times of a profile by (block, samples, phase)."""
    rows = ((row, phase, getattr(row, field)) for row in profile.blocks for field, phase in PHASES.items())
    return {(row.block, row.samples, phase): seconds for row, phase, seconds in rows if seconds is not None}


def slowdown(before: Mapping[TimeId, float], after: Mapping[TimeId, float]) -> float:
    """How many times as long as `before` the same blocks take `after`, in sum; 1 where they have none in common."""
    both = before.keys() & after.keys()
    earlier_s = sum(before[what] for what in both)
    return sum(after[what] for what in both) / earlier_s if earlier_s > 0 else 1.0
