"""Moving tensors with `torch.distributed`: one message, one collective, bytes counted.

`TorchTransport` moves tensors of the CPU with gloo. `announced.NcclTransport` moves those of GPUs with NCCL, and
`staging.StagedTransport` takes them through host memory, since gloo has no CUDA send and receive.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.execute.rank.collective_exec import run_steps
from stanza_sim.execute.rank.groups import Groups, Use
from stanza_sim.execute.rank.interfaces import Handle
from stanza_sim.execute.rank.library import Library
from stanza_sim.schedule import Carrier, Collective, Schedule, Transfer
from stanza_sim.schedule.collectives import RankStep, collective_bytes, rank_steps, steps_of


class TorchTransport:
    """Messages and collectives of one rank in one run, on `groups`, through `library`.

    Posting on a process group from two threads at once crashes gloo, so each group has a lock for posting; waiting is
    outside of it. Messages are posted by the methods that `dist.isend` and `dist.irecv` call, whose checks cost a core
    35 us per message more (torch 2.13), as much as the rest of posting it and waiting for it; a group of a channel has
    all ranks, so its ranks are the world's. Without `values` the contents of tensors do not matter: sums and copies of
    this program are left out.
    """

    def __init__(self, schedule: Schedule, rank: int, groups: Groups, library: Library, *, values: bool = True) -> None:
        self._schedule, self.rank, self._library, self._values = schedule, rank, library, values
        self._channels = {key.channel: group for key, group in groups.items() if key.use is Use.CHANNEL}
        self._groups = {key.ranks: group for key, group in groups.items() if key.use is Use.COLLECTIVE}
        self._locks = {name: threading.Lock() for name in self._channels}
        self._sent, self._received = dict.fromkeys(self._channels, 0), dict.fromkeys(self._channels, 0)
        self._count = threading.Lock()
        self._programs: dict[str, tuple[RankStep, ...]] = {}
        self._collective_bytes = [0, 0]

    @property
    def sent_bytes(self) -> int:
        """Bytes of the messages and collectives of this rank that it has sent."""
        return self._collective_bytes[0] + sum(self._sent.values())

    @property
    def received_bytes(self) -> int:
        """Bytes that it has received."""
        return self._collective_bytes[1] + sum(self._received.values())

    def close(self) -> None:
        """Let threads of the transport's own end; called once all that was sent has been waited for."""

    def send(self, tensor: Tensor, dst: int, channel: str) -> Handle:
        """Post a message."""
        with self._locks[channel]:
            self._sent[channel] += tensor.nbytes
            return posted(self._channels[channel].send([tensor], dst, 0))

    def receive(self, tensor: Tensor, src: int, channel: str) -> Handle:
        """Post the receipt of a message into `tensor`."""
        with self._locks[channel]:
            self._received[channel] += tensor.nbytes
            return posted(self._channels[channel].recv([tensor], src, 0))

    def send_tagged(self, tensor: Tensor, dst: int, op: Transfer) -> Handle:
        """Post the message of `op`, tagged, behind its number; the number's 8 bytes are not counted."""
        number = torch.tensor([self._tag(op)])
        group = self._channels[op.channel]
        with self._locks[op.channel]:
            self._sent[op.channel] += tensor.nbytes
            first = posted(group.send([number], dst, 0))
            return Tagged(first, number, posted(group.send([tensor], dst, self._tag(op))))

    def receive_tagged(self, tensor: Tensor, src: int, op: Transfer) -> Handle:
        """Post the receipt of the message of `op` into `tensor`, by its tag."""
        with self._locks[op.channel]:
            self._received[op.channel] += tensor.nbytes
            return posted(self._channels[op.channel].recv([tensor], src, self._tag(op)))

    def next_tag(self, src: int, channel: str) -> str:
        """Receive the number of the op whose message is next; returns its name."""
        number = torch.zeros(1, dtype=torch.int64)
        with self._locks[channel]:
            handle = posted(self._channels[channel].recv([number], src, 0))
        handle.wait()
        return self._schedule.ops[int(number) - 1].name

    def _tag(self, op: Transfer) -> int:
        """Tag of the messages of `op`; 0 is that of numbers and of channels without credit."""
        return self._schedule.index(op.name) + 1

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
    ) -> list[Handle]:
        """Post sends (tensor, destination) and receives (tensor, source) as one group; wait for every handle."""
        with self._locks[channel]:
            self._sent[channel] += sum(t.nbytes for t, _ in sends)
            self._received[channel] += sum(t.nbytes for t, _ in receives)
            return list(self._library.exchange(sends, receives, self._channels[channel]))

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """Carry out a collective and return when it is done; over one rank, copy."""
        ranks = self._schedule.group(op.ranks)
        if len(ranks) == 1:
            if self._values and not same(output, source):
                output.copy_(source[: len(output)])
            return
        group, size = self._groups[tuple(ranks)], source.element_size()
        if op.by is Carrier.BACKEND and op.kind not in self._library.by_steps:
            self._library.collective(op, output, source, group)
            sent, received = collective_bytes(op, ranks, self.rank, size)
        else:
            if op.name not in self._programs:
                self._programs[op.name] = rank_steps(steps_of(op, ranks, size), self.rank)
            place = ranks.index(self.rank), len(ranks)
            program = self._programs[op.name]
            sent, received = run_steps(op, program, place, output, source, group, self._library, values=self._values)
            if op.by is Carrier.BACKEND:  # a ring's, in whole bytes
                sent, received = collective_bytes(op, ranks, self.rank, size)
        with self._count:
            self._collective_bytes[0] += sent
            self._collective_bytes[1] += received


def same(output: Tensor, source: Tensor) -> bool:
    """Whether both are the same elements of memory, as the two ends of an all-reduce are.

    Two views of one tensor are two objects: that they are not one says nothing.
    """
    return output is source or (
        output.device == source.device and output.data_ptr() == source.data_ptr() and output.numel() == source.numel()
    )


def posted(work: dist.Work | None) -> Handle:
    """What `torch.distributed` returns for a message; it is None for a rank outside of the group."""
    if work is None:
        raise RuntimeError("this rank is not in the process group")
    return work


class Tagged:
    """A message and the number sent before it, which is kept until it has been sent."""

    def __init__(self, first: Handle, number: Tensor, handle: Handle) -> None:
        self._first, self._number, self._handle = first, number, handle

    def wait(self) -> None:
        """See `Handle`."""
        self._first.wait()
        self._handle.wait()
