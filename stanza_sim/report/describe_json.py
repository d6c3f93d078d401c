"""What `stanza-sim show --json` prints: clusters, devices and keys as plain JSON values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from stanza_sim.base.keys import Key
from stanza_sim.cluster import Cluster, DeviceSpec
from stanza_sim.report.drawing import Utilisation, busy


def as_json(value: object) -> str:
    """A value as JSON, with an end of line."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def cluster_object(cluster: Cluster, utilisation: Utilisation | None = None) -> dict[str, object]:
    """Hosts, switches, links and the place of each rank; bytes per second and seconds. `busy` is a share of time.

    Of links `utilisation` does not name, `busy` is null; without it there is none.
    """
    links = [
        {
            "label": link.label,
            "kind": str(link.kind.value),
            "bandwidth_Bps": link.bandwidth_Bps,
            "latency_s": link.latency_s,
            **({} if utilisation is None else {"busy": busy(link, utilisation)}),
        }
        for link in cluster.links
    ]
    hosts = [
        {
            "name": host.name,
            "cores": host.cores,
            "devices": list(host.devices),
            "device_speed": host.device_speed,
            "nics": len(cluster.nic_links_of(h)),
            "price_per_hour": host.price_per_hour,
        }
        for h, host in enumerate(cluster.hosts)
    ]
    return {
        "name": cluster.name,
        "description": cluster.description,
        "nodes": cluster.nodes,
        "hosts": hosts,
        "switches": list(cluster.switches),
        "links": links,
        "ranks": [{"host": at.host, "device": at.device} for at in cluster.placement],
    }


def device_object(device: DeviceSpec) -> dict[str, object]:
    """A device's data sheet, constants or efficiencies, and published timings, by the names of their fields."""
    data: dict[str, object] = json.loads(json.dumps(asdict(device), default=dict))
    return data


def keys_object(keys: Iterable[Key]) -> list[dict[str, object]]:
    """Keys of a file: `path`, what it `takes`, `default` (null: to be given) and `meaning`."""
    return [asdict(key) for key in keys]
