"""Sufficient factors on real ranks: micro-batches, a server that reconstructs, traffic, and what has no factors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.execute.calibrate.calibration import sample_counts
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.factors import Tap, packed, reconstruct
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.execute.train.slices import HeldBlock
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Pattern, Phase, Schedule, Value, ValueKind, check
from stanza_sim.schedule.factors import Factors, factors_of
from stanza_sim.strategies._shared.builder import MIB, Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.exchange import exchange_by_all_reduce
from tests.execute.execute_variants import TRAINING, job_of, run, schedule_of
from tests.schedule.toys import cluster, predict
from tests.strategies.test_sufficient_factors import moved_bytes


def served(model: ModelProfile) -> Schedule:
    """Two micro-batches; a server reconstructs the last layer and is pulled from, workers do so with the others."""
    b = Builder("served", model, 4, 6, microbatches=2, numbered=True)
    workers, server = b.group("worker", range(3)), b.group("server", [3])
    grads_ready: dict[str, list[str]] = {}
    for m in range(2):
        forward = b.forward(model.blocks, workers, microbatch=m)
        before = b.compute(Phase.LOSS, model.blocks[-1].name, workers, after=forward[-1:], microbatch=m)
        for block in reversed(model.blocks):
            phase = Phase.BACKWARD if factors_of(model, block.name) is None else Phase.BACKWARD_INPUT
            before = b.compute(phase, block.name, workers, after=[before], microbatch=m)
            grads_ready.setdefault(block.name, []).append(before)
    params_ready: dict[str, list[str]] = {}
    for block in reversed(model.blocks):
        if factors_of(model, block.name) is None:
            continue
        last = block is model.blocks[-1]
        owners = server if last else workers
        bundle = b.bundle(block.name, block.tensors, owners)
        pattern = Pattern.FAN_IN if last else Pattern.ALL_PAIRS
        value = Value(ValueKind.FACTORS, bundle.name)
        moved = b.transfer(
            f"factors.{bundle.name}",
            workers,
            owners,
            pattern,
            [value],
            channel="factors",
            after=grads_ready[block.name],
        )
        made = b.compute(Phase.RECONSTRUCT, bundle.name, owners, after=[moved], lane="factors")
        renewed = b.compute(Phase.UPDATE, bundle.name, owners, after=[made], lane="factors")
        if last:
            values = [Value(ValueKind.PARAM, bundle.name)]
            renewed = b.transfer("pull", server, workers, Pattern.FAN_OUT, values, channel="pull", after=[renewed])
        params_ready[block.name] = [renewed]
    exchange_by_all_reduce(
        b,
        [block for block in model.blocks if factors_of(model, block.name) is None],
        workers,
        prefix="bucket",
        first_bytes=MIB,
        cap_bytes=MIB,
        settings=CollectiveSettings(),
        algorithm=Choice.BACKEND,
        grads_ready={name: passes[-1] for name, passes in grads_ready.items()},
        params_ready=params_ready,
    )
    b.set_params_ready(params_ready)
    return b.finish()


def test_micro_batches_and_a_server_that_reconstructs_equal_sgd(pool: Pool, tiny: ModelProfile) -> None:
    schedule = served(tiny)
    check(schedule, tiny)
    job = job_of(tiny, schedule)
    measured, reference = run(pool, job), train(job)
    assert largest_deviation(dict(measured.parameters or {}), reference) <= 1e-4
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)


@pytest.mark.parametrize("settings", [{"fc_exchange": "factors"}, {}])
def test_traffic_is_the_closed_form_in_both_engines(
    pool: Pool, tiny: ModelProfile, settings: dict[str, object]
) -> None:
    schedule = schedule_of(tiny, "sufficient_factors", 4, settings)
    measured, predicted = run(pool, job_of(tiny, schedule)), predict(schedule, tiny, cluster(4), fold_ranks=False)
    for rank in range(4):
        expected, _ = moved_bytes(tiny, schedule, rank)
        assert predicted.sent_bytes[rank] == predicted.received_bytes[rank] == expected
        counted = measured.sent_bytes[rank], measured.received_bytes[rank]
        assert counted == (expected * TRAINING.iterations, expected * TRAINING.iterations)


def held(module: nn.Module) -> HeldBlock:
    return HeldBlock(name="b", module=module, parameters=tuple(module.named_parameters()), dropouts=())


@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_reconstructed_is_the_gradient(shape: tuple[int, ...], bias: bool) -> None:
    """Also where what follows the layer changes its output in place, and where it is used on sequences."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(5, 3, bias=bias), nn.ReLU(inplace=True))
    factors = Factors(inputs=5, outputs=3, rows=len(shape) - 1)
    x, weights = torch.randn(shape), torch.randn(*shape[:-1], 3)
    tap = Tap(held(module))
    (module(x) * weights).sum().backward()
    tap.take()
    messages = []
    for part in (slice(0, 2), slice(2, 6)):
        output = module(x[part])
        inputs, edge = tap.take()
        (gradient,) = torch.autograd.grad(output, [edge], weights[part])
        messages.append(packed([(inputs, gradient)], factors))
    weight, of_bias = torch.empty(3, 5), torch.empty(3)
    reconstruct(messages, factors, weight, of_bias if bias else None)
    layer = module[0]
    assert isinstance(layer, nn.Linear)
    torch.testing.assert_close(weight, layer.weight.grad)
    if bias:
        torch.testing.assert_close(of_bias, layer.bias.grad)


def test_a_block_that_is_not_one_linear_layer() -> None:
    for module in (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)):
        with pytest.raises(InputError, match="its parameters are not those of one"):
            Tap(held(module))
    layer = nn.Linear(4, 4)
    twice = nn.Sequential(layer, layer)
    tap = Tap(held(twice))
    twice(torch.ones(2, 4))
    with pytest.raises(InputError, match="its linear layer is used 2 times in a pass"):
        tap.take()


def test_layers_are_timed_at_the_samples_of_all(tiny: ModelProfile) -> None:
    counts = sample_counts([schedule_of(tiny, "sufficient_factors", 4, {"fc_exchange": "factors"})], tiny)
    linear = {b.name for b in tiny.blocks if factors_of(tiny, b.name) is not None}
    assert counts == {b.name: (6, 24) if b.name in linear else (6,) for b in tiny.blocks}
