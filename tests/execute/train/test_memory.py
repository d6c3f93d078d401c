"""What a rank holds while it trains is what the planner counts."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stanza_sim.execute.calibrate.sections import timed_optimizer
from stanza_sim.execute.rank.accelerator import Cpu
from stanza_sim.execute.rank.job import Training
from stanza_sim.execute.train import build as building
from stanza_sim.execute.train.messages import Messages
from stanza_sim.execute.train.passes import Passes
from stanza_sim.execute.train.samples import follow
from stanza_sim.execute.train.train import RankWork
from stanza_sim.execute.train.values import RankValues
from stanza_sim.model import zoo
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, CollectiveKind, Compute, Schedule, Transfer, UnitKind, project
from stanza_sim.schedule.progress import Instructions, Key, Progress
from stanza_sim.studies.plan.memory import memory_of
from tests.execute.execute_variants import VARIANTS, schedule_of

ITERATIONS = 4


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = self.most = 0
        self._known: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for made in found if isinstance(found, tuple | list) else [found]:
            if isinstance(made, torch.Tensor) and not made.is_meta:
                self._note(made.untyped_storage())
        return found

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count, also what storages are resized to."""
        resize = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, nbytes: int) -> torch.UntypedStorage:
            made = resize(storage, nbytes)
            self._note(storage)
            return made

        torch.UntypedStorage.resize_ = resize_
        try:
            with self:
                yield
        finally:
            torch.UntypedStorage.resize_ = resize

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        known, before = self._known.get(key, (None, 0))
        if known is None or before != nbytes:
            self._known[key] = known or weakref.ref(storage, lambda _: self._gone(key)), nbytes
            self.nbytes += nbytes - before
            self.most = max(self.most, self.nbytes)

    def _gone(self, key: int) -> None:
        self.nbytes -= self._known.pop(key)[1]


def passes_of(schedule: Schedule, model: ModelProfile, rank: int) -> Passes:
    """The computations of `rank` in some iterations, on samples that are made when they are asked for."""
    device = torch.device("cpu")
    _, blocks, bundles = building.build(schedule, model, rank, 1, device)
    batches = {}

    def batch(iteration: int) -> tuple[tuple[torch.Tensor], torch.Tensor]:
        if iteration not in batches:
            batches.pop(iteration - 2, None)
            torch.manual_seed(iteration)
            x = torch.rand((schedule.batch_per_worker, *model.input_shape))
            batches[iteration] = (x,), torch.randint(0, 10, (schedule.batch_per_worker,))
        return batches[iteration]

    values = RankValues(
        schedule=schedule,
        model=model,
        rank=rank,
        samples=follow(schedule, model),
        blocks=blocks,
        bundles=bundles,
        batch=batch,
        device=device,
    )
    training = Training(iterations=ITERATIONS, warmup=0, optimizer=timed_optimizer(schedule.moments))
    return Passes(values, training, Cpu())


def run_alone(passes: Passes) -> None:
    """Some iterations of computations, without any messages."""
    for iteration in range(ITERATIONS):
        for op in passes.schedule.for_rank(passes.rank):
            if isinstance(op, Compute):
                passes.compute(op, iteration)


class Nothing:
    """A transport that moves nothing."""

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """It leaves zeros where there is more than what the rank has."""
        if output.numel() > source.numel():
            output.zero_()


class Alone:
    """One rank of a schedule, driven by the rules of progress, as if all others were as late as memory can make it.

    Passes come first, and all-gathers as soon as they may begin; other collectives, and messages, only when nothing
    else can go on.
    """

    def __init__(self, schedule: Schedule, rank: int, work: RankWork) -> None:
        self.rank, self.work = rank, work
        program = project(schedule, rank)
        self.units, self.peers = program.units, {}
        for u in program.units:
            if isinstance(u.op, Transfer):
                pairs = ((rank, p) if u.kind is UnitKind.SEND else (p, rank) for p in u.peers)
                self.peers[u.index] = [pair for pair in pairs if work.nbytes(u.op, *pair)]
        self.progress = Progress(program, {u: len(pairs) for u, pairs in self.peers.items()}, iterations=ITERATIONS)
        self.soon: deque[Key] = deque()
        self.late: deque[Key] = deque()

    def run(self) -> None:
        """Go through all iterations."""
        self._follow(self.progress.begin())
        while not self.progress.finished:
            if (key := self.progress.next_post()) is not None:
                op = self.units[key[1]].op
                assert isinstance(op, Transfer)
                for _, dst in self.peers[key[1]]:
                    self.work.outgoing(op, key[0], dst)
                self._follow(self.progress.complete(key))
            elif self.soon:
                self._do(self.soon.popleft())
            else:
                self._do(self.late.popleft())

    def _do(self, key: Key) -> None:
        op = self.units[key[1]].op
        match op:
            case Compute():
                self.work.compute(op, key[0], 0.0)
            case Collective():
                self.work.collective(op, key[0])
            case Transfer():
                self._follow(self.progress.arrived(key))
                return
        self._follow(self.progress.complete(key))

    def _follow(self, what: Instructions) -> None:
        for iteration in what.opened:
            for u in self.units:
                if u.kind is UnitKind.RECV and isinstance(u.op, Transfer):
                    for src, _ in self.peers[u.index]:
                        into = self.work.incoming(u.op, iteration, src)
                        if not u.op.values[0].kind.on_bundle:
                            into.zero_()
                        self.late.append((iteration, u.index))
        for key in what.start:
            op = self.units[key[1]].op
            gathers = isinstance(op, Collective) and op.kind is CollectiveKind.ALL_GATHER
            (self.soon if isinstance(op, Compute) or gathers else self.late).append(key)


def most_held(schedule: Schedule, model: ModelProfile, rank: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that `rank` holds in some iterations of its program."""
    nobody = SimpleNamespace(send=lambda tensor, dst: None, recv=lambda tensor, src: tensor.zero_())
    monkeypatch.setattr(building, "dist", nobody)
    live = Live()
    with live.counting():
        passes = passes_of(schedule, model, rank)
        gc.collect()
        live.most = live.nbytes  # what building takes on the way is gone
        work = RankWork(passes, Messages(passes.values), Nothing(), schedule)  # type: ignore[arg-type]
        Alone(schedule, rank, work).run()
    return live.most


def counted(schedule: Schedule, model: ModelProfile, rank: int) -> int:
    """What the planner counts."""
    received = {
        op.name: sum(schedule.message_bytes(op, src, rank) for src in schedule.sources(op, rank) if src != rank)
        for op in schedule.ops
        if isinstance(op, Transfer)
    }
    return memory_of(schedule, model, {rank: received})[rank].nbytes


@pytest.fixture(scope="module")
def deep() -> ModelProfile:
    return extract("tests.execute.execute_models:deep", name="deep", input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("name", "strategy", "settings", "steps"),
    [
        ("tiny", "local", {}, 1),
        ("tiny", "all_reduce", {}, 1),
        ("tiny", "all_reduce", {}, 3),
        ("deep", "pipeline", {"microbatches": 6}, 1),
        ("deep", "pipeline", {"order": "gpipe", "microbatches": 6}, 1),
        ("deep", "pipeline", {"order": "gpipe", "microbatches": 6, "checkpoint": "block"}, 1),
        ("deep", "pipeline", {"order": "gpipe", "microbatches": 6, "checkpoint": "stage"}, 1),
        ("resnet50", "all_reduce", {}, 1),
        pytest.param("resnet50", "local", {}, 1, marks=pytest.mark.nightly),
        pytest.param("resnet50", "local", {}, 2, marks=pytest.mark.nightly),
    ],
)
def test_a_rank_holds_what_is_counted(
    tiny: ModelProfile,
    deep: ModelProfile,
    name: str,
    strategy: str,
    settings: dict[str, object],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny if name == "tiny" else deep if name == "deep" else zoo.get(name)
    schedule = schedule_of(
        model, strategy, 1, settings, batch_per_worker=48 if name == "deep" else 6, accumulation=steps
    )
    held = most_held(schedule, model, 0, monkeypatch)
    assert -0.1 <= counted(schedule, model, 0) / held - 1 <= 0.3


def test_a_rank_holds_the_state_of_its_optimiser(tiny: ModelProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = schedule_of(tiny, "all_reduce", 1, {})
    held = [most_held(replace(schedule, moments=k), tiny, 0, monkeypatch) for k in range(3)]
    assert [b - a for a, b in pairwise(held)] == [tiny.nbytes] * 2
    needed = [counted(replace(schedule, moments=k), tiny, 0) for k in range(3)]
    assert [b - a for a, b in pairwise(needed)] == [tiny.nbytes] * 2


WITHIN = (
    *("ps-1", "colocated-cut", "colocated-sliced", "colocated-cut-by-host", "all-reduce", "local", "factors"),
    *("stanza-1", "stanza-2", "stanza-2-sliced", "stanza-colocated", "head-batch", "pipeline-gpipe-block"),
    *("fsdp", "fsdp-by-host", "fsdp-whole", "fsdp-2-by-host", "fsdp-1-no-overlap"),
)


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v[0] in WITHIN else pytest.mark.nightly, id=v[0]) for v in VARIANTS]
)
def test_ranks_of_every_strategy_hold_what_is_counted(
    tiny: ModelProfile, variant: tuple[str, str, int, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10%. Where micro-batches or turns are under way it is more off: tiny's maxima are a large part of them."""
    name, strategy, world, settings = variant
    schedule = schedule_of(tiny, strategy, world, settings)
    for rank in (0, world - 1):
        held, estimate = most_held(schedule, tiny, rank, monkeypatch), counted(schedule, tiny, rank)
        assert estimate == pytest.approx(held, rel=0.1 if name in WITHIN else 0.2), rank


@pytest.mark.parametrize("checkpoint", ["stage", "block"])
def test_what_runs_again_is_the_same_and_counts_once(deep: ModelProfile, checkpoint: str) -> None:
    """Parameters, losses and running statistics, to the bit, with dropout and batch norm."""
    found = []
    for kind in ("none", checkpoint):
        given: dict[str, object] = {"microbatches": 3, "order": "gpipe", "checkpoint": kind}
        passes = passes_of(schedule_of(deep, "pipeline", 1, given), deep, 0)
        run_alone(passes)
        blocks = passes.values.blocks
        state = {f"{name}.{key}": t for name, b in blocks.items() for key, t in b.module.state_dict().items()}
        found.append((passes.losses(), state))
    (losses, state), (again, other) = found
    assert losses == again
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    tracked = [int(t) for key, t in state.items() if key.endswith("num_batches_tracked")]
    assert tracked == [ITERATIONS * 3] * 8
