"""Running an experiment in an emulated world: computations that are waits, and ranks in the namespaces of a testbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, Losses
from stanza_sim.execute import Emulation, RankPlace
from stanza_sim.experiment.file import Experiment
from stanza_sim.experiment.rows import Plan
from stanza_sim.simulate.lowering.compute_times import compute_seconds

if TYPE_CHECKING:
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


def notes_on(cluster: Cluster) -> tuple[str, ...]:
    """What a run with emulated computations does in another way than the prediction takes it, in words."""
    ranks = range(cluster.world_size)
    if any(cluster.on_cores(r) and len(cluster.ranks_on(cluster.placement[r].host)) > 1 for r in ranks):
        what = "ranks of one host compute on its cores, and messages between them take time of these cores"
        return (f"{what} in the prediction; emulated computations do not lose that time, so they may be faster",)
    return ()


def emulation_of(
    plan: Plan, cluster: Cluster, costs: Callable[[int], CostModel], *, realtime: bool = False
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
