"""Finds the communication in a trace of PyTorch's profiler: NCCL's kernels, or what gloo marked, by kind and size.

Newer versions say at the kernel how many elements it moves, or in `record_param_comms`; in older ones the mark of the
process group (`nccl:all_reduce`), within which it was launched, has the shapes. A group that is not said is of all.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.importers.kineto_events import EXTERNAL, OnGpu, Span, Thread, Trace, plain
from stanza_sim.schedule import CollectiveKind
from stanza_sim.simulate.one_collective import OneCollective

_KINDS = {
    "allreduce": CollectiveKind.ALL_REDUCE,
    "reducescatter": CollectiveKind.REDUCE_SCATTER,
    "allgather": CollectiveKind.ALL_GATHER,
    "broadcast": CollectiveKind.BROADCAST,
}
_ITEM = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Byte": 1, "Char": 1, "Bool": 1}
_KERNEL = re.compile(r"(?:nccl|rccl|mscclpp)\w*?_?(AllReduce|ReduceScatter|AllGather|Broadcast|SendRecv|Reduce)", re.I)
_MARK = re.compile(r"(?:nccl|gloo|mpi|ucc):_?(\w+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """Collectives of one kind and size: how many, of how many ranks and bytes (None: the trace does not say), seconds.

    The least time is the best guess at what the network took: in others a rank waits for those that come later.
    """

    name: str
    kind: CollectiveKind | None
    nbytes: int | None
    ranks: int | None
    count: int
    median_s: float
    least_s: float

    def predicted_s(self, cluster: Cluster) -> float | None:
        """What is predicted of it on the first ranks of a cluster; None where the trace or the cluster cannot tell."""
        if self.kind is None or not self.nbytes or self.ranks is None or not 1 < self.ranks <= cluster.world_size:
            return None
        if any(cluster.on_cores(rank) for rank in range(self.ranks)):
            return None
        return OneCollective(cluster, range(self.ranks)).seconds(self.kind, self.nbytes)


def is_communication(name: str, args: Mapping[str, object]) -> bool:
    """Whether something that ran on a GPU is a collective's kernel, or a message's."""
    return _KERNEL.search(name) is not None or name.lower().startswith("nccl") or "Collective name" in args


def communication(trace: Trace) -> tuple[Communication, ...]:
    """The communication of a trace, in the order of sizes, the largest first."""
    said = {op.named(*EXTERNAL): op.args for op in trace.ops if op.name == "record_param_comms"}
    found: defaultdict[tuple[str, int | None, int | None], list[float]] = defaultdict(list)
    marks: defaultdict[Thread, list[Span]] = defaultdict(list)
    for mark in trace.marks:
        if _MARK.match(mark.name):
            marks[mark.thread].append(mark)
    for span in trace.on_gpu:
        if is_communication(span.name, span.args):
            args = {**said.get(plain(span.args.get("External id")), {}), **span.args}
            kind, nbytes, ranks = _what(span.name, args)
            if nbytes is None and (within := _around(span, marks)) is not None:
                nbytes = _marked_bytes(within.args)
            found[kind, nbytes, ranks or trace.world_size].append((span.end - span.start) * 1e-6)
    if not found:  # on a CPU what a collective took is what its mark lasted; that of NCCL lasts until it is issued
        for mark in (mark for listed in marks.values() for mark in listed if not mark.name.startswith("nccl")):
            kind = mark.name.partition(":")[2].lower().replace("_", "")
            found[kind, _marked_bytes(mark.args), trace.world_size].append((mark.end - mark.start) * 1e-6)
    rows = [
        Communication(
            name=name,
            kind=_KINDS.get(name),
            nbytes=nbytes,
            ranks=ranks,
            count=len(seconds),
            median_s=median(seconds),
            least_s=min(seconds),
        )
        for (name, nbytes, ranks), seconds in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-(row.nbytes or 0), row.name)))


def _around(span: OnGpu, marks: Mapping[Thread, Sequence[Span]]) -> Span | None:
    """The mark within which something was launched."""
    if span.launched is None:
        return None
    here = marks.get(span.launched[0], ())
    k = bisect_right(here, span.launched[1], key=lambda mark: mark.start) - 1
    return here[k] if k >= 0 and span.launched[1] <= here[k].end else None


def _what(name: str, args: Mapping[str, object]) -> tuple[str, int | None, int | None]:
    """The kind, the bytes in all and the ranks of a kernel."""
    stated = args.get("Collective name")
    kernel = _KERNEL.search(name)
    kind = str(stated) if isinstance(stated, str) and stated else kernel[1] if kernel else "other"
    kind = re.sub(r"[^a-z]", "", kind.lower()).removesuffix("base").removesuffix("coalesced").removesuffix("tensor")
    counts = [args.get(key) for key in ("In msg nelems", "Out msg nelems")]
    most = max((n for n in counts if isinstance(n, int)), default=None)
    item = _ITEM.get(str(args.get("dtype")))
    ranks = args.get("Group size")
    nbytes = most * item if most is not None and item is not None else None
    return kind.strip("_"), nbytes, ranks if isinstance(ranks, int) else None


def _marked_bytes(args: Mapping[str, object]) -> int | None:
    dims, kinds = args.get("Input Dims"), args.get("Input type")
    if not (isinstance(dims, list) and dims and isinstance(kinds, list) and kinds):
        return None
    total = 0
    for shape, kind in zip(dims, kinds, strict=False):
        if isinstance(shape, list) and all(isinstance(n, int) for n in shape):
            item = {"float": 4, "double": 8, "long int": 8, "c10::Half": 2, "c10::BFloat16": 2}.get(str(kind), 4)
            total += prod(shape) * item if shape else 0
    return total or None
