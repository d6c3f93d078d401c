"""Joining the ranks of a world with `torch.distributed`. Imports torch: use it in a rank's own process."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from stanza_sim.base.errors import RunError, StanzaError
from stanza_sim.base.listening import in_words, listening
from stanza_sim.execute.rank import devices
from stanza_sim.execute.rank.clock import boot_id
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.decision import Decision, RankFacts, Seat
from stanza_sim.execute.rank.exchange import gather_all, meet
from stanza_sim.execute.rank.job import Backend, Score
from stanza_sim.execute.rank.library import PATIENCE
from stanza_sim.execute.start.decision import decide
from stanza_sim.execute.start.deterministic import Deterministic
from stanza_sim.execute.start.environment import Place, for_gpus
from stanza_sim.execute.start.protocol import Moving, RankInfo, Task

T = TypeVar("T")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells."""
LOOPBACK, LOOPBACK_NAME = "127.0.0.1", "lo"


def join(
    *,
    rank: int,
    world_size: int,
    local_rank: int,
    local_size: int,
    threads: int,
    init_method: str,
    kind: str = "cpu",
    host: str | None = None,
    backend: Backend = Backend.AUTO,
    seats: Sequence[Seat] | None = None,
) -> Context:
    """Join as `rank`; returns when all ranks have, and have decided which GPU each takes and how they talk.

    The default group is gloo's, for setting up and talking beside the run; messages of schedules have groups of
    their own. `init_method` is torch's (`file://`, `tcp://` or `env://`). `host` is the name of this rank's host where
    it is not the machine's own. `seats` is where the topology puts each rank. Raises `InputError`, the same at all
    ranks, where the devices are not what the topology or the `backend` needs.
    """
    torch.set_num_threads(threads)
    if world_size == local_size:
        _stay_on_this_machine()
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size, timeout=PATIENCE)
    host = host or socket.gethostname()
    if kind == "cpu":  # every rank knows already what all would say
        decision = decide([facts_of(host, r, kind) for r in range(world_size)], backend)
    else:
        decision = decide(gather_all(facts_of(host, local_rank, kind), rank, world_size), backend, seats)
    return Context(rank, world_size, local_rank, local_size, threads, kind, host, decision)


def _stay_on_this_machine() -> None:
    """Let gloo listen where only this machine's processes reach it, unless the user says where."""
    if Path(f"/sys/class/net/{LOOPBACK_NAME}").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_NAME)


def facts_of(host: str, local_rank: int, kind: str) -> RankFacts:
    """What this rank tells all others of itself when it joins."""
    return RankFacts(
        host=host,
        machine=boot_id(),
        local_rank=local_rank,
        kind=kind,
        gpus=devices.visible() if kind == "cuda" else (),
        nccl=dist.is_nccl_available(),
    )


def device_name(device: torch.device) -> tuple[str, str | None]:
    """Kind and name of a device, as in `cpu Intel(R) Xeon(R)`, and its driver if it has one."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}", devices.driver_version()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "cpu", None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (f"cpu {names[0]}" if names else "cpu"), None


def describe(context: Context) -> RankInfo:
    """Where this rank is and on what it computes."""
    gpu = context.decision.gpu(context.rank)
    listens = tuple(map(in_words, listening()))
    if gpu is None:
        device, driver = device_name(context.device)
        return RankInfo(host=context.host, device=device, driver=driver, listens=listens)
    about = devices.provenance(gpu)
    return RankInfo(
        host=context.host,
        device=f"cuda {gpu.name}",
        driver=about.driver,
        gpu=gpu,
        provenance=about,
        sharing=context.decision.sharing(context.rank),
        listens=listens,
    )


class Joined:
    """This process as one rank of a world that a launcher started. Use as a context manager.

    Every rank must run the same tasks in the same order; each gets all results. `is_main` is True on rank 0 only.
    `backend` and `seats` are as in `join`; raises as it does, and `RunError` where the ranks do not find each other.
    """

    def __init__(
        self,
        place: Place,
        *,
        threads_per_rank: int = 1,
        kind: str = "cpu",
        backend: Backend = Backend.AUTO,
        seats: Sequence[Seat] | None = None,
        deterministic: bool = False,
    ) -> None:
        if kind == "cuda":
            os.environ.update(for_gpus(os.environ, deterministic=deterministic))  # CUDA has not started
        self._deterministic = deterministic
        self.world_size = place.world_size
        self.is_main = place.rank == 0
        torch.set_num_threads(threads_per_rank)
        if place.one_machine:
            _stay_on_this_machine()
        try:
            dist.init_process_group(
                "gloo",
                **self._meeting_point(place),
                rank=place.rank,
                world_size=place.world_size,
                timeout=PATIENCE,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise RunError(
                f"rank {place.rank} could not join the others at {place.address}:{place.port}: {error}"
            ) from error
        host = socket.gethostname()
        facts = gather_all(facts_of(host, place.local_rank, kind), place.rank, place.world_size)
        self._context = Context(
            place.rank,
            place.world_size,
            place.local_rank,
            Counter(f.host for f in facts)[host],
            threads_per_rank,
            kind,
            host,
            self._decided(facts, place.rank, backend, seats),
        )

    @staticmethod
    def _decided(facts: Sequence[RankFacts], rank: int, backend: Backend, seats: Sequence[Seat] | None) -> Decision:
        """What all ranks decide. An error is that of all: each says it and ends, once all have the facts."""
        try:
            return decide(facts, backend, seats)
        except StanzaError as error:
            with suppress(RuntimeError):  # of a rank that has ended already
                meet(rank, len(facts))
            _end_hard(error.exit_status)
            raise

    @staticmethod
    def _meeting_point(place: Place) -> dict[str, Any]:
        """torchrun's own store is there already (`env://`); Slurm has none."""
        if place.launcher == "torchrun":
            return {"init_method": "env://"}
        if not place.one_machine:
            return {"init_method": f"tcp://{place.address}:{place.port}"}
        listener = socket.create_server((LOOPBACK, place.port)) if place.rank == 0 else None
        store = dist.TCPStore(  # type: ignore[attr-defined]
            LOOPBACK,
            place.port,
            place.world_size,
            place.rank == 0,
            timeout=PATIENCE,
            wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        return {"store": store}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def run(self, task: Task[T], timeout_s: float | None = None, *, moving: Moving | None = None) -> list[T]:
        """Carry out `task` with all other ranks; the results by rank. Raises `InputError` and `RunError`.

        `moving` is told scores only, since no rank knows how far the others are. After an error this process can only
        end: the launcher then ends the other ranks.
        """

        def beat(ended: int = 0, score: Score | None = None) -> None:
            if score is not None and moving is not None:
                moving(score)

        rank, ranks = self._context.rank, self.world_size
        try:
            mine = Deterministic(task) if self._deterministic else task
            return gather_all(mine(self._context, beat), rank, ranks)
        except StanzaError as error:
            _end_hard(error.exit_status)
            raise
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            _end_hard(1)
            raise RunError(f"rank {rank}: {type(error).__name__}: {error}") from error
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            _end_hard(INTERRUPTED if isinstance(error, KeyboardInterrupt) else code)
            raise

    def close(self) -> None:
        """Leave, when all ranks do."""
        meet(self._context.rank, self.world_size)
        dist.destroy_process_group()


def _end_hard(status: int) -> None:
    """End with `status` at exit without waiting for threads that wait for other ranks in torch."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(end)
