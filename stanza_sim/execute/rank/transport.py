"""Moving tensors with `torch.distributed`: process groups, one message, one collective, bytes counted.

`TorchTransport` moves tensors where they are: on the CPU with gloo, on GPUs with NCCL. `StagedTransport` takes CUDA
tensors through pinned host memory, since gloo has no CUDA send and receive. On CUDA tensors neither has ever run. What
could be tried without a GPU was: issuing in order and in groups, which NCCL needs, on gloo, and staging with CPU
tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.execute.rank.collective_exec import run_steps
from stanza_sim.execute.rank.exchange import PATIENCE
from stanza_sim.execute.rank.interfaces import Handle
from stanza_sim.execute.rank.job import Backend
from stanza_sim.schedule import Carrier, Collective, CollectiveKind, Schedule, Transfer
from stanza_sim.schedule.collectives import RankStep, collective_bytes, rank_steps, steps_of

GroupKey = tuple[str, tuple[int, ...]]
"""(channel or empty, ranks): each channel of transfers has a group, and each set of ranks one for collectives."""


class ProcessGroups:
    """Process groups by channel or ranks, kept from one job to the next. All ranks must ask for the same groups."""

    def __init__(self, world_size: int) -> None:
        self._world = tuple(range(world_size))
        self._made: dict[tuple[Backend, GroupKey], dist.ProcessGroup | None] = {}

    def prepare(self, schedule: Schedule, backend: Backend) -> dict[GroupKey, dist.ProcessGroup]:
        """Make the groups that `schedule` needs, in one sorted order, and return those this rank is a member of."""
        found: dict[GroupKey, dist.ProcessGroup] = {}
        for key in sorted(group_keys(schedule, self._world)):
            if (backend, key) not in self._made:
                made = dist.new_group(list(key[1]), backend=str(backend), timeout=PATIENCE)
                self._made[backend, key] = made if dist.get_rank() in key[1] else None
            group = self._made[backend, key]
            if group is not None:
                found[key] = group
        return found


def group_keys(schedule: Schedule, world: Sequence[int]) -> set[GroupKey]:
    """Process groups that `schedule` needs in a world of the ranks `world`."""
    keys: set[GroupKey] = set()
    for op in schedule.ops:
        if isinstance(op, Transfer):
            keys.add((op.channel, tuple(world)))
        elif isinstance(op, Collective) and len(schedule.group(op.ranks)) > 1:
            keys.add(("", tuple(schedule.group(op.ranks))))
    return keys


class TorchTransport:
    """Messages and collectives of one rank in one run, on `groups`.

    Posting on a process group from two threads at once crashes gloo, so each group has a lock for posting; waiting is
    outside of it. Messages are posted by the methods that `dist.isend` and `dist.irecv` call, whose checks cost a core
    35 us per message more (torch 2.13), as much as the rest of posting it and waiting for it; a group of a channel has
    all ranks, so its ranks are the world's. Without `values` the contents of tensors do not matter: sums and copies of
    this program are left out.
    """

    def __init__(
        self, schedule: Schedule, rank: int, groups: dict[GroupKey, dist.ProcessGroup], *, values: bool = True
    ) -> None:
        self._schedule, self.rank, self._values = schedule, rank, values
        self._channels = {key[0]: group for key, group in groups.items() if key[0]}
        self._groups = {key[1]: group for key, group in groups.items() if not key[0]}
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

    def send(self, tensor: Tensor, dst: int, channel: str) -> Handle:
        """Post a message."""
        with self._locks[channel]:
            self._sent[channel] += tensor.nbytes
            return _posted(self._channels[channel].send([tensor], dst, 0))

    def receive(self, tensor: Tensor, src: int, channel: str) -> Handle:
        """Post the receipt of a message into `tensor`."""
        with self._locks[channel]:
            self._received[channel] += tensor.nbytes
            return _posted(self._channels[channel].recv([tensor], src, 0))

    def send_tagged(self, tensor: Tensor, dst: int, op: Transfer) -> Handle:
        """Post the message of `op`, tagged, behind its number; the number's 8 bytes are not counted."""
        number = torch.tensor([self._tag(op)])
        group = self._channels[op.channel]
        with self._locks[op.channel]:
            self._sent[op.channel] += tensor.nbytes
            first = _posted(group.send([number], dst, 0))
            return _Tagged(first, number, _posted(group.send([tensor], dst, self._tag(op))))

    def receive_tagged(self, tensor: Tensor, src: int, op: Transfer) -> Handle:
        """Post the receipt of the message of `op` into `tensor`, by its tag."""
        with self._locks[op.channel]:
            self._received[op.channel] += tensor.nbytes
            return _posted(self._channels[op.channel].recv([tensor], src, self._tag(op)))

    def next_tag(self, src: int, channel: str) -> str:
        """Receive the number of the op whose message is next; returns its name."""
        number = torch.zeros(1, dtype=torch.int64)
        with self._locks[channel]:
            handle = _posted(self._channels[channel].recv([number], src, 0))
        handle.wait()
        return self._schedule.ops[int(number) - 1].name

    def _tag(self, op: Transfer) -> int:
        """Tag of the messages of `op`; 0 is that of numbers and of channels without credit."""
        return self._schedule.index(op.name) + 1

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
    ) -> list[Handle]:
        """Post sends (tensor, destination) and receives (tensor, source) as one group; wait for every handle."""
        group = self._channels[channel]
        ops = [dist.P2POp(dist.irecv, t, r, group=group) for t, r in receives]
        ops += [dist.P2POp(dist.isend, t, r, group=group) for t, r in sends]
        with self._locks[channel]:
            self._sent[channel] += sum(t.nbytes for t, _ in sends)
            self._received[channel] += sum(t.nbytes for t, _ in receives)
            return list(dist.batch_isend_irecv(ops)) if ops else []

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """Carry out a collective and return when it is done; over one rank, copy."""
        ranks = self._schedule.group(op.ranks)
        if len(ranks) == 1:
            if self._values and output is not source:
                output.copy_(source[: len(output)])
            return
        group, size = self._groups[tuple(ranks)], source.element_size()
        if op.by is Carrier.BACKEND:
            run_collective(op, output, source, group)
            sent, received = collective_bytes(op, ranks, self.rank, size)
        else:
            if op.name not in self._programs:
                self._programs[op.name] = rank_steps(steps_of(op, ranks, size), self.rank)
            place = ranks.index(self.rank), len(ranks)
            program = self._programs[op.name]
            sent, received = run_steps(op, program, place, output, source, group, values=self._values)
        with self._count:
            self._collective_bytes[0] += sent
            self._collective_bytes[1] += received
        if output.is_cuda:
            torch.cuda.current_stream(output.device).synchronize()


def _posted(work: dist.Work | None) -> Handle:
    if work is None:
        raise RuntimeError("this rank is not in the process group")
    return work


def run_collective(op: Collective, output: Tensor, source: Tensor, group: dist.ProcessGroup) -> None:
    """Carry out `op` with torch's function for it, in place where it is all-reduce or broadcast."""
    match op.kind:
        case CollectiveKind.ALL_REDUCE:
            dist.all_reduce(output, group=group)
        case CollectiveKind.REDUCE_SCATTER:
            _reduce_scatter(output, source, group=group)
        case CollectiveKind.ALL_GATHER:
            _all_gather(output, source, group=group)
        case CollectiveKind.BROADCAST:
            dist.broadcast(output, src=op.root, group=group)


# torch 2.13 renamed these two; older versions have the old names only.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class StagedTransport(TorchTransport):
    """Gloo for CUDA tensors: copied to pinned host memory before they are sent, and back when they have arrived."""

    def send(self, tensor: Tensor, dst: int, channel: str) -> Handle:
        """Copy to the host, wait for the copy, and post the message."""
        return super().send(_to_host(tensor), dst, channel)

    def receive(self, tensor: Tensor, src: int, channel: str) -> Handle:
        """Post the receipt into host memory; waiting also copies it to `tensor`."""
        host = _host_like(tensor)
        return _Landing(super().receive(host, src, channel), host, tensor)

    def send_tagged(self, tensor: Tensor, dst: int, op: Transfer) -> Handle:
        """Copy to the host, wait for the copy, and post the message."""
        return super().send_tagged(_to_host(tensor), dst, op)

    def receive_tagged(self, tensor: Tensor, src: int, op: Transfer) -> Handle:
        """As `receive`, by the tag of `op`."""
        host = _host_like(tensor)
        return _Landing(super().receive_tagged(host, src, op), host, tensor)

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
    ) -> list[Handle]:
        """Stage all messages and post them as one group."""
        hosts = [(_host_like(t), r) for t, r in receives]
        handles = super().together([(_to_host(t), r) for t, r in sends], hosts, channel)
        return [_Landings(handles, [(h, t) for (h, _), (t, _) in zip(hosts, receives, strict=True)])]

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """Carry out the collective on host copies."""
        host_source = _to_host(source)
        host_output = host_source if output is source else _host_like(output)
        super().collective(op, host_output, host_source)
        _to_device(host_output, output)


class _Tagged:
    """A message and the number sent before it, which is kept until it has been sent."""

    def __init__(self, first: Handle, number: Tensor, handle: Handle) -> None:
        self._first, self._number, self._handle = first, number, handle

    def wait(self) -> None:
        self._first.wait()
        self._handle.wait()


class _Landing:
    """A message for a device, received in host memory."""

    def __init__(self, handle: Handle, host: Tensor, target: Tensor) -> None:
        self._handle, self._host, self._target = handle, host, target

    def wait(self) -> None:
        self._handle.wait()
        _to_device(self._host, self._target)


class _Landings:
    """Several messages of one group, of which the received ones go on to a device."""

    def __init__(self, handles: Iterable[Handle], landings: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._handles, self._landings = list(handles), landings

    def wait(self) -> None:
        for handle in self._handles:
            handle.wait()
        for host, target in self._landings:
            _to_device(host, target)


def _host_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())


def _to_host(tensor: Tensor) -> Tensor:
    host = _host_like(tensor)
    host.copy_(tensor, non_blocking=True)
    _synchronize(tensor)
    return host


def _to_device(host: Tensor, target: Tensor) -> None:
    target.copy_(host, non_blocking=True)
    _synchronize(target)


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
