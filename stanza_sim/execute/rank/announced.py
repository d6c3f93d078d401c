"""NCCL between GPUs: a communicator for each pair of ranks and direction, and messages that are announced.

A message between GPUs is a kernel at each end, which runs until the other end's runs too. Kernels could wait for each
other in a circle, and here they cannot:

- A communicator carries the messages from one rank to another, one at a time, in the order in which they were posted.
  The sender tells the receiver the number of each over gloo, and the receiver posts its end only then: so both ends
  post in one order, whatever the channels, priorities and credit of the messages are.
- Every communicator has a stream of its own, of which no thread computes on (`library.Nccl`), and one kernel in it at a
  time. So no kernel of NCCL stands behind another, and none of a lane stands behind one of NCCL.
- All of them fit on the GPU side by side (`max_ctas`), so none waits for room that another one holds.

So a kernel waits for one thing only: that the other end is posted. A receiver posts it as soon as it has the number and
its iteration is open. An iteration opens when the one two before it has ended, and nothing in that one waits for a
message of a later one. A collective is posted by each member once its needs are met, and its kernel waits for the other
members alone. What is left are the waits of the schedule itself, which has no circles (`schedule.check`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.accelerator import Accelerator, Recorded
from stanza_sim.execute.rank.groups import Groups, Use
from stanza_sim.execute.rank.interfaces import Handle
from stanza_sim.execute.rank.library import Library
from stanza_sim.execute.rank.transport import TorchTransport, posted
from stanza_sim.schedule import Collective, Schedule, Transfer


class NcclTransport(TorchTransport):
    """See the module. `start` is called in each thread of its own first; there is one for each destination."""

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        groups: Groups,
        library: Library,
        accelerator: Accelerator,
        start: Callable[[], None],
        *,
        values: bool = True,
    ) -> None:
        super().__init__(schedule, rank, groups, library, values=values)
        self._accelerator, self._start = accelerator, start
        self._announcements = next((g for k, g in groups.items() if k.use is Use.ANNOUNCEMENTS), None)
        self._announcing = threading.Lock()
        self._pairs = {k.ranks: group for k, group in groups.items() if k.use is Use.PAIR}
        self._leaving: dict[int, SimpleQueue[_Leaving | None]] = {
            dst: SimpleQueue() for src, dst in self._pairs if src == rank
        }
        for dst in self._leaving:
            threading.Thread(target=self._send_to, args=(dst,), daemon=True, name=f"to {dst}").start()
        channels = {op.channel for op in schedule.ops if isinstance(op, Transfer)}
        self._sent, self._received = dict.fromkeys(channels, 0), dict.fromkeys(channels, 0)

    def close(self) -> None:
        """End the threads."""
        for queue in self._leaving.values():
            queue.put(None)

    def send_tagged(self, tensor: Tensor, dst: int, op: Transfer) -> Handle:
        """Announce the message of `op` to `dst`, and let the thread for `dst` send it."""
        leaving = _Leaving(tensor, self._accelerator.record())
        with self._accelerator.host():
            number = torch.tensor([self._tag(op)])
        with self._announcing:  # announced in the order in which they are sent
            self._sent[op.channel] += tensor.nbytes
            leaving.announce(posted(self._group().send([number], dst, 0)), number)
            self._leaving[dst].put(leaving)
        return leaving

    def next_announced(self, src: int) -> str:
        """Wait until `src` announces its next message to this rank, and return the name of that message's op."""
        with self._accelerator.host():
            number = torch.zeros(1, dtype=torch.int64)
            with self._announcing:
                handle = posted(self._group().recv([number], src, 0))
            handle.wait()
            return self._schedule.ops[int(number) - 1].name

    def receive_tagged(self, tensor: Tensor, src: int, op: Transfer) -> Handle:
        """Post the receipt of the message of `op`, which `src` has announced last."""
        with self._count:
            self._received[op.channel] += tensor.nbytes
        pair = src, self.rank
        return _Arriving(posted_work(self._pairs[pair].recv([tensor], _place(pair, src), 0)), self._library)

    def send(self, tensor: Tensor, dst: int, channel: str) -> Handle:
        """Raise: a message is announced with its op."""
        raise RuntimeError("messages of NCCL are announced")

    def receive(self, tensor: Tensor, src: int, channel: str) -> Handle:
        """Raise: a message is received when it has been announced."""
        raise RuntimeError("messages of NCCL are announced")

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
    ) -> list[Handle]:
        """Raise `InputError`: each message is posted by itself."""
        raise InputError("NCCL's messages are posted one by one", hint="leave `issue` at auto")

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """See `TorchTransport`; what the thread has put on its stream around it is done too when this returns."""
        super().collective(op, output, source)
        self._accelerator.synchronize()

    def _group(self) -> dist.ProcessGroup:
        if self._announcements is None:
            raise RuntimeError("no message is announced in this schedule")
        return self._announcements

    def _send_to(self, dst: int) -> None:
        """Send what is to go to `dst`, one message after the other."""
        self._start()
        pair = self.rank, dst
        group, place = self._pairs[pair], _place(pair, dst)
        while (leaving := self._leaving[dst].get()) is not None:
            leaving.go(lambda tensor: posted_work(group.send([tensor], place, 0)), self._accelerator, self._library)


def _place(pair: tuple[int, int], rank: int) -> int:
    """The number of `rank` in the process group of a pair, which torch sorts."""
    return sorted(pair).index(rank)


def posted_work(work: dist.Work | None) -> dist.Work:
    """The same, or an error where the rank is not in the group."""
    if work is None:
        raise RuntimeError("this rank is not in the process group")
    return work


class _Leaving:
    """A message that is announced and then sent; `ready` is when the device has it."""

    def __init__(self, tensor: Tensor, ready: Recorded | None) -> None:
        self._tensor, self._ready = tensor, ready
        self._announced: tuple[Handle, Tensor] | None = None
        self._error: BaseException | None = None
        self._gone = threading.Event()

    def announce(self, handle: Handle, number: Tensor) -> None:
        """Keep the announcement until it has been sent."""
        self._announced = handle, number

    def go(self, send: Callable[[Tensor], dist.Work], accelerator: Accelerator, library: Library) -> None:
        """Send it and wait until it has been sent; what goes wrong is raised by `wait`."""
        try:
            accelerator.await_record(self._ready)
            accelerator.synchronize()
            library.wait(send(self._tensor))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        self._gone.set()

    def wait(self) -> None:
        """See `Handle`."""
        if self._announced is not None:
            self._announced[0].wait()
        self._gone.wait()
        if self._error is not None:
            raise self._error


class _Arriving:
    """A message of NCCL on its way to this rank."""

    def __init__(self, work: dist.Work, library: Library) -> None:
        self._work, self._library = work, library

    def wait(self) -> None:
        """See `Handle`."""
        self._library.wait(self._work)
