"""From timings on all ranks to a profile: block times, rates, and what messages cost on this machine. No torch."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.base.version import __version__
from stanza_sim.execute.calibrate.answers import (
    MessageCores,
    ProbeTimes,
    RankTimes,
    SectionTimes,
    TimeId,
    Times,
    Wanted,
)
from stanza_sim.execute.calibrate.tasks import ProbeTask, TimingTask
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start.protocol import Workers
from stanza_sim.execute.start.start import check_precision
from stanza_sim.execute.train.samples import follow
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import fingerprint
from stanza_sim.profiles.blocks import (
    BlockTime,
    CopyTimes,
    DeviceLinkTimes,
    LoopbackTimes,
    Profile,
    ProfiledModel,
    StagingTimes,
)
from stanza_sim.schedule import Phase, Schedule, Transfer, ValueKind
from stanza_sim.schedule.factors import factor_transfers, joined_samples, require_factors


def sample_counts(schedules: Iterable[Schedule], model: ModelProfile) -> dict[str, tuple[int, ...]]:
    """For each block, the numbers of samples at which `schedules` compute it, or its gradients from all factors."""
    found: dict[str, set[int]] = {b.name: set() for b in model.blocks}
    for schedule in schedules:
        for (_, block, _), rows in follow(schedule, model).rows.items():
            found[block].add(len(rows))
        for name, moved in factor_transfers(schedule).items():
            linear, _ = require_factors(schedule, model, name)
            found[linear.name].update(joined_samples(schedule, moved, r) for r in schedule.group(moved.dst))
    return {name: tuple(sorted(counts)) for name, counts in found.items()}


def calibrate(
    workers: Workers,
    model: ModelProfile,
    schedules: Sequence[Schedule],
    *,
    backend: Backend = Backend.AUTO,
    precision: Precision = Precision.FP32,
    seed: int = 1,
) -> Profile:
    """Time the blocks of `model` at the numbers of samples that `schedules` need, all ranks of `workers` at once.

    Also how fast gradients are reduced and parameters updated, what the engine adds to an op, and what a single message
    between two ranks costs; none of the schedules' communication is timed. Takes a few seconds. Raises `InputError` for
    a `precision` that a rank's device has not.
    """
    return time_model(
        workers,
        model,
        sample_counts(schedules, model),
        contributions=max((_contributions(s) for s in schedules), default=2),
        backend=backend,
        precision=precision,
        seed=seed,
        moments=max((s.moments for s in schedules), default=1),
    )


def time_model(
    workers: Workers,
    model: ModelProfile,
    samples: Mapping[str, tuple[int, ...]],
    *,
    contributions: int = 2,
    backend: Backend = Backend.AUTO,
    precision: Precision = Precision.FP32,
    seed: int = 1,
    moments: int = 1,
) -> Profile:
    """As `calibrate`, at the numbers of `samples` of each block, with reductions of so many `contributions`.

    Updates are those of an optimiser that keeps `moments` vectors.
    """
    check_precision(precision, workers)
    wanted = Wanted(
        model=model,
        samples=samples,
        contributions=contributions,
        backend=backend,
        seed=seed,
        precision=precision,
        moments=moments,
    )
    return profile_of(workers.run(TimingTask(wanted)), wanted)


SUMMED = (ValueKind.GRAD, ValueKind.PART, ValueKind.SUM)
"""What reductions sum."""


def _contributions(schedule: Schedule) -> int:
    """How many gradients the largest reduction of `schedule` sums."""
    most = 2
    for op in schedule.ops:
        if isinstance(op, Transfer) and any(v.kind in SUMMED for v in op.values):
            most = max(most, *(len(schedule.sources(op, d)) for d in schedule.group(op.dst)))
    return most


def profile_of(times: Sequence[RankTimes], wanted: Wanted) -> Profile:
    """The profile of what all ranks timed: medians over ranks and repetitions."""
    model, first = wanted.model, times[0]
    if len({t.device for t in times}) > 1:
        raise InputError(
            f"ranks have different devices: {', '.join(sorted({t.device for t in times}))}",
            hint="block times are measured for one kind of device; predict with a topology that names the devices",
        )
    merged = merge_times([t.blocks for t in times])
    blocks = []
    for name, counts in wanted.samples.items():
        for n in counts:
            passes = ((t.blocks[name, n, Phase.FORWARD], t.blocks[name, n, Phase.BACKWARD]) for t in times)
            own = [a + b for forward, backward in passes for a, b in zip(forward, backward, strict=False)]
            blocks.append(
                BlockTime(
                    block=name,
                    samples=n,
                    **{field: merged[name, n, p] for field, p in PHASES.items() if (name, n, p) in merged},
                    spread=(max(own) - min(own)) / median(own),
                )
            )
    return Profile(
        device=first.device,
        driver=first.driver,
        host_cores=first.cores,
        versions={"torch": first.torch_version, "python": platform.python_version(), "stanza_sim": __version__},
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        precision=str(wanted.precision),
        ranks_at_once=sum(t.host == first.host for t in times),
        model=ProfiledModel(name=model.name, fingerprint=fingerprint(model)),
        blocks=tuple(blocks),
        reduce_Bps=median(t.reduce_Bps for t in times),
        update_Bps=median(t.update_Bps for t in times),
        moments=wanted.moments,
        op_overhead_s=median(t.op_overhead_s for t in times),
        wakeup_s=wakeup_s(times),
        loopback=_loopback(times),
        staging=staging_of(times),
        device_link=device_link_of(times),
        collective_share=collective_share(times),
        provenance=dict(first.provenance),
    )


PHASES = {
    "forward_s": Phase.FORWARD,
    "backward_s": Phase.BACKWARD,
    "backward_input_s": Phase.BACKWARD_INPUT,
    "backward_weight_s": Phase.BACKWARD_WEIGHT,
    "loss_s": Phase.LOSS,
}
"""The fields of a `BlockTime` that are times of a phase."""
APART = (Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)
"""The phases of a backward pass that computes the gradients of input and weights one after the other."""


def merge_times(times: Sequence[Times]) -> dict[TimeId, float]:
    """One time for each (block, samples, phase) from those of all ranks and repetitions.

    It is their median, times a factor by which the blocks of one number of samples add up to the median of what they
    add up to in each repetition: what is slow now and then is somewhere in every iteration, but in no block's median.
    """
    every: dict[TimeId, list[float]] = {}
    for one in times:
        for what, seconds in one.items():
            every.setdefault(what, []).extend(seconds)
    medians = {what: median(seconds) for what, seconds in every.items()}
    factors: dict[int, float] = {}
    for n in {n for _, n, _ in every}:
        whole = [w for w in every if w[1] == n and not (w[2] in APART and (w[0], n, Phase.BACKWARD) in every)]
        passes = [
            sum(one[w][k] for w in whole) for one in times for k in range(min(len(one.get(w, ())) for w in whole))
        ]
        sum_s = sum(medians[w] for w in whole)
        factors[n] = median(passes) / sum_s if passes and sum_s > 0 else 1.0
    return {what: seconds * factors[what[1]] for what, seconds in medians.items()}


def wakeup_s(times: Sequence[RankTimes | SectionTimes]) -> float | None:
    """The wake-up of a lane on cores that ranks share; None where nothing was timed under load.

    A mean, since the kernel counts idle time in hundredths of a second.
    """
    rests = [s for t in times for s in t.rests_s]
    return fmean(rests) if rests else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """What messages cost inside a host, as far as they were measured; see `Profile`."""

    loopback: LoopbackTimes | None
    staging: StagingTimes | None
    device_link: DeviceLinkTimes | None
    collective_share: float | None


def measure_host(workers: Workers, backend: Backend = Backend.AUTO) -> HostTimes:
    """What single messages between ranks of one host cost, copies between devices and the host, and collectives."""
    times = workers.run(ProbeTask(backend))
    return HostTimes(
        loopback=_loopback(times),
        staging=staging_of(times),
        device_link=device_link_of(times),
        collective_share=collective_share(times),
    )


def measure_loopback(workers: Workers, backend: Backend = Backend.AUTO) -> LoopbackTimes | None:
    """What a message between ranks of one host costs, by single messages; None unless ranks 0 and 1 are on one."""
    return measure_host(workers, backend).loopback


def rate_Bps(small: tuple[int, float], large: tuple[int, float]) -> float:
    """Bytes per second by what a small and a large message took, each (bytes, seconds).

    Where the large one took no longer, which chance may do on a busy machine, its own rate: too low, and not endless.
    """
    more_s = large[1] - small[1]
    return (large[0] - small[0]) / more_s if more_s > 0 else large[0] / max(large[1], LEAST_S)


LEAST_S = 1e-9
"""No clock here tells less."""


def staging_of(times: Sequence[RankTimes | ProbeTimes]) -> StagingTimes | None:
    """Copies between a device and its host: medians over ranks; None where no rank computes on a device."""
    ways: tuple[list[CopyTimes], list[CopyTimes]] = [], []
    for t in times:
        if t.copies is None or t.copy_bytes is None:
            continue
        small, large = t.copy_bytes
        for found, (small_s, large_s) in zip(ways, t.copies, strict=True):
            bandwidth_Bps = rate_Bps((small, small_s), (large, large_s))
            found.append(CopyTimes(latency_s=max(small_s - small / bandwidth_Bps, 0.0), bandwidth_Bps=bandwidth_Bps))
    if not ways[0]:
        return None
    out, back = (
        CopyTimes(
            latency_s=median(c.latency_s for c in found),
            bandwidth_Bps=median(c.bandwidth_Bps for c in found),
        )
        for found in ways
    )
    return StagingTimes(out=out, back=back)


def device_link_of(times: Sequence[RankTimes | ProbeTimes]) -> DeviceLinkTimes | None:
    """A message of NCCL's between the devices of ranks 0 and 1, if these are on one host."""
    if len(times) < 2 or times[0].host != times[1].host or not times[0].between_devices:
        return None
    a = times[0]
    if a.small is None or a.large is None:
        return None
    bandwidth_Bps = rate_Bps((a.small_bytes, a.small[0]), (a.large_bytes, a.large[0]))
    return DeviceLinkTimes(
        latency_s=max(a.small[0] - a.small_bytes / bandwidth_Bps, 0.0),
        bandwidth_Bps=bandwidth_Bps,
    )


def collective_share(times: Sequence[RankTimes | ProbeTimes]) -> float | None:
    """What a collective takes of a device: a computation beside it runs at one less that share."""
    slower = [t.beside_collective for t in times if t.beside_collective is not None]
    return max(1 - 1 / median(slower), 0.0) if slower else None


def _loopback(times: Sequence[RankTimes | ProbeTimes]) -> LoopbackTimes | None:
    """Message costs from the probes between ranks 0 and 1, if these are on one host and their messages in its memory.

    A message of n bytes takes `latency_s`, then core time `message_core_s + n byte_core_s` of the host's cores, at no
    more than `bandwidth_Bps`. Core times are those of both processes with all their threads.
    """
    if len(times) < 2 or times[0].host != times[1].host:
        return None
    a, b = times[:2]
    if a.small is None or a.large is None or b.small is None or b.large is None:
        return None
    cores_s = [end[1] for end in (a.small, b.small, a.large, b.large)]
    if None in cores_s:
        return None
    more = a.large_bytes - a.small_bytes
    own = [s for s in cores_s if s is not None]
    small_core_s, large_core_s = own[0] + own[1], own[2] + own[3]
    small_wall_s, large_wall_s = a.small[0], a.large[0]
    byte_core_s = max(large_core_s - small_core_s, 0.0) / more
    message_core_s = max(small_core_s - byte_core_s * a.small_bytes, 0.0)
    dearer = _factor_under_load(times, message_core_s, byte_core_s)
    return LoopbackTimes(
        latency_s=max(small_wall_s - message_core_s / min(a.cores, 2), 0.0),
        message_core_s=dearer * message_core_s,
        byte_core_s=dearer * byte_core_s,
        bandwidth_Bps=rate_Bps((a.small_bytes, small_wall_s), (a.large_bytes, large_wall_s)),
    )


def _factor_under_load(times: Sequence[RankTimes | ProbeTimes], message_core_s: float, byte_core_s: float) -> float:
    """How many times as much messages cost the cores while all ranks compute; 1 where that could not be timed."""
    sections = [m for t in times if isinstance(t, RankTimes) for m in t.messages]
    return factor_under_load(sections, message_core_s, byte_core_s)


def factor_under_load(sections: Sequence[MessageCores], message_core_s: float, byte_core_s: float) -> float:
    """How many times as much messages cost the cores in `sections` as stated; 1 where that could not be timed."""
    stated_s = sum(m.ends * message_core_s + m.nbytes * byte_core_s for m in sections) / 2  # at each of two ends
    core_s = sum(m.core_s for m in sections if m.ends)
    return core_s / stated_s if min(core_s, stated_s) > 0 else 1.0
