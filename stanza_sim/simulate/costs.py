"""How long computations take on a device that does nothing else: measured where there is a profile, else computed.

Computed costs are a sum over kinds of op where the device has constants for them (`sum_costs`: GPUs), else a roofline.
"""

from __future__ import annotations

from collections.abc import Callable

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import update_passes
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.device import DeviceSpec, load_device
from stanza_sim.model.profile import Block, ModelProfile, Throughput
from stanza_sim.profiles.blocks import Profile, require
from stanza_sim.simulate.cost_model import SGD_PASSES, CostModel, RankCosts
from stanza_sim.simulate.measured_costs import MeasuredCosts
from stanza_sim.simulate.roofline import RooflineCosts, measured_name
from stanza_sim.simulate.server_costs import ServerCosts
from stanza_sim.simulate.sum_costs import Launch, SumCosts, launch_of
from stanza_sim.simulate.throughput import ScaledCosts, check_throughput, with_given_throughput

__all__ = [
    "SGD_PASSES",
    "CostModel",
    "Costs",
    "MeasuredCosts",
    "RankCosts",
    "RooflineCosts",
    "SumCosts",
    "costs_for",
    "device_costs",
    "is_of_device",
    "measured_name",
    "pass_times",
    "throughput_costs",
]


class Costs:
    """The cost model of each rank, by its device and its host's speed. Call it with a rank.

    Devices whose speeds differ by chance (`Host.device_spread`) all compute as fast as the slowest is expected to.
    """

    def __init__(self, cluster: Cluster, make: Callable[[str, float], CostModel]) -> None:
        self._models: dict[object, CostModel] = {}
        self._of_rank: list[CostModel] = []
        together = sum(place.device is not None for place in cluster.placement)
        paces = [host.pace(together) for host in cluster.hosts]
        for rank, place in enumerate(cluster.placement):
            host = cluster.hosts[place.host]
            device, on_cores = cluster.device_of(rank), place.device is None
            speed = host.device_speed if on_cores else paces[place.host]
            reduce_Bps = host.reduce_Bps if on_cores else None
            serves = reduce_Bps is not None and bool(host.devices)
            key = device, speed, reduce_Bps, serves
            if key not in self._models:
                if reduce_Bps is None:
                    self._models[key] = make(device, speed)
                else:
                    self._models[key] = ServerCosts(host, reduce_Bps, None if serves else make(device, speed))
            self._of_rank.append(self._models[key])
        spreads = {host.device_spread for host in cluster.hosts if host.devices and host.device_spread}
        self._note = (
            f"; the slowest of {together} devices, whose speeds spread by {max(spreads):.1%}" if spreads else ""
        )

    def __call__(self, rank: int) -> CostModel:
        """Return the cost model of the device that `rank` computes on."""
        return self._of_rank[rank]

    @property
    def source(self) -> str:
        """The sources of all devices, each once."""
        return "; ".join(dict.fromkeys(model.source for model in self._models.values())) + self._note


def pass_times(
    cluster: Cluster,
    model: ModelProfile,
    precision: str = "fp32",
    profile: Callable[[], Profile | None] = lambda: None,
    *,
    launch: str | Launch = Launch.EAGER,
) -> Callable[[Block, int], tuple[float, float]]:
    """Return what says how long a block's forward and backward pass over so many samples take on rank 0's device.

    It is as `costs_for` says, which is first asked when a time is asked for.
    """
    known: list[CostModel] = []

    def times(block: Block, samples: int) -> tuple[float, float]:
        if not known:
            known.append(costs_for(cluster, model, precision, profile(), launch=launch)(0))
        return known[0].forward_s(block, samples), known[0].backward_s(block, samples)

    return times


def is_of_device(profile: Profile, device: DeviceSpec) -> bool:
    """Return whether a profile was measured on such a device (`cpu` is any CPU; GPUs by the name in their driver's)."""
    kind, _, name = profile.device.lower().partition(" ")
    return kind == "cpu" if device.name == "cpu" else kind != "cpu" and device.name.lower() in name


def device_costs(
    device: DeviceSpec,
    model: ModelProfile,
    precision: str = "fp32",
    speed: float = 1.0,
    *,
    launch: str | Launch = Launch.EAGER,
) -> CostModel:
    """Return computed costs of a device that is `speed` times as fast; `launch` is how kernels reach a GPU.

    A roofline has no use for `launch`. Raises `InputError` for another launch mode and for a precision that the device
    has no data for.
    """
    mode = launch_of(launch)
    if device.precision(precision).constants is not None:
        return SumCosts(device, model, precision, speed, launch=mode)
    return RooflineCosts(device, model, precision, speed)


def throughput_costs(
    device: str,
    model: ModelProfile,
    precision: str,
    samples_per_s: float,
    batch: int,
    *,
    speed: float = 1.0,
    launch: str | Launch = Launch.EAGER,
) -> CostModel:
    """Return costs of a device, by name, that trains `model` at `samples_per_s` with `batch` samples a step.

    Raises `InputError` for a device that is not there or has no data for the precision, and for a rate or a batch that
    is not positive.
    """
    given = Throughput(device=device, samples_per_s=samples_per_s, batch=batch)
    base = device_costs(load_device(device), model, precision, speed, launch=launch)
    return ScaledCosts(base, model, given, speed)


def costs_for(
    cluster: Cluster,
    model: ModelProfile,
    precision: str = "fp32",
    profile: Profile | None = None,
    *,
    launch: str | Launch = Launch.EAGER,
    moments: int = 1,
) -> Costs:
    """Return the costs of every rank of `cluster`: the profile's where it is of the rank's device, else computed ones.

    Both are scaled to the throughput that the model has of that device, by an optimiser that keeps `moments` vectors;
    `launch` is for computed costs of GPUs.

    Raises `InputError` if a device has no data for the precision, if a profile is given that is of another model or
    precision or of none of the cluster's devices, and if the model has throughputs but of none of these devices.
    """
    check_throughput(model, cluster)
    if profile is not None:
        require(profile, model, precision)
    used: list[str] = []

    def make(name: str, speed: float) -> CostModel:
        device = load_device(name)
        if profile is not None and is_of_device(profile, device):
            used.append(name)
            costs: CostModel = MeasuredCosts(profile, model, precision, speed)
        else:
            costs = device_costs(device, model, precision, speed, launch=launch)
        return with_given_throughput(costs, model, name, speed, update_passes(moments))

    costs = Costs(cluster, make)
    if profile is not None and not used:
        names = sorted({cluster.device_of(rank) for rank in range(cluster.world_size)})
        raise InputError(
            f"the profile was measured on {profile.device}, the ranks of {cluster.name} compute on {', '.join(names)}",
            hint="leave the profile out, or measure one on that device with --execute --save-profile",
        )
    return costs
