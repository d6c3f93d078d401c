"""What a published row says about cluster and experiment, by stated rules: the only place that knows sources' words.

`RULES` says them in words. Constants are those of platforms, each with its source; none belongs to a single row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stanza_sim import strategies
from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.base.located import Source
from stanza_sim.cluster import Cluster, load
from stanza_sim.cluster.topology import TopologySection
from stanza_sim.model.profile import ModelProfile, Throughput
from stanza_sim.studies.validate.published.names import device_name, model_of, precision_of
from stanza_sim.studies.validate.published.suite import Causes, Losses, PublishedSuite
from stanza_sim.studies.validate.published.tables import TrainingRow

RULES = """cluster: as many hosts as stated, one switch; GPUs inside a host over what `intra` says."""

NVLINK = {"P100": "80GB/s", "V100": "150GB/s", "A100": "300GB/s", "H100": "450GB/s"}
"""Each direction of a GPU's NVLinks together (NVIDIA's data sheets: 4 x 20, 6 x 25, 12 x 25 and 18 x 25 GB/s)."""
NVLINK_EFFICIENCY = 0.78
"""What bulk copies reach of it, as `topologies/multi-gpu.yaml` has it."""
PCIE = {"K80": "12GB/s", "P100": "12GB/s", "V100": "12GB/s", "A100": "24GB/s", "H100": "48GB/s"}
"""PCIe 3.0, 4.0 and 5.0 x16: 15.75, 31.5 and 63 GB/s, of which bulk copies reach about three quarters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a row is predicted with: a cluster, a model with its single-GPU throughput, a strategy and a precision."""

    topology: Mapping[str, object]
    model: ModelProfile
    strategy: str
    settings: Mapping[str, object]
    batch: int
    precision: str

    def cluster(self) -> Cluster:
        """The cluster, built as from a topology file."""
        source = Source(file="the row's cluster", lines={})
        section = config.validate(dict(self.topology), TopologySection, source)
        return load.Builder(topology=section, source=source, path=Path("topology.yaml")).build(None, None)

    def words(self) -> str:
        """The setup on one line."""
        given = ", ".join(f"{key}: {value}" for key, value in self.settings.items())
        return f"{self.strategy} {{{given}}}, {self.precision}, {self.topology}"


def setup_of(row: TrainingRow, suite: PublishedSuite) -> Setup:
    """What `row` is predicted with. Raises `InputError` for a row that says what we cannot predict."""
    device = device_name(row.gpu)
    if device is None:
        known = ", ".join(name for name in config.available(config.Kind.DEVICES) if name != "cpu")
        raise InputError(f"there is no device for {row.gpu!r}", hint=f"the devices are {known}")
    model = model_of(row.model, row.classes)
    if row.single_gpu_samples_per_s is not None:
        known_of = Throughput(device=device, samples_per_s=row.single_gpu_samples_per_s, batch=row.batch_per_gpu)
        model = replace(model, throughput=(known_of,))
    name, settings = strategy_of(row, suite.causes)
    return Setup(
        topology=_topology(row, device, suite.causes, suite.losses),
        model=model,
        strategy=name,
        settings=settings,
        batch=row.batch_per_gpu,
        precision=precision_of(device, row.precision),
    )


# ---- strategies -----------------------------------------------------------------------------------------------------


def strategy_of(row: TrainingRow, causes: Causes) -> tuple[str, dict[str, object]]:
    """Strategy and settings. Raises `InputError` for one that we do not have."""
    name, local = row.strategy, {"local": row.gpus_per_host} if row.gpus_per_host > 1 else {}
    if row.gpus == 1:
        return "local", {}
    colocated: dict[str, object] = {"placement": "colocated"}
    if name.startswith("horovod"):
        return "all_reduce", {"fusion": "horovod"}
    if name in ("all_reduce", "ddp") or "nccl" in name:
        return "all_reduce", {}
    if name.startswith(("tf_ps", "mxnet_kv")):
        return "parameter_server", {**colocated, "servers": row.gpus}
    if name.startswith("tf_distributed"):
        sums = local if "replicated" in name or not local else {**local, "share_pulls": False}
        return "parameter_server", {**colocated, "servers": min(row.servers or row.hosts, row.gpus), **sums}
    if name.startswith("mxnet_dist"):
        if row.hosts == 1:
            return "parameter_server", {**colocated, "servers": row.gpus}
        return "parameter_server", {**colocated, "servers": row.servers or row.hosts, "assignment": "mxnet", **local}
    if name.startswith("byteps"):
        return "parameter_server", {**colocated, "servers": row.servers or row.hosts, "assignment": "byteps", **local}
    if name == "sharded_head":
        return "sharded_head", {"fc_compute": "batch"}
    raise InputError(f"strategy {name!r} is none that is predicted", hint="see the table in accuracy.md")


# ---- clusters -------------------------------------------------------------------------------------------------------


def _topology(row: TrainingRow, device: str, causes: Causes, losses: Losses) -> dict[str, object]:
    host: dict[str, object] = {"name": "node", "count": row.hosts, "cores": 32, "devices": [device] * row.gpus_per_host}
    if row.hosts > 1:
        if not row.nic_gbps:
            raise InputError("nic_gbps is not stated", hint="several hosts need the rate of their NICs")
        host["nic"] = {"preset": _transport(row), "rate": f"{row.nic_gbps:g}Gbps"}
        if not causes.transports:
            host["nic"] |= {"preset": "rdma", "rate": f"{row.nic_gbps:g}Gbps"}
    else:
        host["nic"] = {"rate": "10Gbps"}
    if row.gpus_per_host > 1:
        host["intra"] = _intra(row, device)
    if causes.spread:
        host["device_spread"] = losses.device_spread
    return {"name": "published", "hosts": [host], "switches": [{"name": "switch"}]}


def _transport(row: TrainingRow) -> str:
    """The preset of a row's transport: its framework's, else that of the wire."""
    if row.strategy.startswith("tf_distributed"):
        return "grpc"
    if row.strategy.endswith("mpi"):
        return "mpi"
    if row.transport == "rdma":
        return "rdma"
    said = " ".join((row.source, row.place, row.notes)).lower()
    return "tcp-ec2" if re.search(r"ec2|aws|overlay", said) else "tcp"


def _intra(row: TrainingRow, device: str) -> dict[str, object]:
    if row.intra == "nvlink" and device in NVLINK:
        return {"kind": "nvlink", "rate": NVLINK[device], "efficiency": NVLINK_EFFICIENCY, "latency": "2us"}
    return {"kind": "pcie", "rate": PCIE.get(device, "12GB/s"), "latency": "2us"}


def schedule_settings(setup: Setup) -> object:
    """The settings as the strategy's own type. Raises `InputError`."""
    return strategies.get(setup.strategy).Settings.model_validate(dict(setup.settings))
