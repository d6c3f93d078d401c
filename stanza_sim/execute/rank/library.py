"""The libraries that move tensors: making process groups, collectives, steps of messages, and waiting for them.

Sources read for NCCL, of torch 2.13: `new_group` with a `device_id` makes the communicator at once
(`distributed_c10d._new_process_group_helper`), for which all its members must come, and no others; messages of such a
group use its communicator, and not one made for the pair at first use (`ProcessGroupNCCL::pointToPoint`). A collective
that is not asynchronous runs on the calling thread's current stream; messages run on a stream of the group's own, and
`Work.wait` makes only the current stream wait.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.accelerator import Accelerator
from stanza_sim.execute.rank.clock import now
from stanza_sim.schedule import Collective, CollectiveKind

PATIENCE = datetime.timedelta(hours=12)
"""Time limit of torch's own operations: a rank that hangs is found by progress, not by the length of an operation."""
POLL_S, POLLS = (2e-5, 1e-3), 16
"""The least and the most that a thread sleeps between looks at whether NCCL has moved a message, and by what part of
the time that it has waited it may find out too late."""
MOST_COMMUNICATORS = 32
"""As many streams of one priority as torch's pool has; communicators that shared one would wait for each other."""


def most_ctas(multiprocessors: int, communicators: int) -> int:
    """How many blocks (CTAs) a kernel of each of so many communicators may have, so that all of theirs run at once.

    A block of NCCL's has up to 640 threads of up to 102 registers, so each takes a multiprocessor (`NCCL_MAX_NTHREADS`,
    `__launch_bounds__` of `src/device/common.h`). Channels of messages are rounded up to a power of two
    (`ncclTopoComputeP2pChannels`), hence one; 32 is what NCCL takes for them at most.

    >>> [most_ctas(132, n) for n in (2, 6, 22, 32)], most_ctas(20, 32)
    ([32, 16, 4, 4], 1)
    """
    return 1 << (max(1, min(32, multiprocessors // communicators)).bit_length() - 1)


class Library(Protocol):
    """What carries out collectives and groups of messages on process groups."""

    by_steps: frozenset[CollectiveKind]
    """What this program carries out itself, by the steps of a ring, since the library's own takes more than a ring."""

    def new_group(self, ranks: Sequence[int], communicators: int) -> dist.ProcessGroup:
        """A process group of `ranks`, which all ranks of the world ask for in one order.

        `communicators` is how many groups of this library the busiest rank is a member of.
        """
        ...

    def connect(self, group: dist.ProcessGroup, pair: tuple[int, int]) -> None:
        """Have what the first message from `pair[0]` to `pair[1]` would set up set up now; both call this at once."""
        ...

    def wait(self, work: dist.Work) -> None:
        """Return when what `work` stands for is done, at the host."""
        ...

    def collective(self, op: Collective, output: Tensor, source: Tensor, group: dist.ProcessGroup) -> None:
        """Carry out `op`, in place where it is all-reduce or broadcast; it is done when that returns."""
        ...

    def exchange(
        self,
        sends: Sequence[tuple[Tensor, int]],
        receives: Sequence[tuple[Tensor, int]],
        group: dist.ProcessGroup,
    ) -> list[dist.Work]:
        """Post sends (tensor, destination) and receives (tensor, source) as one group; wait for each."""
        ...


class Gloo:
    """Through the host, over TCP; an operation is done when its `wait` returns.

    Its reduce-scatter is an all-reduce of which the rest is thrown away, and so moves twice as much (torch 2.13). Its
    all-gather moves what a ring does and takes longer: with it iterations of FSDP took 2% longer over 4 emulated hosts
    at 500 Mb/s, and 17% over 2.
    """

    by_steps = frozenset({CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_GATHER})

    def new_group(self, ranks: Sequence[int], communicators: int) -> dist.ProcessGroup:
        """See `Library`."""
        made: dist.ProcessGroup = dist.new_group(list(ranks), backend="gloo", timeout=PATIENCE)
        return made

    def connect(self, group: dist.ProcessGroup, pair: tuple[int, int]) -> None:
        """It connects when the group is made."""

    def wait(self, work: dist.Work) -> None:
        """See `Library`."""
        work.wait()

    def collective(self, op: Collective, output: Tensor, source: Tensor, group: dist.ProcessGroup) -> None:
        """With torch's function for it."""
        match op.kind:
            case CollectiveKind.ALL_REDUCE:
                dist.all_reduce(output, group=group)
            case CollectiveKind.REDUCE_SCATTER:  # NCCL's
                _reduce_scatter(output, source, group=group)
            case CollectiveKind.ALL_GATHER:  # NCCL's
                _all_gather(output, source, group=group)
            case CollectiveKind.BROADCAST:
                dist.broadcast(output, src=op.root, group=group)

    def exchange(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], group: dist.ProcessGroup
    ) -> list[dist.Work]:
        """Receives first: on gloo two ranks that both wait for a send never meet, on NCCL nor do single calls."""
        posts = [dist.P2POp(dist.irecv, t, r, group=group) for t, r in receives]
        posts += [dist.P2POp(dist.isend, t, r, group=group) for t, r in sends]
        return list(dist.batch_isend_irecv(posts)) if posts else []


# torch 2.13 renamed these two; older versions have the old names only.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Nccl(Gloo):
    """Between GPUs. Whoever waits for a message looks at it from the host, again and again.

    So no stream ever waits for a message: two streams may share one of a GPU's queues, and what stands behind
    such a wait, in a stream that has nothing to do with it, would wait too (`CUDA_DEVICE_MAX_CONNECTIONS`).
    """

    by_steps: frozenset[CollectiveKind] = frozenset()

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def new_group(self, ranks: Sequence[int], communicators: int) -> dist.ProcessGroup:
        """Make the communicator at once; so small that the kernels of all of a rank's fit on the GPU side by side."""
        device = self._accelerator.device
        os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")  # that is what we want
        options = dist.ProcessGroupNCCL.Options()
        options.is_high_priority_stream = True
        options._timeout = PATIENCE  # else torch warns that they differ
        if communicators > 1:
            multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
            options.config.max_ctas = most_ctas(multiprocessors, communicators)
        made: dist.ProcessGroup = dist.new_group(
            list(ranks), backend="nccl", timeout=PATIENCE, pg_options=options, device_id=device
        )
        return made

    def connect(self, group: dist.ProcessGroup, pair: tuple[int, int]) -> None:
        """Send a small message. The first one of two ranks allocates memory and holds up the host until both are there.

        In a run that could wait for a kernel of another communicator (NCCL's `ncclTransportP2pSetup`).
        """
        small = torch.zeros(1, device=self._accelerator.device)
        self._accelerator.synchronize()
        sends = dist.get_rank() == pair[0]
        place = dist.get_group_rank(group, pair[1] if sends else pair[0])
        self.wait(group.send([small], place, 0) if sends else group.recv([small], place, 0))

    def wait(self, work: dist.Work) -> None:
        """Look until it is done; `Work.wait` then raises what went wrong, and returns at once otherwise."""
        begin_s = now()
        while not work.is_completed():
            time.sleep(min(max(POLL_S[0], (now() - begin_s) / POLLS), POLL_S[1]))
        work.wait()

    def collective(self, op: Collective, output: Tensor, source: Tensor, group: dist.ProcessGroup) -> None:
        """On the calling thread's stream, which is then waited for at the host."""
        super().collective(op, output, source, group)
        self._accelerator.synchronize()


def require_few(communicators: int) -> None:
    """Raise `InputError` if a rank would need more communicators of NCCL than can run side by side."""
    if communicators > MOST_COMMUNICATORS:
        raise InputError(
            f"a rank would need {communicators} communicators of NCCL, one for each rank that it sends to or receives "
            f"from and each group; more than {MOST_COMMUNICATORS} cannot run side by side",
            where="execute.backend",
            hint="use backend: gloo, fewer ranks, or a strategy in which a rank exchanges messages with fewer others",
        )
