"""A rank's place in the world, and the transport that suits it."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import torch

from stanza_sim.execute.rank.accelerator import Accelerator, accelerator_of
from stanza_sim.execute.rank.announced import NcclTransport
from stanza_sim.execute.rank.decision import Decision
from stanza_sim.execute.rank.groups import Groups, ProcessGroups
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.library import Gloo, Library, Nccl
from stanza_sim.execute.rank.staging import HostBuffers, StagedTransport
from stanza_sim.execute.rank.transport import TorchTransport
from stanza_sim.schedule import Schedule


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
    device: torch.device = field(init=False)
    accelerator: Accelerator = field(init=False)
    groups: ProcessGroups = field(init=False)
    buffers: HostBuffers = field(init=False)

    def __post_init__(self) -> None:
        gpu = self.decision.gpu(self.rank)
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu.index}")
        self.accelerator = accelerator_of(self.device)
        self.groups = ProcessGroups(self.world_size, self.library)
        self.buffers = HostBuffers(self.accelerator)

    def backend(self, wanted: Backend) -> Backend:
        """The backend to use, the same at all ranks; NCCL needs a GPU of its own for each. Raises `InputError`."""
        return self.decision.backend(wanted)

    def start_thread(self) -> None:
        """What every computing thread must do first: both settings are the thread's own."""
        torch.set_num_threads(self.threads)
        self.accelerator.start_thread()

    def library(self, backend: Backend) -> Library:
        """What moves tensors of this rank's with `backend`."""
        return Nccl(self.accelerator) if backend is Backend.NCCL else Gloo()

    def transport(self, backend: Backend, schedule: Schedule, groups: Groups, *, values: bool = True) -> TorchTransport:
        """The transport of a run on this rank's device: staged where gloo is to move a GPU's tensors."""
        library = self.library(backend)
        if backend is Backend.NCCL:
            return NcclTransport(
                schedule, self.rank, groups, library, self.accelerator, self.start_thread, values=values
            )
        if self.accelerator.asynchronous:
            return StagedTransport(
                schedule, self.rank, groups, library, self.accelerator, self.buffers, self.start_thread, values=values
            )
        return TorchTransport(schedule, self.rank, groups, library, values=values)


def announced(transport: TorchTransport) -> NcclTransport | None:
    """The transport, if it announces its messages: what the engine is told beside it."""
    return transport if isinstance(transport, NcclTransport) else None
