"""Blocks of which each rank of a group holds a slice: more layers than `tiny` has, sizes, and what cannot be cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.losses import sliced_loss
from stanza_sim.execute.train.reference import Trained, largest_deviation, train
from stanza_sim.execute.train.slices import HeldBlock, cut_block
from stanza_sim.model.extract import extract
from stanza_sim.model.labels import Labels
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Axis, Cut
from stanza_sim.simulate import simulate
from tests.execute.execute_variants import VARIANTS, job_of, run, schedule_of
from tests.schedule.toys import SOME, cluster
from tests.strategies.sliced_bytes import sliced_bytes

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def digits() -> ModelProfile:
    """Three linear layers, with ReLU in place and dropout: cut by rows, by columns and by rows."""
    return extract("stanza_sim.model.examples:digits_cnn", name="digits", input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("strategy", "world", "settings"),
    [
        ("stanza", 5, {"fc_workers": 3, "fc_parallel": "model", "fc_algorithm": "ring"}),
        ("sharded_head", 3, {}),
    ],
)
def test_three_layers_equal_sgd(
    pool: Pool, digits: ModelProfile, strategy: str, world: int, settings: dict[str, object]
) -> None:
    schedule = schedule_of(digits, strategy, world, settings)
    assert [c.axis for c in schedule.cuts] == [Axis.ROWS, Axis.COLUMNS, Axis.ROWS]
    job = job_of(digits, schedule, timeout_s=30)
    measured, reference = run(pool, job), train(job)
    assert largest_deviation(dict(measured.parameters or {}), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)


@pytest.fixture(scope="module")
def classes() -> ModelProfile:
    """A large classifier: 32 features at the boundary, 100 classes, cut by columns."""
    return extract(
        "stanza_sim.model.examples:tiny_cnn",
        name="classes",
        input_shape=(1, 8, 8),
        factory_kwargs=(("num_classes", 100),),
        boundary="classifier.4",
    )


@pytest.mark.parametrize(
    ("strategy", "world", "settings"),
    [
        ("stanza", 5, {"fc_workers": 3}),
        ("stanza", 5, {"fc_workers": 2, "fc_compute": "arrival", "microbatches": 2}),
        ("stanza", 4, {"fc_workers": 2, "placement": "colocated"}),
        ("sharded_head", 3, {}),
        ("sharded_head", 3, {"fc_compute": "batch"}),
    ],
)
def test_a_large_classifier_on_slices_equals_sgd(
    pool: Pool, classes: ModelProfile, strategy: str, world: int, settings: dict[str, object]
) -> None:
    given = settings | ({"fc_parallel": "model"} if strategy == "stanza" else {})
    schedule = schedule_of(classes, strategy, world, given)
    assert [c.axis for c in schedule.cuts] == [Axis.COLUMNS]
    job = job_of(classes, schedule)
    measured, reference = run(pool, job), train(job)
    assert largest_deviation(dict(measured.parameters or {}), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)
    expected = sliced_bytes(classes, strategy, world, 6, rows=False, **settings)  # type: ignore[arg-type]
    times = job.training.iterations
    assert measured.sent_bytes == tuple(times * sent for sent, _ in expected)
    assert measured.received_bytes == tuple(times * received for _, received in expected)


def test_slices_are_rounded_as_the_whole_is(pool: Pool, tiny: ModelProfile) -> None:
    """Rounding may change which ReLUs are on; so compare with FC workers that have all features, not with SGD."""
    rounded: dict[str, object] = {"activations": "bf16"}
    whole, sliced = (
        run(pool, job_of(tiny, schedule_of(tiny, "stanza", world, rounded | settings)))
        for world, settings in ((3, {}), (5, {"fc_workers": 3, "fc_parallel": "model"}))
    )
    start = train(job_of(tiny, schedule_of(tiny, "stanza", 3, {}))).start
    expected = Trained(start=start, end=dict(whole.parameters or {}), losses=whole.losses)
    assert largest_deviation(dict(sliced.parameters or {}), expected) <= TOLERANCE
    assert sliced.losses == pytest.approx(whole.losses, rel=1e-5)


@pytest.mark.parametrize("name", ["stanza-3-sliced-uneven", "stanza-4-sliced-colocated-arrival", "head", "head-batch"])
def test_bytes_are_the_closed_form_in_both_engines(pool: Pool, tiny: ModelProfile, name: str) -> None:
    """`tiny` has 98% of its parameters in its FC part: layers of 128, 32 and 10 features."""
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == name)
    settings = {key: value for key, value in settings.items() if key not in ("algorithm", "fc_algorithm")}
    schedule = schedule_of(tiny, strategy, world, settings)
    expected = sliced_bytes(tiny, strategy, world, 6, **settings)
    job = job_of(tiny, schedule)
    measured = run(pool, job)
    counted = zip(measured.sent_bytes, measured.received_bytes, strict=True)
    assert [(s, r) for s, r in counted] == [
        (job.training.iterations * s, job.training.iterations * r) for s, r in expected
    ]
    predicted = simulate(schedule, tiny, cluster(world), lambda rank: SOME, fold_ranks=False)
    assert [(predicted.sent_bytes[r], predicted.received_bytes[r]) for r in range(world)] == expected


@pytest.mark.parametrize("bounds", [[(0, 7)], [(0, 3), (3, 5), (5, 7)]])
def test_the_loss_on_slices_is_the_cross_entropy(bounds: list[tuple[int, int]]) -> None:
    torch.manual_seed(2)
    logits, labels = (30 * torch.randn(5, 7)).requires_grad_(), torch.tensor([0, 2, 3, 6, 6])
    expected = F.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, logits)
    slices = [logits.detach()[:, lo:hi] for lo, hi in bounds]
    logsum = torch.stack([x.logsumexp(1) for x in slices]).logsumexp(0)
    made = [
        sliced_loss(x, labels, logsum, b, Labels(), first=i == 0)
        for i, (x, b) in enumerate(zip(slices, bounds, strict=True))
    ]
    torch.testing.assert_close(torch.cat([g for g, _ in made], dim=1), gradient)
    torch.testing.assert_close(sum(loss for _, loss in made), expected.detach())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(4, 4), nn.Softmax(dim=1)], "is not elementwise"),
        ([nn.Linear(4, 4), nn.LayerNorm(4)], "is not elementwise"),
        ([nn.Linear(4, 4), nn.Linear(4, 4)], "there are 2 linear layers in it"),
    ],
)
@pytest.mark.parametrize("axis", list(Axis))
def test_what_cannot_be_cut_is_refused(layers: list[nn.Module], message: str, axis: Axis) -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(*layers))
    block = HeldBlock(name="b", module=traced, parameters=(), dropouts=())
    with pytest.raises(InputError, match=message) as e:
        cut_block(block, Cut(block="b", ranks="g", axis=axis, inputs=4, outputs=4), (0, 2))
    assert e.value.hint


@pytest.mark.parametrize("bias", [True, False])
def test_slices_by_rows_and_what_follows_their_sum(bias: bool) -> None:
    """Forward and backward, the module having a leaf in and a ReLU in place."""
    torch.manual_seed(1)
    linear = nn.Linear(6, 5, bias=bias)
    reference = torch.relu(linear(x := torch.randn(3, 6)))
    partial, tails = [], []
    for lo, hi in ((0, 4), (4, 6)):
        mine = nn.Linear(6, 5, bias=bias)
        mine.weight = nn.Parameter(linear.weight[:, lo:hi].detach().clone())
        if bias:
            mine.bias = nn.Parameter(linear.bias.detach().clone())
        traced = torch.fx.symbolic_trace(nn.Sequential(mine, nn.ReLU(inplace=True)))
        held = HeldBlock(name="b", module=traced, parameters=(), dropouts=())
        made = cut_block(held, Cut(block="b", ranks="g", axis=Axis.ROWS, inputs=6, outputs=5), (lo, hi))
        partial.append(made.module(x[:, lo:hi]))
        tails.append(made.tail)
    total = sum(partial).detach().requires_grad_()
    assert tails[0] is not None
    torch.testing.assert_close(tails[0](total), reference)
