"""A rank's place in the world, and the transport that suits it."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from stanza_sim.execute.rank.decision import Decision
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.transport import GroupKey, ProcessGroups, StagedTransport, TorchTransport
from stanza_sim.schedule import Schedule
from stanza_sim.schedule.progress import Issue


@dataclass(slots=True)
class Context:
    """A rank's place in the world, for as many jobs as it runs. `kind` is `cpu` or `cuda`, `host` its host's name.

    `decision` is what all ranks of the world hold to: which GPU each takes (None: cores), and whether NCCL can be used.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    threads: int
    kind: str = "cpu"
    host: str = field(default_factory=socket.gethostname)
    decision: Decision = field(default_factory=Decision)
    groups: ProcessGroups = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        gpu = self.decision.gpu(self.rank)
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu.index}")
        self.groups = ProcessGroups(self.world_size)

    def backend(self, wanted: Backend) -> Backend:
        """The backend to use, the same at all ranks; NCCL needs a GPU of its own for each. Raises `InputError`."""
        return self.decision.backend(wanted)

    def start_thread(self) -> None:
        """What every computing thread must do first: both settings are the thread's own."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)


def issue_for(backend: Backend) -> Issue:
    """How messages are issued on `backend` unless a job says otherwise: NCCL posts no receive ahead of need."""
    return Issue.IN_ORDER if backend is Backend.NCCL else Issue.EAGER


def transport_for(
    context: Context,
    backend: Backend,
    schedule: Schedule,
    groups: dict[GroupKey, dist.ProcessGroup],
    *,
    values: bool = True,
) -> TorchTransport:
    """The transport of a run on this rank's device: staged where gloo is to move a GPU's tensors."""
    staged = context.device.type == "cuda" and backend is Backend.GLOO
    return (StagedTransport if staged else TorchTransport)(schedule, context.rank, groups, values=values)
