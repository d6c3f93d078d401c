"""Small files of other programs, made by hand, and a call of an importer on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stanza_sim import load_cluster
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.importers.asked import Asked
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.native import Imported, check_native
from stanza_sim.importers.reading import ForeignFile, read_foreign

Reader = Callable[[ForeignFile, Asked], Imported]


def imported(
    tmp_path: Path, text: str, kind: Foreign, reader: Reader, **asked: object
) -> tuple[Cluster, list[str], str]:
    """Return the cluster that a file makes, the notes, and the native text; it is checked as the command does."""
    path = tmp_path / "foreign.txt"
    path.write_text(text)
    made = reader(read_foreign(path, kind), Asked(**asked))  # type: ignore[arg-type]
    target = tmp_path / "native.yaml"
    check_native(made.text, str(path), target)
    target.write_text(made.text)
    assert max(map(len, made.text.splitlines())) <= 120
    return load_cluster(target), [note.at("F") for note in made.notes], made.text


NVLINKS = '<nvlink target="0000:c4:00.0" count="6" tclass="0x068000"/>' * 2


def gpu(bus: str, dev: int, *, links: str = NVLINKS, sm: int = 80, device: str = "0x20b0") -> str:
    """A GPU with its PCI device, of 16 lanes at 16 GT/s."""
    return (
        f'<pci busid="0000:{bus}:00.0" class="0x030200" vendor="0x10de" device="{device}"'
        ' link_speed="16.0 GT/s PCIe"'
        f' link_width="16">\n<gpu dev="{dev}" sm="{sm}" rank="{dev}" gdr="1">{links}</gpu></pci>\n'
    )


def nic(bus: str, name: str, speed: int = 200000) -> str:
    """A NIC of one port."""
    return (
        f'<pci busid="0000:{bus}:00.0" class="0x020700" vendor="0x15b3" device="0x101b"'
        ' link_speed="16.0 GT/s PCIe" link_width="16"><nic>\n'
        f'<net name="{name}" dev="0" speed="{speed}" port="1" guid="0x1" gdr="1"/></nic></pci>\n'
    )


def bridge(bus: str, inside: str) -> str:
    """A PCI switch."""
    return (
        f'<pci busid="0000:{bus}:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="16">\n{inside}</pci>\n'
    )


def cpu(numa: int, inside: str, *, family: int = 143, vendor: str = "AuthenticAMD") -> str:
    """A NUMA node of 8 hardware threads."""
    mask = f"{0xFF << 8 * numa:08x}"
    return (
        f'<cpu numaid="{numa}" affinity="00000000,{mask}" arch="x86_64" vendor="{vendor}" familyid="{family}"'
        f' modelid="49">\n{inside}</cpu>\n'
    )


def system(*cpus: str) -> str:
    """A whole file."""
    return f'<system version="1">\n{"".join(cpus)}</system>\n'


VIRTUAL = (
    '<nic>\n<net name="docker0" dev="8" speed="10000" port="0" guid="0x8"/>\n'
    '<net name="calif00" dev="9" speed="10000" port="0" guid="0x9"/></nic>\n'
)
KINDS: dict[Foreign, str] = {
    Foreign.NCCL_TOPO: system(cpu(0, gpu("01", 0))),
    Foreign.NVIDIA_SMI: "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\x1b[0m\nGPU0\t X \tSYS\t0-3\nGPU1\tSYS\t X \t4-7\n",
    Foreign.SLURM: "# made by hand\n switchname=s0 Nodes=n[0-3]\n",
    Foreign.IBNETDISCOVER: '#\nvendid=0x2c9\nSwitch\t40 "S-0001"\t# "leaf" base port 0 lid 1 lmc 0\n',
    Foreign.NCCL_TESTS: "mpirun says\n# nThread 1 nGpus 8 minBytes 8\nx: NCCL INFO Bootstrap\n",
    Foreign.NCCL_LOG: "h:1:1 [0] NCCL INFO Bootstrap : Using eth0\n",
    Foreign.INFRAGRAPH: "infrastructure:\n  devices:\n  - name: dgx\n    components: []\n    links: []\n",
    Foreign.SIMAI_TOPOLOGY: "3 1 0 1 2 A100\n2 \n0 2 100Gbps 0.0005ms 0\n1 2 100Gbps 0.0005ms 0\n",
    Foreign.SIMAI_WORKLOAD: "HYBRID_TRANSFORMER model_parallel_NPU_group: 2 ep: 1 all_gpus: 16\n1\nx\t-1\t1\tNONE\n",
    Foreign.KINETO: '{"schemaVersion": 1, "deviceProperties": [], "traceEvents": [{"ph": "X"}]}',
    Foreign.PYTORCH_ET: '{"schema": "1.0.1", "pid": 1,\n "nodes": [{"name": "a", "id": 2, "rf_id": 0}]}',
    Foreign.CHAKRA: "\n\x050.0.4\x04\x08\x01\x12\x03abcJ\x0fR\x11\n\tis_cpu_op\x10\x00R\x0e\n\tcomm_type\x00",
    Foreign.ASTRA_NETWORK: "topology: [ Ring, Switch ]\nnpus_count: [ 8, 2 ]\nbandwidth: [ 200.0, 50.0 ]\n",
    Foreign.ASTRA_SYSTEM: '{\n "scheduling-policy": "LIFO", "endpoint-delay": 1}',
    Foreign.ASTRA_WORKLOAD: "DATA\n1\nlayer0 -1 1 NONE 0 1 NONE 0 1 ALLREDUCE 64 1\n",
    Foreign.HWLOC: '<?xml version="1.0"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n<topology version="2.0"><object/>',
    Foreign.MSCCL: '<algo name="ring" proto="LL" nchannels="1" ngpus="8" coll="allreduce"><gpu id="0"/></algo>',
    Foreign.NCCL_GRAPH: '<graphs version="1"><graph id="0" pattern="4"/></graphs>',
    Foreign.GRAPHML: '<?xml version="1.0"?><!-- <system> --><graphml xmlns="http://graphml.graphdrawing.org/xmlns"/>',
    Foreign.NETQ: '[\n {"links": [{"compounded_links": []}]}]',
    Foreign.NODE_LINK: '{"nodes": [{"id": 0, "kind": "host"}], "links": []}',
    Foreign.TOPOGRAPH: "# a tree\nswitches:\n  sw1:\n    labels: {a: b}\n    nodes: [n1, n2]\n",
    Foreign.TRIOSIM: "OperatorID,OperatorName,Operator_cudatime\n1,aten::relu,3\n",
    Foreign.SLURM_YAML: "---\n- topology: fabric\n  tree: {switches: []}\n",
    Foreign.SLURM_CONF: "ClusterName=c\nNodeName=n[1-4] CPUs=64\n",
    Foreign.IBLINKINFO: "CA: host0 mlx5_0:\n      0x1 1 1[  ] ==( 4X 25.78125 Gbps Active/  LinkUp)==>\n",
    Foreign.CLUSTER: "name: x\nhosts:\n  - {name: node, cores: 4, nic: {rate: 1Gbps}}\n",
    Foreign.EXPERIMENT: "name: x\ncluster: star\nmodels: []\nstrategies: []\n",
    Foreign.BINARY: "\x7fELF\x02\x01\x01\x00\x00\x00",
}
"""The least of each kind."""
