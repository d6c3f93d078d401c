"""Worlds of faked ranks: what each sees, what its topology says, and what all of them must then decide or say."""

from __future__ import annotations

from dataclasses import dataclass, field

from stanza_sim.execute.rank.decision import RankFacts
from stanza_sim.execute.rank.devices import GpuInfo

SXM, PCIE, V100 = "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "Tesla V100-SXM2-16GB"
MEMORY = {SXM: 85_024_112_640, PCIE: 85_029_158_912, V100: 16_945_512_448}
BANDWIDTH = {SXM: 3.352e12, PCIE: 2.039e12, V100: 898e9}
TWO_BY_TWO = """\
name: two-by-two
hosts:
  - {name: node, count: 2, cores: 8, devices: [H100, H100], intra: {kind: nvlink, rate: 450GB/s}, nic: {rate: 100Gbps}}
switches: [{name: switch}]
"""


def gpu(uuid: str, name: str = SXM, index: int = 0) -> GpuInfo:
    """A faked GPU."""
    return GpuInfo(
        index=index,
        uuid=uuid,
        name=name,
        memory_nbytes=MEMORY.get(name),
        capability=(7, 0) if name == V100 else (9, 0),
        bandwidth_Bps=BANDWIDTH.get(name),
    )


def gpus(*uuids: str, name: str = SXM) -> tuple[GpuInfo, ...]:
    """GPUs as one process sees them, in order."""
    return tuple(gpu(uuid, name, index) for index, uuid in enumerate(uuids))


@dataclass(frozen=True, kw_only=True)
class World:
    """A world: `seen[r]` is what rank r sees on `hosts[r]`.

    `devices` are torch's names of what the ranks take, and `over` the backend; or `error` is a pattern of what all say.
    """

    name: str
    cluster: str
    hosts: str
    seen: tuple[tuple[GpuInfo, ...], ...]
    nodes: int | None = None
    without_nccl: tuple[int, ...] = ()
    backend: str = "auto"
    devices: tuple[str, ...] = ()
    over: str = ""
    error: str = ""
    warning: str = ""
    sharing: tuple[int, ...] = field(default=())

    def local_rank(self, rank: int) -> int:
        """How many ranks before this one are on its host."""
        return self.hosts[:rank].count(self.hosts[rank])

    def facts(self, rank: int, kind: str) -> RankFacts:
        """What `rank` tells of itself."""
        return RankFacts(
            host=f"host-{self.hosts[rank]}",
            machine=self.hosts[rank],
            local_rank=self.local_rank(rank),
            kind=kind,
            gpus=self.seen[rank] if kind == "cuda" else (),
            nccl=rank not in self.without_nccl,
        )


EIGHT = "hgx-h100-8"
BOTH = gpus("a", "b")
TWO = [
    World(
        name="both see two GPUs",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(BOTH, BOTH),
        devices=("cuda:0", "cuda:1"),
        over="nccl",
    ),
    World(
        name="one each, as with --gpus-per-task=1",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(gpus("a"), gpus("b")),
        devices=("cuda:0", "cuda:0"),
        over="nccl",
    ),
    World(
        name="masked to one GPU",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(gpus("a"), gpus("a")),
        error=r"would share a GPU .*: ranks 0 and 1 on host-a have one NVIDIA H100 80GB HBM3(?s:.*)"
        r"use --set cluster=hgx-h100-1; or .* one-gpu-shared",
    ),
    World(
        name="one GPU shared as the topology says",
        cluster="one-gpu-shared",
        nodes=2,
        hosts="aa",
        seen=(gpus("a"), gpus("a")),
        devices=("cuda:0", "cuda:0"),
        over="gloo",
        sharing=(0, 1),
    ),
    World(
        name="shared, but NCCL is wanted",
        cluster="one-gpu-shared",
        nodes=2,
        hosts="aa",
        seen=(gpus("a"), gpus("a")),
        backend="nccl",
        error=r"backend nccl needs a GPU of its own for each rank: ranks 0 and 1 share NVIDIA H100",
    ),
    World(
        name="the topology says shared, and each has its own",
        cluster="one-gpu-shared",
        nodes=2,
        hosts="aa",
        seen=(gpus("a"), gpus("b")),
        error=r"places ranks 0 and 1 on one device, but each sees another GPU",
    ),
    World(
        name="one sees none",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(gpus("a"), ()),
        error=r"rank 1 finds no GPU: rank 0: 1 x NVIDIA H100 80GB HBM3 on host-a; rank 1: none on host-a",
    ),
    World(
        name="none sees any",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=((), ()),
        error=r"the topology has GPUs, but torch finds none",
    ),
    World(
        name="unlike hosts",
        cluster="two-hosts",
        hosts="ab",
        seen=(gpus("a"), gpus("b", name=PCIE)),
        error=r"unlike GPUs, .* H100 .*rank 0: NVIDIA H100 80GB HBM3 on host-a; rank 1: NVIDIA H100 PCIe on host-b",
    ),
    World(
        name="two hosts of one GPU",
        cluster="ec2-p3-10",
        nodes=2,
        hosts="ab",
        seen=(gpus("a", name=V100), gpus("b", name=V100)),
        devices=("cuda:0", "cuda:0"),
        over="nccl",
    ),
    World(
        name="two containers with names of their own, one GPU",
        cluster="ec2-p3-10",
        nodes=2,
        hosts="ab",
        seen=(gpus("a", name=V100), gpus("a", name=V100)),
        error=r"would share a GPU",
    ),
    World(
        name="one torch without NCCL",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(BOTH, BOTH),
        without_nccl=(1,),
        devices=("cuda:0", "cuda:1"),
        over="gloo",
    ),
    World(
        name="one torch without NCCL, which is wanted",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(BOTH, BOTH),
        without_nccl=(1,),
        backend="nccl",
        error=r"the torch of rank 1 has no NCCL",
    ),
    World(
        name="on two hosts, the topology says one",
        cluster=EIGHT,
        nodes=2,
        hosts="ab",
        seen=(gpus("a"), gpus("b")),
        error=r"2 ranks run on 2 hosts \(host-a, host-b\), topology hgx-h100-8 places them on 1",
    ),
    World(
        name="another device",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(gpus("a", "b", name=V100),) * 2,
        error=r"rank 0 has a Tesla V100-SXM2-16GB, topology hgx-h100-8 says H100",
    ),
    World(
        name="slices",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(gpus("a", "b", name=f"{SXM} MIG 1g.10gb"),) * 2,
        error=r"rank 0 has MIG 1g.10gb, a slice of a GPU",
    ),
    World(
        name="another form",
        cluster=EIGHT,
        nodes=2,
        hosts="aa",
        seen=(gpus("a", "b", name=PCIE),) * 2,
        devices=("cuda:0", "cuda:1"),
        over="nccl",
        warning="it is a PCIe part, not SXM; its memory moves 2039 GB/s, not 3350",
    ),
    World(
        name="cores, and GPUs beside them",
        cluster="laptop",
        nodes=2,
        hosts="aa",
        seen=(BOTH, BOTH),
        devices=("cpu", "cpu"),
        over="gloo",
    ),
    World(
        name="NCCL on cores",
        cluster="laptop",
        nodes=2,
        hosts="aa",
        seen=(BOTH, BOTH),
        backend="nccl",
        error=r"backend nccl needs a GPU of its own for each rank: ranks compute on cores",
    ),
]
FOUR = [
    World(
        name="two hosts of two GPUs",
        cluster="two-by-two",
        hosts="aabb",
        seen=(gpus("a", "b"),) * 2 + (gpus("c", "d"),) * 2,
        devices=("cuda:0", "cuda:1") * 2,
        over="nccl",
    ),
    World(
        name="masked in another order",
        cluster="two-by-two",
        hosts="aabb",
        seen=(gpus("b", "a"),) * 2 + (gpus("c"), gpus("d")),
        devices=("cuda:0", "cuda:1", "cuda:0", "cuda:0"),
        over="nccl",
    ),
    World(
        name="the second host shows one GPU only",
        cluster="two-by-two",
        hosts="aabb",
        seen=(gpus("a", "b"),) * 2 + (gpus("c"),) * 2,
        error=r"would share a GPU .*: ranks 2 and 3 on host-b",
    ),
    World(
        name="four on one GPU",
        cluster="one-gpu-shared",
        nodes=4,
        hosts="aaaa",
        seen=(gpus("a"),) * 4,
        devices=("cuda:0",) * 4,
        over="gloo",
        sharing=(0, 1, 2, 3),
    ),
    World(
        name="a host without GPUs",
        cluster="two-by-two",
        hosts="aabb",
        seen=(gpus("a", "b"),) * 2 + ((),) * 2,
        error=r"ranks 2 and 3 find no GPU",
    ),
]
ALL = gpus(*"abcdefgh")
OCTO = [
    World(
        name="eight of eight",
        cluster=EIGHT,
        hosts="a" * 8,
        seen=(ALL,) * 8,
        devices=tuple(f"cuda:{i}" for i in range(8)),
        over="nccl",
    ),
    World(
        name="eight ranks, four GPUs",
        cluster=EIGHT,
        hosts="a" * 8,
        seen=(ALL[:4],) * 8,
        error=r"would share a GPU .*: ranks 0 and 4 on host-a .*; ranks 3 and 7",
    ),
]
GROUPS = {"two": TWO, "four": FOUR, "eight": OCTO}
