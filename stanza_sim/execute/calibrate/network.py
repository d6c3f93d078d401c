"""From single messages on all ranks to a network profile: what is asked of the ranks, and what their answers say.

No torch in this process. One message is under way at a time, and nothing of what is to be predicted is run.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.pair_kinds import PairKind, pair_kind, pairs_to_measure
from stanza_sim.execute.calibrate.answers import MessagesWanted, RankCores
from stanza_sim.execute.calibrate.calibration import measure_host, time_model
from stanza_sim.execute.calibrate.single import Timing, fit, sizes_for
from stanza_sim.execute.calibrate.tasks import CoresTask, MessagesTask
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start.protocol import Workers
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.network import NetworkProfile, PairTimes, Stretch, estimate, machine_of

EVEN, ENOUGH_S = 0.01, 9.0
"""Repeats agree when they differ by no more than this share; messages are not sent again after so many seconds."""
MOST_COUNTS = 5
"""Of counts of ranks that compute at once."""


def calibrate_network(
    workers: Workers,
    cluster: Cluster,
    *,
    testbed: bool,
    realtime: bool = False,
    backend: Backend = Backend.AUTO,
    models: Sequence[tuple[ModelProfile, int]] = (),
    say: Callable[[str], None] = lambda text: None,
) -> NetworkProfile:
    """Measure what single messages between the ranks of `cluster` cost, and what computing on their cores does.

    Also times the blocks of each of `models`, at so many samples, with all ranks at once. `testbed` and `realtime` are
    recorded; the latter asks for real-time scheduling, as a run may. Takes some 10 seconds, beside the models.
    Raises `RunError`.
    """
    load = os.getloadavg()[0]
    found = _Messages(workers, cluster, backend=backend, realtime=realtime)
    ranks = workers.run(CoresTask(_counts(cluster), realtime))
    near = workers.world_size > 1 and cluster.same_host(0, 1)
    on_devices = not all(cluster.on_cores(r) for r in range(cluster.world_size))
    inside = measure_host(workers, backend) if near or (on_devices and not testbed) else None
    timed = []
    for model, samples in models:
        say(f"timing the blocks of {model.name} at {samples} samples on {workers.world_size} ranks")
        timed.append(time_model(workers, model, {b.name: (samples,) for b in model.blocks}, backend=backend))
    first = ranks[0]
    return NetworkProfile(
        cluster=cluster.name,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        testbed=testbed,
        realtime=found.realtime,
        ranks=len(ranks),
        machine=machine_of(
            first.device, first.driver, cores=first.cores, kernel=first.kernel, torch=first.torch_version, load=load
        ),
        pairs=found.pairs(),
        loopback=None if inside is None else inside.loopback,
        staging=None if inside is None else inside.staging,
        device_link=None if inside is None else inside.device_link,
        collective_share=None if inside is None else inside.collective_share,
        stretches=tuple(_stretches(ranks)),
        hop_s=estimate(s for r in ranks for s in r.hops),
        reduce_Bps=estimate(x for r in ranks for x in r.reduce_Bps),
        update_Bps=estimate(x for r in ranks for x in r.update_Bps),
        models=tuple(timed),
    )


def _counts(cluster: Cluster) -> tuple[int, ...]:
    """How many ranks are to compute at once: 1, 2, 4 and so on up to all, of which a machine may have fewer."""
    found: list[int] = []
    k = 1
    while k < cluster.world_size and len(found) < MOST_COUNTS - 1:
        found.append(k)
        k *= 2
    return (*found, min(k, cluster.world_size))


class _Messages:
    """Single messages of each kind of pair, and what they say. Where repeats disagree, long messages are sent again."""

    def __init__(self, workers: Workers, cluster: Cluster, *, backend: Backend, realtime: bool) -> None:
        pairs = pairs_to_measure(cluster)
        self._kinds = [(pair_kind(cluster, a, b), pair_kind(cluster, b, a)) for a, b in pairs]
        sizes = sizes_for([min(there.bottleneck_Bps, back.bottleneck_Bps) for there, back in self._kinds])
        self._pairs = tuple(zip(pairs, sizes, strict=True))
        self._timings: dict[tuple[int, PairKind], list[Timing]] = {}
        self._passes = 0
        self.realtime = realtime
        took_s = self._send(workers, MessagesWanted(pairs=self._pairs, backend=backend, realtime=realtime))
        uneven = tuple((pair, sizes.again) for n, (pair, sizes) in enumerate(self._pairs) if self._uneven(n))
        if uneven and took_s < ENOUGH_S:
            self._send(workers, MessagesWanted(pairs=uneven, backend=backend, realtime=realtime))

    def _send(self, workers: Workers, wanted: MessagesWanted) -> float:
        """Send the messages once more, and keep their timings; how long that took, the same in every process."""
        if not wanted.pairs:
            return 0.0
        ranks = workers.run(MessagesTask(wanted))
        self.realtime = self.realtime and all(r.realtime for r in ranks)
        arrived = {probe: r.clock.to_rank0(at_s) for r in ranks for probe, at_s in r.arrived.items()}
        number_of = {pair: n for n, (pair, _) in enumerate(self._pairs)}
        for r in ranks:
            for s in r.sent:
                place, direction, nbytes, repeat = s.probe
                number = number_of[wanted.pairs[place][0]]
                timing = Timing(
                    nbytes=nbytes,
                    series=(self._passes, direction),
                    repeat=repeat,
                    seconds=arrived[s.probe] - r.clock.to_rank0(s.posted_s),
                    posting_s=s.posting_s,
                )
                self._timings.setdefault((number, self._kinds[number][direction]), []).append(timing)
        self._passes += 1
        return ranks[0].clock.after[0] - ranks[0].clock.before[0]

    def _uneven(self, number: int) -> bool:
        """Whether repeats of a pair's long messages disagree."""
        fits = [fit(self._timings[number, kind], self._pairs[number][1]) for kind in set(self._kinds[number])]
        return any(f.goodput_Bps.low < (1 - EVEN) * f.goodput_Bps.value for f in fits)

    def pairs(self) -> tuple[PairTimes, ...]:
        """What messages of each kind cost; from both directions of a pair where they are of one kind."""
        found: dict[PairKind, PairTimes] = {}
        for (number, kind), timings in self._timings.items():
            pair, sizes = self._pairs[number]
            if kind in found:
                continue
            fitted = fit(timings, sizes)
            source, destination = pair if self._kinds[number][0] == kind else pair[::-1]
            found[kind] = PairTimes(
                sender_Bps=kind.sender_Bps,
                receiver_Bps=kind.receiver_Bps,
                between_Bps=kind.between_Bps,
                source=source,
                destination=destination,
                messages=len(timings),
                latency_s=fitted.latency_s,
                overhead_s=fitted.overhead_s,
                posting_s=fitted.posting_s,
                goodput_Bps=fitted.goodput_Bps,
                burst_bytes=fitted.burst_bytes,
            )
        return tuple(found.values())


def _stretches(ranks: Sequence[RankCores]) -> list[Stretch]:
    """How many times as long a computation takes with several at once."""
    alone = estimate(s for r in ranks for s in r.busy_s[1])
    return [
        Stretch(busy=busy, factor=estimate(s / alone.value for r in ranks for s in r.busy_s[busy]))
        for busy in ranks[0].busy_s
    ]
