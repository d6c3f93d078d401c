"""Sufficient factors: what moves, which layers they are taken for, and what reconstructing costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile, scaled
from stanza_sim.schedule import Collective, Compute, Phase, Schedule, Transfer, check, from_json, parse, slice_bounds
from stanza_sim.schedule.factors import Factors, factors_of
from stanza_sim.strategies.sufficient_factors import Settings, factors_move_less, space
from stanza_sim.strategies.sufficient_factors import build as build_with
from tests.schedule.toys import SOME, build, cluster, predict, toy

NAME = "sufficient_factors"


def by_factors(schedule: Schedule) -> set[str]:
    return {op.target for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.RECONSTRUCT}


def moved_bytes(model: ModelProfile, schedule: Schedule, rank: int) -> tuple[int, int]:
    """The closed form of the docstring: bytes that `rank` sends (and receives), and those of all-reduced buckets."""
    n, batch, total = schedule.world_size, schedule.batch_per_worker, 0
    reduced = sum(op.nbytes for op in schedule.ops if isinstance(op, Collective))
    taken = by_factors(schedule)
    for block in model.blocks:
        if block.name in taken:
            out, into = block.tensors[0].shape
            total += (n - 1) * batch * (into + out) * model.itemsize
        elif block.tensors and f"push.{block.name}" in {op.name for op in schedule.ops}:
            lo, hi = slice_bounds(block.numel, n, rank)
            total += ((n - 2) * (hi - lo) + block.numel) * model.itemsize
    return total, reduced


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("conv_exchange", ["parameter_server", "all_reduce"])
@pytest.mark.parametrize("fc_exchange", ["auto", "factors", "parameter_server"])
def test_bytes_have_their_closed_form(world_size: int, conv_exchange: str, fc_exchange: str) -> None:
    model = toy(20)
    schedule = build(NAME, model, world_size, conv_exchange=conv_exchange, fc_exchange=fc_exchange)
    predicted = predict(schedule, model, cluster(world_size), fold_ranks=False)
    assert predicted.iteration_s >= predicted.bound_s * (1 - 1e-9)
    for rank in range(world_size):
        exact, reduced = moved_bytes(model, schedule, rank)
        ring = 2 * (world_size - 1) / world_size * reduced
        # Slices of a ring differ by an element.
        for found in (predicted.sent_bytes[rank], predicted.received_bytes[rank]):
            assert found == pytest.approx(exact + ring, abs=2 * 4 if reduced else 0)


@pytest.mark.parametrize(
    ("model", "batch", "nodes", "taken"),
    [
        # 32 * 9 * (25088 + 4096) = 8.4 million against 18 / 10 * 25088 * 4096 = 185 million, and so on.
        ("vgg16", 32, 10, {"classifier.0", "classifier.3", "classifier.6"}),
        ("vgg16", 512, 10, {"classifier.0"}),
        ("alexnet", 200, 10, {"classifier.1", "classifier.4"}),
        ("resnet152", 32, 10, {"fc"}),
        ("resnet152", 96, 20, set()),
    ],
)
def test_layers_for_which_factors_are_less(model: str, batch: int, nodes: int, taken: set[str]) -> None:
    profile = zoo.get(model)
    schedule = build(NAME, profile, nodes, batch=batch)
    check(schedule, profile)
    assert by_factors(schedule) == taken
    assert parse(schedule.text()) == schedule == from_json(schedule.to_json())
    # The rule is the lesser of what really moves, but for biases, which a server moves as well.
    for block in profile.blocks:
        if (factors := factors_of(profile, block.name)) is not None:
            as_factors = (nodes - 1) * factors.numel(batch)
            by_servers = 2 * (nodes - 1) * factors.inputs * factors.outputs / nodes
            assert (block.name in taken) == (as_factors <= by_servers)


def test_the_rule_of_poseidon() -> None:
    """2K(P1-1)(M+N) <= 2MN(P1+P2-2)/P2."""
    layer = Factors(inputs=300, outputs=200)
    for workers, servers, batch in ((4, 4, 60), (4, 4, 61), (8, 2, 171), (8, 2, 172), (1, 1, 10**6)):
        by_rule = 2 * batch * (workers - 1) * 500 <= 2 * 300 * 200 * (workers + servers - 2) / servers
        assert factors_move_less(layer, batch, workers, servers) == by_rule
        twice = Factors(inputs=300, outputs=200, rows=2)
        assert factors_move_less(twice, batch, workers, servers) == factors_move_less(
            layer, 2 * batch, workers, servers
        )


def test_which_blocks_have_factors() -> None:
    model = toy(10)
    assert factors_of(model, "c1") is factors_of(model, "pool") is None
    assert factors_of(model, "f1") == Factors(inputs=60, outputs=7)
    f1 = model.block("f1")
    words = replace(f1, output_shape=(5, 7), tensors=f1.tensors[:1])
    words = replace(words, tensors=(replace(words.tensors[0], shape=(7, 12)),))
    sequence = replace(model, blocks=(*model.blocks[:3], words), boundary=3)
    assert factors_of(sequence, "f1") == Factors(inputs=12, outputs=7, rows=5)
    looked_up = replace(words, forward_flops=0)  # an embedding has such a weight as well
    assert factors_of(replace(sequence, blocks=(*model.blocks[:3], looked_up)), "f1") is None
    assert factors_of(scaled(model, nbytes=0.5), "f1") is None  # no longer a matrix of its layer's features


def test_reconstructing_takes_as_much_as_the_gradients_of_all_samples() -> None:
    schedule = build(NAME, toy(20), 5, batch=3, fc_exchange="factors")
    f1 = toy(20).block("f1")
    found = predict(schedule, toy(20), cluster(5)).op_seconds["reconstruct"]
    of_all = sum(SOME.backward_weight_s(toy(20).block(name), 5 * 3) for name in ("f1", "f2"))
    assert found >= of_all  # beside the backward pass it shares the device
    behind = build(NAME, toy(20), 5, batch=3, fc_exchange="factors", reconstruct="behind")
    assert predict(behind, toy(20), cluster(5)).op_seconds["reconstruct"] == pytest.approx(of_all, rel=0.01)
    assert all(op.phase is not Phase.BACKWARD for op in behind.ops if isinstance(op, Compute) and op.target == f1.name)


def test_no_worker_computes_a_weight_gradient_that_is_reconstructed() -> None:
    schedule = build(NAME, toy(), 4, fc_exchange="factors")
    phases = {op.phase for op in schedule.ops if isinstance(op, Compute) and op.target in ("f1", "f2")}
    assert phases == {Phase.FORWARD, Phase.LOSS, Phase.BACKWARD_INPUT, Phase.RECONSTRUCT, Phase.UPDATE}


@pytest.mark.parametrize("model", zoo.names())
def test_every_setting_of_the_space_is_legal(model: str) -> None:
    profile = zoo.get(model)
    found = list(space(profile, world_size=6, batch_per_worker=64, local_size=2))
    assert found[0] == Settings()
    assert len(found) == len(set(found)) <= 200
    made = {
        build_with(profile, world_size=6, batch_per_worker=64, settings=s)
        for i, s in enumerate(found)
        if model == "vgg16" or i % 5 == 0
    }
    for schedule in list(made)[:: 1 if model == "alexnet" else 4]:
        check(schedule, profile)
    if model == "vgg16":
        assert len(made) == len(found)
    assert list(space(profile, world_size=1, batch_per_worker=64, local_size=1)) == [Settings()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "ring"}, "algorithm is for an all-reduce that does not take place"),
        ({"bucket": "1MiB"}, "bucket is for an all-reduce that does not take place"),
        ({"conv_exchange": "all_reduce", "algorithm": "hierarchical"}, "hierarchical needs local"),
    ],
)
def test_settings_that_would_be_ignored(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        build(NAME, toy(), 4, **settings)
    assert e.value.hint
    assert f"{NAME}: " in str(e.value)


def test_a_model_without_linear_layers() -> None:
    model = replace(toy(), blocks=toy().blocks[:3], boundary=3)
    assert not by_factors(build(NAME, model, 4))
    with pytest.raises(InputError, match="no block of model toy is one linear layer"):
        build(NAME, model, 4, fc_exchange="factors")
    assert all(s.fc_exchange == "auto" for s in space(model, world_size=4, batch_per_worker=4, local_size=1))


def test_factors_go_once_to_everybody() -> None:
    schedule = build(NAME, toy(), 5, fc_exchange="factors")
    moved = [op for op in schedule.ops if isinstance(op, Transfer) and op.channel == "factors"]
    assert [op.name for op in moved] == ["factors.f2", "factors.f1"]
    assert [op.nbytes for op in moved] == [4 * (7 + 4) * 4, 4 * (6 + 7) * 4]
