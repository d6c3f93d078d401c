"""Tells what a foreign file looks like, by its content, so that one of another kind can be refused by name.

The name of a file says nothing here. What the first `HEAD` bytes do not tell stays unknown.
"""

from __future__ import annotations

import re
import zlib
from enum import Enum

HEAD = 256 * 1024


class Foreign(Enum):
    """A kind of file: what it is called in messages and, where there is one, its `stanza-sim import`."""

    NCCL_TOPO = ("an NCCL topology", "nccl-topo")
    NVIDIA_SMI = ("the output of `nvidia-smi topo -m`", "nvidia-smi")
    SLURM = ("a Slurm topology.conf", "slurm")
    IBNETDISCOVER = ("the output of ibnetdiscover", "ibnetdiscover")
    NCCL_TESTS = ("a log of nccl-tests", "nccl-tests")
    INFRAGRAPH = ("an InfraGraph file", "")
    SIMAI_TOPOLOGY = ("a SimAI topology", "")
    SIMAI_WORKLOAD = ("a SimAI workload", "")
    KINETO = ("a trace of PyTorch's profiler (Kineto)", "")
    PYTORCH_ET = ("a PyTorch execution trace", "")
    CHAKRA = ("a Chakra execution trace", "")
    ASTRA_NETWORK = ("an ASTRA-sim network", "")
    ASTRA_SYSTEM = ("an ASTRA-sim system", "")
    ASTRA_WORKLOAD = ("an ASTRA-sim workload", "")
    HWLOC = ("an hwloc topology", "")
    MSCCL = ("an MSCCL algorithm", "")
    NCCL_GRAPH = ("an NCCL graph dump", "")
    NCCL_LOG = ("a debug log of NCCL", "")
    NVIDIA_SMI_XML = ("the output of `nvidia-smi -q -x`", "")
    NVIDIA_SMI_OTHER = ("output of nvidia-smi other than `topo -m`", "")
    SIMGRID = ("a SimGrid platform", "")
    GRAPHML = ("a GraphML graph", "")
    NETQ = ("a NetQ topology graph", "")
    NODE_LINK = ("a node-link graph in JSON", "")
    TOPOGRAPH = ("a topograph model", "")
    SLURM_YAML = ("a Slurm topology.yaml", "")
    SLURM_CONF = ("a slurm.conf", "")
    IBLINKINFO = ("the output of iblinkinfo", "")
    TRIOSIM = ("a TrioSim trace", "")
    CLUSTER = ("a stanza-sim cluster file", "")
    EXPERIMENT = ("a stanza-sim experiment file", "")
    DEVICE = ("a stanza-sim device file", "")
    NCCL_PROFILE = ("a stanza-sim NCCL platform", "")
    HTML = ("a web page", "")
    BINARY = ("a binary file", "")

    def __init__(self, what: str, command: str) -> None:
        self.what = what
        """What it is called, with its article."""
        self.command = command
        """The KIND of `stanza-sim import` that reads it; empty where none does."""


def looks_like(raw: bytes) -> Foreign | None:
    """Return the kind that a file's bytes look like, packed by gzip or not; None for a text of no known kind."""
    head = raw[:HEAD]
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEAD)
        except zlib.error:
            return Foreign.BINARY
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", errors="replace")
    elif _binary(head):
        found = any(
            word in head for word in (b"is_cpu_op", b"comm_type", b"comm_size", b"COMP_NODE", b"COMM_COLL_NODE")
        )
        return Foreign.CHAKRA if found else Foreign.BINARY
    else:
        text = head.decode("utf-8-sig", errors="replace")
    text = text.replace("\r\n", "\n")
    start = text.lstrip()[:1]
    if start == "<":
        return _xml(text)
    if start == "{" or (start == "[" and re.match(r"\s*\[\s*[{\[\]]", text)):
        return _json(text)
    return _text(text)


def _binary(head: bytes) -> bool:
    """Whether these bytes are no text: some are control characters that no text has."""
    controls = sum(head.count(bytes([c])) for c in range(32) if c not in b"\t\n\r\f\x1b\x08")
    return b"\0" in head[:4096] or controls * 20 > len(head) or (controls > 0 and head.startswith(b"\x0a\x05"))


def _xml(text: str) -> Foreign | None:
    doctype, at = "", 0
    while begun := re.compile(r"\s*<(\?|!--|!DOCTYPE\b)", re.IGNORECASE).match(text, at):
        end = {"?": "?>", "!--": "-->"}.get(begun[1], ">")
        if begun[1].upper() == "!DOCTYPE":
            named = re.compile(r"\s+([\w:.-]+)").match(text, begun.end())
            doctype = named[1] if named else ""
        if (stop := text.find(end, begun.end())) < 0:
            break
        at = stop + len(end)
    root = re.compile(r"[^<]*<([A-Za-z_][\w:.-]*)").match(text, at)
    match (root[1] if root else doctype).lower():
        case "system":
            return Foreign.NCCL_TOPO
        case "topology" | "root" if "<object" in text or "hwloc" in text:
            return Foreign.HWLOC
        case "algo":
            return Foreign.MSCCL
        case "graphs":
            return Foreign.NCCL_GRAPH
        case "graphml":
            return Foreign.GRAPHML
        case "nvidia_smi_log":
            return Foreign.NVIDIA_SMI_XML
        case "platform":
            return Foreign.SIMGRID
        case "html":
            return Foreign.HTML
    return None


# Every pattern of an entry has to be found; the first entry of which that is so decides. None of them is to backtrack
# over more than a line, since files may be hostile.
_JSON: tuple[tuple[Foreign, tuple[str, ...]], ...] = (
    (Foreign.KINETO, (r'"traceEvents"|"deviceProperties"|"ph" ?: ?"[A-Za-z]"',)),
    (Foreign.PYTORCH_ET, (r'"nodes"', r'"(op_schema|rf_id|ctrl_deps|fw_parent)"')),
    (Foreign.CHAKRA, (r'"(COMP_NODE|COMM_COLL_NODE|comm_type|is_cpu_op)"',)),
    (
        Foreign.ASTRA_SYSTEM,
        (r'"(scheduling-policy|all-reduce-implementation|endpoint-delay|preferred-dataset-splits)"',),
    ),
    (Foreign.ASTRA_NETWORK, (r'"(npus_count|npus-count|topologies-per-dim|dimension-type)"',)),
    (Foreign.INFRAGRAPH, (r'"(infrastructure|devices)"', r'"(components|instances)"', r'"(links|edges)"')),
    (Foreign.NETQ, (r'"compounded_links"',)),
    (Foreign.NCCL_PROFILE, (r'"(inside|across)(_share)?"', r'"(overhead|launch|ramp)"')),
    (Foreign.NODE_LINK, (r'"nodes"', r'"(links|edges)"')),
)
_TAG = r"^(?:\[\S+\]<std\w+>:)?#[ \t]*"  # mpirun marks whose output a line is
_GPU = r"^[ \t]*(?:\x1b\[\d*m[ \t]*)?GPU\d+(?:\x1b\[0?m)?[ \t]+"  # nvidia-smi underlines the header
_CONTENT: tuple[tuple[Foreign, tuple[str, ...]], ...] = (
    (Foreign.NCCL_TESTS, (rf"{_TAG}(?:nThread[ \t]+\d|size[ \t]+count[ \t]+type|Rank[ \t]+\d+ .*Pid[ \t]+\d)",)),
    (Foreign.NCCL_LOG, (r"\bNCCL (?:INFO|WARN|TRACE)\b",)),
    (Foreign.IBNETDISCOVER, (r'^(?:(?:Switch|Ca|Rt)[ \t]+\d+[ \t]+"|(?:switchguid|caguid)=0x)',)),
    (Foreign.IBLINKINFO, (r"^(?:CA|Switch): |==\([ \t]*\d+X[ \t]+[\d.]+ Gbps",)),
    (Foreign.NVIDIA_SMI, (rf"{_GPU}(?:GPU\d|NIC0|mlx|CPU|NUMA|X\b|NV\d|PIX|PXB|PHB|NODE|SYS)",)),
    (Foreign.NVIDIA_SMI_OTHER, (r"\bNVIDIA-SMI\b|^=+NVSMI LOG=+|^GPU \d+: .*\(UUID: GPU-",)),
    (Foreign.SLURM, (r"(?i)^[ \t]*(?:SwitchName|BlockName|BlockSizes)[ \t]*=",)),
    (Foreign.SLURM_CONF, (r"(?i)^[ \t]*(?:NodeName|PartitionName|SlurmctldHost|ClusterName)[ \t]*=",)),
    (Foreign.SIMAI_WORKLOAD, (r"\A\s*\S+ .*(?:model_parallel_NPU_group|all_gpus|checkpoint_initiates)[ \t]*:",)),
    (
        Foreign.ASTRA_WORKLOAD,
        (r"\A\s*(?:DATA|MODEL|HYBRID\w*|MICRO|TRANSFORMER\w*|DLRM\w*)[ \t]*\n[ \t]*\d+[ \t]*\n\S+[ \t]+-?\d",),
    ),
    (
        Foreign.SIMAI_TOPOLOGY,
        (r"\A\s*\d+ +\d+ +\d+ +\d+ +\d+ +\S+[ \t]*\n[\d ]+\n\d+ +\d+ +[\d.]+[GMK]?bps\b",),
    ),
    (Foreign.TRIOSIM, (r"\A[^\n]*Operator_?cudatime",)),
    (Foreign.NCCL_TESTS, (r"\A[^\n]*\btime_us_out_of_place\b",)),
    (
        Foreign.ASTRA_NETWORK,
        (r"^(?:npus[_-]count[ \t]*:|topology[ \t]*:[ \t]*\[[ \t]*(?:Switch|Ring|FullyConnected))",),
    ),
    (
        Foreign.INFRAGRAPH,
        (r"^(?:infrastructure|[ \t]*(?:-[ \t]*)?components)[ \t]*:", r"^[ \t]*(?:edges|instances|links)[ \t]*:"),
    ),
    (Foreign.SLURM_YAML, (r"^-[ \t]+topology[ \t]*:",)),
    (
        Foreign.EXPERIMENT,
        (
            r"^(?:models|strategies)[ \t]*:",
            r"^(?:cluster|models|defaults)[ \t]*:",
            r"^(?:strategies|cluster)[ \t]*:",
        ),
    ),
    (Foreign.CLUSTER, (r"^hosts[ \t]*:", r"\b(?:cores|nic|devices)[ \t]*:")),
    (
        Foreign.TOPOGRAPH,
        (
            r"^(?:switches|capacity_blocks)[ \t]*:",
            r"^[ \t]+(?:- )?(?:switches|nodes|labels|capacity_blocks)[ \t]*:",
        ),
    ),
    (Foreign.DEVICE, (r"^precisions[ \t]*:",)),
    (
        Foreign.NCCL_PROFILE,
        (r"^(?:memory_share|across_share|across|inside)[ \t]*:", r"^(?:launch|overhead|ramp)[ \t]*:"),
    ),
)


def _json(text: str) -> Foreign | None:
    return _first(_JSON, text)


def _text(text: str) -> Foreign | None:
    return _first(_CONTENT, text)


def _first(kinds: tuple[tuple[Foreign, tuple[str, ...]], ...], text: str) -> Foreign | None:
    return next((kind for kind, patterns in kinds if all(re.search(p, text, re.MULTILINE) for p in patterns)), None)
