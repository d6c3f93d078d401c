"""Logs of nccl-tests as that program prints them, with times that a test gives."""

from __future__ import annotations

from collections.abc import Iterable

from stanza_sim.schedule import CollectiveKind

HEAD = """\
# nccl-tests version 2.17.8 nccl-headers=22809 nccl-library=22809
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 4 minBytes 8 maxBytes 1073741824 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1
#
"""
COLUMNS = """\
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
"""
TAIL = "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 42.1\n#\n"


def ranks(hosts: int, per_host: int, *, processes: int = 1, device: str = "NVIDIA A100-SXM4-40GB") -> str:
    """The lines of the header that say where each rank is; each host has `processes`."""
    rows = ["# Using devices\n"]
    for h in range(hosts):
        for d in range(per_host):
            rank, pid = h * per_host + d, 4000 + 100 * h + d * processes // per_host
            rows.append(f"#  Rank {rank:2d} Group  0 Pid {pid:6d} on a100-{h} device {d:2d} [0000:0{d}:00] {device}\n")
    return "".join(rows)


def line(
    nbytes: int, time_us: float, n: int = 2, kind: CollectiveKind = CollectiveKind.ALL_REDUCE, wrong: str = "0"
) -> str:
    """One size; bus bandwidth by nccl-tests' own factors."""
    redop = "sum" if kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER) else "none"
    root = 0 if kind is CollectiveKind.BROADCAST else -1
    algbw = nbytes / time_us / 1e3 if time_us else 0.0
    factor = {CollectiveKind.ALL_REDUCE: 2 * (n - 1) / n, CollectiveKind.BROADCAST: 1.0}.get(kind, (n - 1) / n)
    half = f"{time_us:8.2f}  {algbw:6.2f}  {algbw * factor:6.2f}  {wrong:>5}"
    return f"{nbytes:12d}  {nbytes // 4:12d}     float  {redop:>6}  {root:6d}  {half}  {half}\n"


def log(
    times: Iterable[tuple[int, float]],
    *,
    hosts: int = 1,
    per_host: int = 4,
    kind: CollectiveKind = CollectiveKind.ALL_REDUCE,
    program: str = "all_reduce_perf",
    wrong: str = "0",
) -> str:
    """A whole log: (bytes, microseconds) of each size."""
    rows = "".join(line(nbytes, us, hosts * per_host, kind, wrong) for nbytes, us in times)
    head = HEAD.replace("all_reduce_perf", program).replace("nGpus 4", f"nGpus {per_host}")
    return head + ranks(hosts, per_host) + COLUMNS + rows + TAIL
