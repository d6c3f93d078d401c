"""How well hardware and money are used: the model's FLOPs against the devices' peaks, and what hosts cost.

Counted are the ranks that a schedule gives something to do, what they compute on, and their hosts.
"""

from __future__ import annotations

from math import isfinite

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.cluster import Cluster
from stanza_sim.cluster.device import load_device
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule, Transfer


def sample_flops(model: ModelProfile) -> int:
    """FLOPs of forward and backward pass of a sample, a multiply-add is two. What is computed again is left out."""
    return sum(b.forward_flops + b.backward_input_flops + b.backward_weight_flops - b.again_flops for b in model.blocks)


def working_ranks(schedule: Schedule) -> list[int]:
    """Ranks that have an op, ascending."""
    names: set[str] = set()
    for op in schedule.ops:
        names |= {op.src, op.dst} if isinstance(op, Transfer) else {op.ranks}
    return sorted({rank for name in names for rank in schedule.group(name)})


def peak_flops(schedule: Schedule, cluster: Cluster, precision: Precision) -> float | None:
    """FLOP/s that all that a schedule computes on has by its data sheets; None where one states no such `precision`.

    Devices count once, whoever shares them; a rank on cores counts as one core, and not beside devices.
    """
    ranks = working_ranks(schedule)
    on_devices = [rank for rank in ranks if not cluster.on_cores(rank)]
    places = {(p.host, p.device) for p in (cluster.placement[rank] for rank in on_devices)}
    names = [cluster.hosts[host].devices[device] for host, device in places if device is not None]
    if not on_devices:
        names = ["cpu"] * len(ranks)
    peaks: dict[str, float] = {}
    try:
        for name in set(names):
            peaks[name] = load_device(name).precision(precision).peak_flops
    except InputError:
        return None
    return sum(peaks[name] for name in names)


def flops_utilisation(
    schedule: Schedule, model: ModelProfile, cluster: Cluster, precision: Precision, samples_per_s: float
) -> float | None:
    """The share of the devices' peak that the model's own FLOPs are (MFU); None where no peak is known.

    Source: Chowdhery et al., PaLM, JMLR 2023: what is computed twice (checkpointing) counts once.
    """
    peak = peak_flops(schedule, cluster, precision)
    return samples_per_s * sample_flops(model) / peak if peak and isfinite(samples_per_s) else None


def price_per_hour(schedule: Schedule, cluster: Cluster) -> float | None:
    """What the hosts of a schedule cost, in dollars an hour; None unless all of them state it."""
    hosts = {cluster.placement[rank].host for rank in working_ranks(schedule)}
    prices = [cluster.hosts[host].price_per_hour for host in sorted(hosts)]
    stated = [price for price in prices if price is not None]
    return sum(stated) if len(stated) == len(prices) else None


def unpriced(schedule: Schedule, cluster: Cluster) -> tuple[str, ...]:
    """A sentence where some hosts state what they cost and others do not."""
    hosts = sorted({cluster.placement[rank].host for rank in working_ranks(schedule)})
    without = [cluster.hosts[host].name for host in hosts if cluster.hosts[host].price_per_hour is None]
    if not without or len(without) == len(hosts):
        return ()
    more = f" and {len(without) - 1} more" if len(without) > 1 else ""
    return (f"no samples per dollar: {without[0]}{more} of {len(hosts)} hosts without price_per_hour",)
