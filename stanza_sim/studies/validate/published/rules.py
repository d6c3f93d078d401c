"""What a published row says about cluster and experiment, by stated rules: the only place that knows sources' words.

`RULES` says them in words. Constants are those of platforms, each with its source; none belongs to a single row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from stanza_sim import strategies
from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.base.located import Source
from stanza_sim.cluster import Cluster, load
from stanza_sim.cluster.topology import TopologySection
from stanza_sim.model.profile import ModelProfile, Throughput, with_fused_tensors
from stanza_sim.studies.validate.published.names import model_of, stand_ins
from stanza_sim.studies.validate.published.suite import Causes, PublishedSuite
from stanza_sim.studies.validate.published.tables import TrainingRow

RULES = """\
Cluster: as many hosts as stated on one switch, with NICs of `nic_gbps`. GPUs inside a host talk over NVLink, or over
a tree of PCIe switches with up to 4 GPUs each, two sockets from 5 GPUs on, and host memory.

Computation: the device's costs spread the time of a step over blocks and phases; where the source states one GPU's
throughput, all of it is scaled to that. Then a P100 stands in for a GPU that has no device file, and fp32 for a
precision that its file lacks. The slowest of all GPUs sets the pace (`losses.device_spread`). Models: shipped tables,
BERT and GPT-2 by their published sizes, or torchvision's and timm's, extracted.

Transport: rdma as stated; gRPC for servers of TensorFlow over hosts (on networks of 80 Gb/s and more that of a
supercomputer); MPI for horovod_mpi; else TCP, with EC2's limit of a flow where source or notes name EC2, AWS or an
overlay network. Presets: stanza_sim/data/transports.

all_reduce, ddp, names with nccl, and TensorFlow's other modes: all_reduce in PyTorch's buckets; horovod: in fusion
buffers. With these, and with TensorFlow's servers, a rank begins an iteration when it is through with the one before.

tf_ps_cpu: a server on each host's CPU, from which parameters are pulled at the beginning of a step; tf_ps_gpu,
mxnet_kv_single and mxnet_dist_device_sync on one host: shards beside all GPUs, whole tensors. tf_distributed:
`servers` (one a host) on hosts' CPUs, balanced by bytes; each host sums up its gradients, and each GPU pulls
parameters as soon as they are updated; with distributed_replicated one GPU of a host pulls them. From 48 GPUs on,
small tensors of a block are exchanged as one of up to 2 MB.

mxnet_dist_device_sync on several hosts: shards beside GPUs, MXNet's assignment, hosts add up first; byteps: BytePS's
assignment, co-located or on CPU machines of their own; sharded_head: all samples in one batch.

NCCL: all-reduces on dgx-a100-16, up to 8 GPUs on one host, more on the fewest hosts that share them out evenly. One
GPU: costs without any factor of a measured model; with the optimiser's update unless the framework says forward and
backward only, launched from Python unless it says CUDA graphs or compile, or is TensorFlow or MXNet.

Scored: rows that are usable, of several GPUs, with one GPU's throughput; all-reduces of 256 KiB and more; every row
of one GPU.
"""

NVLINK = {"P100": "80GB/s", "V100": "150GB/s", "A100": "300GB/s", "H100": "450GB/s"}
"""Each direction of a GPU's NVLinks together (NVIDIA's data sheets: 4 x 20, 6 x 25, 12 x 25 and 18 x 25 GB/s)."""
NVLINK_EFFICIENCY = 0.78
"""What bulk copies reach of it, as `topologies/multi-gpu.yaml` has it."""
PCIE = {"K80": "15.75GB/s", "P100": "15.75GB/s", "V100": "15.75GB/s", "A100": "31.5GB/s", "H100": "63GB/s"}
"""PCIe 3.0, 4.0 and 5.0 x16, each direction."""
PCIE_EFFICIENCY = 0.78
"""What bulk copies reach of it, as the shipped topologies have it."""
HOST_LINK = "6.1GB/s"
"""Between a device with NVLink and the host's memory: half of PCIe 3.0 x16, since two devices share a switch."""
HOST_MEMORY = "61GB/s"
"""A socket with four channels of DDR4-1866 or so, in the shipped topologies as well."""
FUSED_FROM, FUSED_BYTES = 48, 2_000_000
"""From so many GPUs on, small tensors of a block are counted as one, so that all rows are predicted in a minute."""
HPC_GBPS = 80
"""TCP on a network of this rate, of the years of TensorFlow 1.x, is IP over a supercomputer's interconnect."""
SOCKET_RATE = "30GB/s"
"""Two QPI links of 9.6 GT/s between the sockets of a host, less their overhead; as in the shipped topologies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a row is predicted with: a cluster, a model with its single-GPU throughput, a strategy and a precision."""

    topology: Mapping[str, object]
    model: ModelProfile
    strategy: str
    settings: Mapping[str, object]
    batch: int
    precision: str
    nccl: bool

    def cluster(self) -> Cluster:
        """The cluster, built as from a topology file."""
        source = Source(file="the row's cluster", lines={})
        section = config.validate(dict(self.topology), TopologySection, source)
        built = load.Builder(topology=section, source=source, path=Path("topology.yaml")).build(None, None)
        return built if self.nccl else replace(built, uses_nccl=False)

    def words(self) -> str:
        """The setup on one line."""
        given = ", ".join(f"{key}: {value}" for key, value in self.settings.items())
        return f"{self.strategy} {{{given}}}, {self.precision}, {self.topology}"


def setup_of(row: TrainingRow, suite: PublishedSuite) -> Setup:
    """What `row` is predicted with. Raises `InputError` for a row that says what we cannot predict."""
    calibrated = row.single_gpu_samples_per_s is not None
    device, precision = stand_ins(row.gpu, row.precision, calibrated=calibrated)
    model = model_of(row.model, row.classes)
    if row.single_gpu_samples_per_s is not None:
        known_of = Throughput(device=device.name, samples_per_s=row.single_gpu_samples_per_s, batch=row.batch_per_gpu)
        model = replace(model, throughput=(known_of,))
    if row.gpus >= FUSED_FROM:
        model = with_fused_tensors(model, FUSED_BYTES)
    way = way_of(row, suite.causes)
    return Setup(
        topology=_topology(row, device.name, way, suite),
        model=model,
        strategy=way.strategy,
        settings=way.settings,
        batch=row.batch_per_gpu,
        precision=precision,
        nccl=suite.causes.nccl and way.transport != "mpi",
    )


# ---- strategies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a row trains: a strategy with settings, where its servers run, and which transport its messages take.

    `cpu_servers` are processes on hosts' CPUs, one on each of the first hosts; `server_hosts` are machines of their own
    without GPUs. `barrier` says that no rank begins an iteration before it is through with the one before.
    """

    strategy: str
    settings: dict[str, object]
    cpu_servers: int = 0
    server_hosts: int = 0
    transport: str = ""
    barrier: bool = False


def way_of(row: TrainingRow, causes: Causes) -> Way:
    """How `row` trains. Raises `InputError` for a strategy that we do not have."""
    name, several = row.strategy, row.gpus_per_host > 1
    local: dict[str, object] = {"local": row.gpus_per_host} if several else {}
    if row.gpus == 1:
        return Way(strategy="local", settings={})
    servers = min(row.servers or row.hosts, row.gpus)
    colocated: dict[str, object] = {"placement": "colocated", "servers": servers}
    tensorflow = name.startswith("tf_")
    if name.startswith("horovod"):
        transport = "mpi" if name.endswith("mpi") else ""
        return Way(strategy="all_reduce", settings={"fusion": "horovod"}, transport=transport, barrier=True)
    if re.search("all_?reduce|ddp|nccl|ring", name):
        return Way(strategy="all_reduce", settings={}, barrier=True)
    if name == "sharded_head":
        return Way(strategy="sharded_head", settings={"fc_compute": "batch"})
    if tensorflow and "ps" not in name.split("_") and not name.startswith("tf_distributed"):
        return Way(strategy="all_reduce", settings={}, barrier=True)
    if name.startswith("tf_distributed"):
        sums = local if "replicated" in name or not several else {**local, "share_pulls": False}
        on_cpu = causes.cpu_servers and servers <= row.hosts
        where = {"servers": servers} if on_cpu else colocated
        kept = servers if on_cpu else 0
        return Way(
            strategy="parameter_server", settings={**where, **sums}, cpu_servers=kept, transport="grpc", barrier=True
        )
    if name == "tf_ps_cpu" and causes.cpu_servers:
        settings: dict[str, object] = {"servers": row.hosts, "pull": "step"}
        return Way(strategy="parameter_server", settings=settings, cpu_servers=row.hosts, barrier=True)
    if name.startswith(("tf_ps", "mxnet_kv")) or (name.startswith("mxnet_dist") and row.hosts == 1):
        steps = {"pull": "step"} if tensorflow else {}
        where = {**colocated, "servers": row.gpus}
        return Way(strategy="parameter_server", settings={**where, **steps}, barrier=tensorflow)
    if name.startswith("mxnet_dist"):
        return Way(strategy="parameter_server", settings={**colocated, "assignment": "mxnet", **local})
    if name.startswith("byteps"):
        pieces: dict[str, object] = {"assignment": "byteps", **local}
        if "cpu_servers" in name:
            return Way(strategy="parameter_server", settings={**pieces, "servers": servers}, server_hosts=servers)
        return Way(strategy="parameter_server", settings={**colocated, **pieces})
    raise InputError(f"strategy {name!r} is none that is predicted", hint="see the rules of --dry-run")


# ---- clusters -------------------------------------------------------------------------------------------------------


def _topology(row: TrainingRow, device: str, way: Way, suite: PublishedSuite) -> dict[str, object]:
    causes, losses = suite.causes, suite.losses
    host: dict[str, object] = {"name": "node", "count": row.hosts, "cores": 32, "devices": [device] * row.gpus_per_host}
    nic: dict[str, object] = {"rate": "10Gbps"}
    if row.hosts > 1 or way.server_hosts:
        if not row.nic_gbps:
            raise InputError("nic_gbps is not stated", hint="several hosts need the rate of their NICs")
        preset = _transport(row, way) if causes.transports else "rdma"
        nic = {"preset": preset, "rate": f"{row.nic_gbps:g}Gbps"}
    elif way.transport == "mpi" and causes.transports:
        nic = {"preset": "mpi", "rate": "10Gbps"}
    host["nic"] = nic
    if row.gpus_per_host > 1 or way.cpu_servers:
        host["intra"] = _intra(row, device, causes)
    if causes.spread:
        host["device_spread"] = losses.device_spread
    if causes.framework:
        host["losses"] = {
            "collective_share": losses.collective_share if way.strategy == "all_reduce" else 0.0,
            "overhead_per_device": f"{losses.overhead_per_device * 1e6:g}us",
            "barrier": way.barrier,
        }
    topology: dict[str, object] = {"name": "published", "hosts": [host], "switches": [{"name": "switch"}]}
    if way.cpu_servers:
        host["reduce_rate"] = f"{losses.cpu_reduce_rate / 1e9:g}GB/s"
        names = [f"node-{h}" for h in range(row.hosts)]
        workers = [name for name in names for _ in range(row.gpus_per_host)]
        topology["placement"] = workers + [f"{name}/cpu" for name in names[: way.cpu_servers]]
    if way.server_hosts:
        server = {"name": "server", "count": way.server_hosts, "cores": 32, "nic": nic}
        topology["hosts"] = [host, {**server, "reduce_rate": f"{losses.cpu_reduce_rate / 1e9:g}GB/s"}]
    return topology


def _transport(row: TrainingRow, way: Way) -> str:
    """The preset of a row's transport: its framework's, else that of the wire."""
    if way.transport == "grpc" and row.nic_gbps >= HPC_GBPS and row.transport == "tcp":
        return "grpc-hpc"
    if way.transport:
        return way.transport
    if row.transport == "rdma":
        return "rdma"
    said = " ".join((row.source, row.place, row.notes)).lower()
    return "tcp-ec2" if re.search(r"ec2|aws|overlay", said) else "tcp"


def _intra(row: TrainingRow, device: str, causes: Causes) -> dict[str, object]:
    if row.intra == "nvlink" and device in NVLINK:
        nvlink = {"kind": "nvlink", "rate": NVLINK[device], "efficiency": NVLINK_EFFICIENCY, "latency": "2us"}
        return {**nvlink, "host_link": HOST_LINK}
    flat = {"kind": "pcie", "rate": PCIE.get(device, PCIE["V100"]), "efficiency": PCIE_EFFICIENCY, "latency": "2us"}
    if not causes.pcie_tree:
        return flat
    tree = {"per_switch": min(4, row.gpus_per_host), "switch_rate": flat["rate"], "host_memory_rate": HOST_MEMORY}
    sockets = 2 if row.gpus_per_host > 4 else 1
    return {**flat, **tree, "sockets": sockets, **({"socket_rate": SOCKET_RATE} if sockets > 1 else {})}


def schedule_settings(setup: Setup) -> BaseModel:
    """The settings as the strategy's own type. Raises `InputError`."""
    return strategies.get(setup.strategy).Settings.model_validate(dict(setup.settings))
