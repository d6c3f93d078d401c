"""The steps of optimisers are those of torch, on any slice and with any groups of weight decay."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.job import Optimizer
from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.execute.train.updates import Updates, update
from stanza_sim.model.decay import without_decay
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import schedule_of

TERMS, STEPS = 32, 6
DIVISOR = torch.tensor(float(TERMS))
SGD = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01)
OPTIMISERS = {
    "sgd": SGD,
    "sgd-without-momentum": replace(SGD, momentum=0.0),
    "adam": Optimizer(kind=OptimizerKind.ADAM, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.02),
    "adamw": Optimizer(kind=OptimizerKind.ADAMW, lr=0.01, weight_decay=0.1),
}
THEIRS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd-without-momentum": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def drawn(seed: int, numel: int = 101) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def theirs(name: str) -> list[torch.Tensor]:
    """What an optimiser of torch makes of the parameters, step by step."""
    parameter = torch.nn.Parameter(drawn(0))
    optimiser = THEIRS[name]([parameter])
    found = []
    for i in range(STEPS):
        parameter.grad = drawn(i + 1)
        optimiser.step()
        found.append(parameter.detach().clone())
    return found


def ours(o: Optimizer, steps: list[int], *, pieces: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """The same by this executor, whose steps have these numbers, on the slices that end at `pieces`."""
    vector, state = drawn(0), [torch.zeros(101) for _ in range(o.moments)]
    found = []
    for i, step in enumerate(steps):
        summed = drawn(i + 1) * TERMS
        for lo, hi in pairwise((0, *pieces, 101)):
            cut = slice(lo, hi)
            update([vector[cut]], [summed[cut]], [[s[cut]] for s in state], o, step=step, divisor=DIVISOR)
        found.append(vector.clone())
    return found


def off(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """How far the last of `got` is off, relative to how far parameters have moved."""
    return float((got[-1] - expected[-1]).norm() / (expected[-1] - drawn(0)).norm())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_are_those_of_torch_whole_and_in_slices(name: str) -> None:
    steps, expected = list(range(1, STEPS + 1)), theirs(name)
    for pieces in ((), (1, 40, 99)):
        for mine, wanted in zip(ours(OPTIMISERS[name], steps, pieces=pieces), expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_what_could_be_wrong_in_adam_would_be_seen(name: str) -> None:
    steps, expected = list(range(1, STEPS + 1)), theirs(name)
    o = OPTIMISERS[name]
    assert off(ours(o, steps), expected) < 1e-5
    assert off(ours(o, [10**9] * STEPS), expected) > 1e-2  # no bias correction
    assert off(ours(o, [s + 1 for s in steps]), expected) > 1e-2  # one step too late
    assert off(ours(o, [1] * STEPS), expected) > 1e-2  # a step that is not counted
    other = OptimizerKind.ADAM if o.kind is OptimizerKind.ADAMW else OptimizerKind.ADAMW
    assert off(ours(replace(o, kind=other), steps), expected) > 1e-3  # weight decay of the other kind
    assert off(ours(replace(o, betas=o.betas[::-1]), steps), expected) > 1e-2


def test_biases_and_norms_are_kept_from_decay_in_every_slice(tiny: ModelProfile) -> None:
    """The slices of two owners, with gradients of zero: only decay moves the parameters."""
    no_decay = without_decay(tiny, ["bias", "norm"])
    assert no_decay == {"features.1.weight", "features.1.bias", "classifier.1.bias", "classifier.4.bias"}
    schedule = schedule_of(tiny, "parameter_server", 4, {"servers": 2, "assignment": "cut", "placement": "dedicated"})
    o = Optimizer(lr=0.1, weight_decay=0.5)
    moved: dict[str, int] = {}
    for bundle in schedule.bundles:
        for rank in schedule.owners(bundle):
            device = torch.device("cpu")
            flat = FlatBundle(schedule, tiny, bundle, rank, whole=False, gradients=False, device=device)
            assert flat.own is not None
            flat.own.fill_(1.0)
            zero = torch.zeros_like(flat.own)
            Updates(o, no_decay).update(flat, zero, lr=o.lr, step=1, divisor=torch.ones(()))
            for name, (lo, hi) in flat.own_extents().items():
                expected = 1.0 if name in no_decay else 1 - o.lr * o.weight_decay
                torch.testing.assert_close(flat.own[lo:hi], torch.full((hi - lo,), expected))
                moved[name] = moved.get(name, 0) + hi - lo
    assert moved == {t.name: t.numel for b in tiny.blocks for t in b.tensors}


def test_what_is_no_parameter_is_refused(tiny: ModelProfile) -> None:
    assert without_decay(tiny, ["classifier.4.*"]) == {"classifier.4.weight", "classifier.4.bias"}
    with pytest.raises(InputError, match=r"no parameter of tiny is called 'classifier\.5\.weight'"):
        without_decay(tiny, ["bias", "classifier.5.weight"])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_parameters_in_float64_are_updated_in_float64(name: str) -> None:
    parameter = torch.nn.Parameter(drawn(0).double())
    optimiser, o = THEIRS[name]([parameter]), OPTIMISERS[name]
    vector, state = drawn(0).double(), [torch.zeros(101, dtype=torch.float64) for _ in range(o.moments)]
    for i in range(STEPS):
        parameter.grad = drawn(i + 1).double()
        optimiser.step()
        update([vector], [drawn(i + 1).double() * TERMS], [[s] for s in state], o, step=i + 1, divisor=DIVISOR)
    torch.testing.assert_close(vector, parameter.detach(), rtol=1e-12, atol=1e-12)
