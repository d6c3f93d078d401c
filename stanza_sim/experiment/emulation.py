"""Running an experiment in an emulated world: computations that are waits, and ranks in the namespaces of a testbed.

Time in it may be dilated (`stanza_sim.cluster.dilation`): links are slower and waits longer, and what is measured is
divided again. A prediction to compare with is made of what single messages took on the slower links.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.units import format_time
from stanza_sim.cluster import Cluster, Losses
from stanza_sim.cluster.dilation import dilated, perceived
from stanza_sim.execute import Emulation, RankPlace
from stanza_sim.experiment.file import Experiment
from stanza_sim.experiment.rows import Plan
from stanza_sim.profiles.network import NetworkProfile, with_network
from stanza_sim.simulate.lowering.compute_times import compute_seconds

if TYPE_CHECKING:
    from stanza_sim.execute import RunJob
    from stanza_sim.simulate import Prediction
    from stanza_sim.simulate.costs import CostModel
    from stanza_sim.testbed import Testbed


def check_emulated(cluster: Cluster, loaded: Loaded[Experiment]) -> None:
    """Raise `InputError` for what a run with emulated computations would not do as the prediction takes it."""
    where = loaded.source.where("execute", "compute")

    def refuse(what: str, hint: str) -> InputError:
        return InputError(f"{what} cannot be emulated", where=where, hint=hint)

    if loaded.value.simulation.varies:
        raise refuse("jitter and stragglers", "leave simulation.jitter and simulation.straggler out")
    for host in cluster.hosts:
        if host.staging is not None:
            raise refuse(f"copies between devices and memory ({host.name})", "leave staging out of the topology")
        if host.losses != Losses():
            raise refuse(f"what is lost at {host.name}", "leave losses out of the topology")
        if host.intra is not None and len(host.devices) > 1:
            raise refuse(f"{host.intra.kind.value} inside {host.name}", "leave intra out: ranks then use the loopback")


def check_dilated(loaded: Loaded[Experiment], *, testbed: bool) -> None:
    """Raise `InputError` where time is to be dilated on links that nobody can slow down."""
    if loaded.value.execute.dilate != 1 and not testbed:
        what = "only links of a testbed can be slowed down"
        where = loaded.source.where("execute", "dilate")
        raise InputError(what, where=where, hint="add --testbed, or leave dilate out")


def notes_on(cluster: Cluster, dilation: float = 1.0) -> tuple[str, ...]:
    """What a run with emulated computations does in another way than the prediction takes it, in words."""
    found: list[str] = []
    ranks = range(cluster.world_size)
    if any(cluster.on_cores(r) and len(cluster.ranks_on(cluster.placement[r].host)) > 1 for r in ranks):
        what = "ranks of one host compute on its cores, and messages between them take time of these cores"
        found.append(f"{what} in the prediction; emulated computations do not lose that time, so they may be faster")
    if dilation != 1:
        found.append(
            f"dilated {dilation:g} times: links are slower and computations longer; measured times are divided again"
        )
        found.append(
            f"latency, the cost of a message and waking up are not dilated: they weigh {dilation:g} times less than "
            "undilated, in the measurement and in the prediction beside it"
        )
    return tuple(found)


def on_testbed(cluster: Cluster, network: NetworkProfile, dilation: float = 1.0) -> Cluster:
    """`cluster` as a testbed that was calibrated emulates it, by the clock of a dilated run.

    `network` is of the links as they are shaped. What does not scale with the rates, which is all that it has of
    latency and of overhead, takes `dilation` times less by that clock.
    """
    return perceived(with_network(dilated(cluster, dilation), network), dilation)


def dilated_run_notes(
    stated: Cluster, seen: Cluster, jobs: Sequence[RunJob], predictions: Sequence[Prediction]
) -> tuple[str, ...]:
    """What to expect of the dilated runs `jobs`: what a message takes beside its bytes, and how long all will take.

    `seen` is `stated` by the dilated clock.
    """
    took_s = sum(
        p.iteration_s * job.training.iterations * job.dilation for p, job in zip(predictions, jobs, strict=True)
    )
    counts = sorted({job.training.iterations for job in jobs})
    iterations = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    long = f"{len(jobs)} runs of {iterations} iterations will take about {_clock_time(took_s)}"
    ranks = range(stated.world_size)
    far = next(((a, b) for a in ranks for b in ranks if not stated.same_host(a, b)), None)
    if far is None:
        return (long,)
    here, there = (format_time(_first_byte_s(cluster, *far)) for cluster in (seen, stated))
    return f"by the dilated clock a message takes {here} beside its bytes; the topology says {there}", long


def _first_byte_s(cluster: Cluster, src: int, dst: int) -> float:
    """What a message from one rank to another takes beside its bytes."""
    a, b = cluster.placement[src].host, cluster.placement[dst].host
    return cluster.hosts[a].nic.overhead_s + sum(cluster.links[q].latency_s for q in cluster.route(a, b))


def _clock_time(seconds: float) -> str:
    """Seconds, minutes or hours, in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def emulation_of(
    plan: Plan, cluster: Cluster, costs: Callable[[int], CostModel], *, realtime: bool = False, dilation: float = 1.0
) -> Emulation:
    """What the executor is told to emulate the computations of `plan` with the costs that predict it.

    Ranks share devices as the simulator has it: one computation at a time at full speed on a device, and as many as
    there are cores on a host's cores.
    """
    places = [(p.host, p.device) for p in cluster.placement]
    devices = list(dict.fromkeys(places))
    return Emulation(
        seconds=compute_seconds(plan.schedule, plan.model, costs),
        device=tuple(devices.index(place) for place in places),
        capacity=tuple(float(cluster.hosts[host].cores) if device is None else 1.0 for host, device in devices),
        realtime=realtime,
        dilation=dilation,
    )


def places_in(testbed: Testbed, cluster: Cluster) -> tuple[RankPlace, ...]:
    """Where each rank of `cluster` runs in `testbed`: in its host's namespace, with its messages on the shaped link."""
    return tuple(
        RankPlace(
            host=cluster.hosts[p.host].name,
            prefix=tuple(testbed.exec_prefix(p.host)),
            environment={"GLOO_SOCKET_IFNAME": testbed.interface},
        )
        for p in cluster.placement
    )
