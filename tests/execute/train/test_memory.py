"""What a rank holds while it trains is what the planner counts."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stanza_sim.execute.rank.accelerator import Cpu
from stanza_sim.execute.rank.job import Training
from stanza_sim.execute.train.build import build
from stanza_sim.execute.train.passes import Passes
from stanza_sim.execute.train.samples import follow
from stanza_sim.execute.train.values import RankValues
from stanza_sim.model import zoo
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Compute, Schedule
from stanza_sim.studies.plan.memory import memory_of
from tests.execute.execute_variants import schedule_of


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = self.most = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for made in found if isinstance(found, tuple | list) else [found]:
            if isinstance(made, torch.Tensor):
                self._note(made.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._gone(key, nbytes))
            self.nbytes += nbytes
            self.most = max(self.most, self.nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        del self._known[key]
        self.nbytes -= nbytes


def passes_of(schedule: Schedule, model: ModelProfile, rank: int) -> Passes:
    """The computations of `rank` in four iterations, on samples that are made when they are asked for."""
    device = torch.device("cpu")
    _, blocks, bundles = build(schedule, model, rank, 1, device)
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
    return Passes(values, Training(iterations=4, warmup=0), Cpu())


def run_alone(passes: Passes) -> None:
    """Four iterations of computations, without any messages."""
    for iteration in range(4):
        for op in passes.schedule.for_rank(passes.rank):
            if isinstance(op, Compute):
                passes.compute(op, iteration)


def most_held(schedule: Schedule, model: ModelProfile, rank: int) -> int:
    """The most bytes that `rank` holds in four iterations of its computations."""
    with Live() as live:
        passes = passes_of(schedule, model, rank)
        live.most = live.nbytes  # what building takes on the way is gone
        run_alone(passes)
    return live.most


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
    tiny: ModelProfile, deep: ModelProfile, name: str, strategy: str, settings: dict[str, object], steps: int
) -> None:
    model = tiny if name == "tiny" else deep if name == "deep" else zoo.get(name)
    schedule = schedule_of(
        model, strategy, 1, settings, batch_per_worker=48 if name == "deep" else 6, accumulation=steps
    )
    counted = memory_of(schedule, model, {0: {}})[0].nbytes
    held = most_held(schedule, model, 0)
    assert -0.1 <= counted / held - 1 <= 0.3


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
    assert tracked == [4 * 3] * 8
