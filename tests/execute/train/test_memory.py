"""What a rank holds while it trains is what the planner counts."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stanza_sim.execute.calibrate.sections import timed_optimizer
from stanza_sim.execute.rank.accelerator import Cpu
from stanza_sim.execute.rank.job import Training
from stanza_sim.execute.train.build import build
from stanza_sim.execute.train.passes import Passes
from stanza_sim.execute.train.samples import follow
from stanza_sim.execute.train.values import RankValues
from stanza_sim.model import zoo
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


def most_held(schedule: Schedule, model: ModelProfile, rank: int) -> int:
    """The most bytes that `rank` holds in four iterations of its computations, without any messages."""
    with Live() as live:
        device = torch.device("cpu")
        _, blocks, bundles = build(schedule, model, rank, 1, device)
        live.most = live.nbytes  # what building takes on the way is gone
        batches = {}

        def batch(iteration: int) -> tuple[tuple[torch.Tensor], torch.Tensor]:
            if iteration not in batches:
                batches.pop(iteration - 2, None)
                x = torch.zeros((schedule.batch_per_worker, *model.input_shape))
                batches[iteration] = (x,), torch.zeros(schedule.batch_per_worker, dtype=torch.int64)
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
        training = Training(iterations=4, warmup=0, optimizer=timed_optimizer(schedule.moments))
        passes = Passes(values, training, Cpu())
        for iteration in range(4):
            for op in schedule.for_rank(rank):
                if isinstance(op, Compute):
                    passes.compute(op, iteration)
    return live.most


@pytest.mark.parametrize(
    ("name", "strategy", "steps", "moments"),
    [
        ("tiny", "local", 1, 1),
        ("tiny", "local", 1, 2),
        ("tiny", "all_reduce", 1, 0),
        ("tiny", "all_reduce", 3, 2),
        ("resnet50", "all_reduce", 1, 2),
        pytest.param("resnet50", "local", 1, 1, marks=pytest.mark.nightly),
        pytest.param("resnet50", "local", 2, 2, marks=pytest.mark.nightly),
    ],
)
def test_a_rank_holds_what_is_counted(tiny: ModelProfile, name: str, strategy: str, steps: int, moments: int) -> None:
    model = tiny if name == "tiny" else zoo.get(name)
    schedule = replace(schedule_of(model, strategy, 1, {}, accumulation=steps), moments=moments)
    counted = memory_of(schedule, model, {0: {}})[0].nbytes
    held = most_held(schedule, model, 0)
    assert -0.1 <= counted / held - 1 <= 0.3
