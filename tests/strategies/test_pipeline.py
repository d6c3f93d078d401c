"""Pipelines: closed forms of time, bytes and memory, where models are cut, what is refused, and repeated passes."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim import strategies
from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.cluster.cluster import Nic
from stanza_sim.model import zoo
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, with_boundary
from stanza_sim.schedule import Compute, Phase, Schedule, Transfer, check, from_json, parse
from stanza_sim.strategies._shared.cutting import balanced, most_parts, parts_of
from stanza_sim.studies.plan.memory import memory_of
from tests.schedule.toys import SOME, Costs, block, build, cluster, predict, toy

NAME = "pipeline"
FAST = Nic(bandwidth_Bps=1e18)
COMPUTE = Costs(flops_s=1e-6)


def even(blocks: int) -> ModelProfile:
    """A chain of blocks that are alike."""
    made = tuple(block(f"b{i}", BlockKind.FC, [(8, 8)], 8, flops=1000) for i in range(blocks))
    return ModelProfile(name="even", blocks=made, boundary=blocks, input_shape=(8,), num_classes=8)


def held(schedule: Schedule, rank: int, blocks: set[str]) -> int:
    """The most micro-batches that a rank has gone forward with, through one of `blocks`, and not back."""
    now = most = 0
    for op in schedule.for_rank(rank):
        if isinstance(op, Compute) and op.target in blocks:
            now += {Phase.FORWARD: 1, Phase.BACKWARD: -1}.get(op.phase, 0)
            most = max(most, now)
    return most


@pytest.mark.parametrize("engine", ["plain", "compiled"])
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
@pytest.mark.parametrize(
    ("world", "stages", "m", "checkpoint"),
    [(4, 4, 4, "none"), (4, 2, 8, "stage"), (3, 3, 6, "block")],
)
def test_time_has_its_closed_form(engine: str, order: str, world: int, stages: int, m: int, checkpoint: str) -> None:
    """(M + S-1)(f + b), with b one f more where the forward pass is run again."""
    model, batch = even(12), 4
    schedule = build(NAME, model, world, batch=batch, stages=stages, microbatches=m, order=order, checkpoint=checkpoint)
    check(schedule, model)
    found = predict(schedule, model, cluster(world, nic=FAST), COMPUTE, engine=engine)
    samples, blocks = batch * stages // m, 12 // stages
    forward = blocks * COMPUTE.forward_s(model.blocks[0], samples)
    backward = blocks * COMPUTE.backward_s(model.blocks[0], samples) + (checkpoint != "none") * forward
    assert found.iteration_s == pytest.approx((m + stages - 1) * (forward + backward), rel=1e-6)
    busy = m * (forward + backward)
    assert 1 - busy / found.iteration_s == pytest.approx((stages - 1) / (m + stages - 1), abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"stages": 2, "microbatches": 4, "checkpoint": "block"}, {"stages": 1}])
@pytest.mark.parametrize("wire", [None, "bf16"])
def test_bytes_have_their_closed_form(settings: dict[str, object], wire: str | None) -> None:
    model, world, batch = zoo.get("alexnet"), 4, 8
    schedule = build(NAME, model, world, batch=batch, **settings, **({"activations": wire} if wire else {}))
    check(schedule, model)
    stages = int(str(settings.get("stages", 4)))
    replicas = world // stages
    forward = 2 if settings.get("checkpoint") else 1

    def flops(b: Block) -> float:
        return forward * b.forward_flops + b.backward_input_flops + b.backward_weight_flops

    parts = parts_of(model, balanced(model, stages, [flops(b) for b in model.blocks]))
    found = predict(schedule, model, cluster(world), fold_ranks=False)
    assert found.iteration_s >= found.bound_s * (1 - 1e-9)
    width = 2 if wire else 4
    for rank in range(world):
        s = rank // replicas
        on = stages * batch * (parts[s][-1].output_numel * width + 8) if s < stages - 1 else 0
        back = stages * batch * parts[s - 1][-1].output_numel * width if s else 0
        ring = 2 * (replicas - 1) / replicas * sum(b.numel for b in parts[s]) * 4
        assert found.sent_bytes[rank] == pytest.approx(on + back + ring, abs=8 * len(model.blocks))


@pytest.mark.parametrize(("m", "order"), [(4, "1f1b"), (8, "1f1b"), (2, "1f1b"), (8, "gpipe")])
def test_micro_batches_in_flight(m: int, order: str) -> None:
    schedule = build(NAME, even(4), 4, stages=4, microbatches=m, order=order)
    for s in range(4):
        assert held(schedule, s, {f"b{s}"}) == (m if order == "gpipe" else min(4 - s, m))


@pytest.mark.parametrize("settings", [{}, {"stages": 2, "microbatches": 4, "checkpoint": "stage", "bucket": "100B"}])
def test_folded_is_unfolded_and_engines_agree(settings: dict[str, object]) -> None:
    model, world = toy(20), 8
    schedule = build(NAME, model, world, **settings)
    assert parse(schedule.text()) == schedule == from_json(schedule.to_json())
    on = cluster(world)
    found = [
        predict(schedule, model, on, SOME, fold_ranks=fold, engine=engine)
        for fold, engine in ((True, "plain"), (False, "plain"), (False, "compiled"))
    ]
    for other in found[1:]:
        assert other.iteration_s == pytest.approx(found[0].iteration_s, rel=1e-9)
        assert other.bound_s == pytest.approx(found[0].bound_s, rel=1e-9)
        assert {r: other.sent_bytes[r] for r in found[0].sent_bytes} == pytest.approx(found[0].sent_bytes)
    assert found[0].iteration_s >= found[0].bound_s * (1 - 1e-9)


# ---- where it is cut -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8), st.data())
def test_the_costliest_part_costs_least(drawn: list[tuple[int, bool]], data: st.DataObject) -> None:
    blocks = [*drawn, (0, True)]
    made = tuple(block(f"b{i}", BlockKind.FC, [(2,)] if trained else [], 2) for i, (_, trained) in enumerate(blocks))
    model = ModelProfile(name="m", blocks=made, boundary=0, input_shape=(2,), num_classes=2)
    costs = [float(c) for c, _ in blocks]
    parts = data.draw(st.integers(1, most_parts(model)))

    def worst(places: tuple[int, ...]) -> float:
        cut = parts_of(model, places)
        if not all(any(b.tensors for b in part) for part in cut):
            return float("inf")
        return max(sum(costs[model.place(b.name)] for b in part) for part in cut)

    found = balanced(model, parts, costs)
    assert found[0] == 0
    assert len(found) == parts
    best = min(worst((0, *rest)) for rest in combinations(range(1, len(blocks)), parts - 1))
    assert worst(tuple(found)) == best < float("inf")


def test_time_counts_devices_and_what_crosses_between_hosts() -> None:
    model = even(8)
    model = replace(
        model, blocks=tuple(replace(b, output_shape=(8, 4 if i == 2 else 400)) for i, b in enumerate(model.blocks))
    )
    settings = strategies.get(NAME).Settings.model_validate({"stages": 2, "balance": "time"})

    def second_begins(seconds: dict[str, float], bandwidth_Bps: float = 1e18, ranks_per_host: int = 1) -> str:
        on = cluster(4 // ranks_per_host, ranks_per_host=ranks_per_host, nic=Nic(bandwidth_Bps=bandwidth_Bps))
        made = strategies.build(
            NAME,
            model,
            world_size=4,
            batch_per_worker=8,
            settings=settings,
            cluster=on,
            times=lambda block, samples: (samples * seconds.get(block.name, 1.0), 0.0),
        )
        (passes,) = [
            o
            for o in made.ops
            if isinstance(o, Compute) and o.ranks == "stage1" and o.name.startswith("fwd") and o.name.endswith("/0")
        ][:1]
        return passes.target

    assert second_begins({}) == "b4"
    assert second_begins({"b0": 9.0}) == "b1"
    assert second_begins({}, bandwidth_Bps=1e3) == "b3"  # behind the block with the small output
    assert second_begins({}, bandwidth_Bps=1e3, ranks_per_host=4) == "b4"  # all on one host
    with pytest.raises(InputError, match="time is known on a cluster only"):
        build(NAME, model, 4, balance="time")


def test_as_many_stages_as_divide_the_ranks() -> None:
    assert len(build(NAME, zoo.get("vgg16"), 10).groups) == 10
    alexnet = build(NAME, zoo.get("alexnet"), 10, batch=32)
    assert [len(g.ranks) for g in alexnet.groups] == [2] * 5  # of 8 blocks
    assert (alexnet.global_batch, alexnet.microbatches) == (320, 5)
    assert [op for op in build(NAME, toy(), 7).ops if isinstance(op, Transfer)] == []  # 4 blocks with parameters


def test_layer_separation_is_one_of_two_stages() -> None:
    """The bytes between a CONV worker and its FC worker are those of a replica of two stages."""
    model = with_boundary(zoo.get("vgg16"), "classifier.0")
    moved = []
    for name, batch, settings in (("stanza", 64, {}), (NAME, 32, {"cuts": ["classifier.0"], "microbatches": 1})):
        schedule = build(name, model, 2, batch=batch, **settings)
        moved.append([(op.values, op.nbytes) for op in schedule.ops if isinstance(op, Transfer)])
    assert moved[0] == moved[1]


def test_tied_weights_are_held_by_all_stages_that_use_them() -> None:
    model = zoo.get("gpt2")
    schedule = build(NAME, model, 8, batch=2, stages=4, microbatches=4)
    check(schedule, model)
    (tied,) = [bundle for bundle in schedule.bundles if "wte.weight" in bundle.tensors]
    assert tied.tensors == ("wte.weight",)
    assert list(schedule.owners(tied)) == [0, 1, 6, 7]
    parameters = {rank: need.weights_nbytes for rank, need in memory_of(schedule, model, {0: {}, 6: {}}).items()}
    assert min(parameters.values()) >= tied.numel * 4
    op = schedule.op("ar.tied0")
    for needed in op.after:  # one is at the first stage, one at the last
        less = replace(op, after=tuple(name for name in op.after if name != needed))
        without = replace(schedule, ops=tuple(less if o is op else o for o in schedule.ops))
        with pytest.raises(ScheduleError, match=r"grad\(tied0\) needs the backward pass of"):
            check(without, model)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "settings", "message", "hint"),
    [
        (4, {"stages": 3}, "4 ranks cannot be shared out evenly to 3 stages", "use one of 1, 2, 4"),
        (5, {"stages": 5}, "the 5 blocks of model toy make at most 4 stages, not 5", "use one of 1"),
        (4, {"cuts": ["f1"], "stages": 4}, "1 cuts make 2 stages, not 4", "leave stages out"),
        (3, {"cuts": ["pool", "c2"]}, "stage 1 would have no parameters: pool", "leave one cut out"),
        (3, {"cuts": ["f1", "c2"]}, "[f1, c2] are not in the order of the model's blocks", "c2, f1"),
        (2, {"cuts": ["c9"]}, "model toy has no block 'c9' to cut at", "pool, c2, f1, f2"),
        (2, {"cuts": ["c1"]}, "a cut at c1, the first block, leaves no block to the first stage", "pool, c2"),
        (4, {"cuts": ["f1"], "balance": "time"}, "the cuts are given", "leave balance out"),
        (4, {"microbatches": 3}, "a batch of 16 cannot be cut in 3 equal micro-batches", "1, 2, 4, 8, 16"),
        (4, {"algorithm": "ring"}, "algorithm is for an all-reduce that does not take place", "fewer stages"),
    ],
)
def test_what_does_not_fit_is_refused(world: int, settings: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(InputError) as e:
        build(NAME, toy(), world, **settings)
    assert message in str(e.value)
    assert hint in str(e.value)
    assert str(e.value).startswith("pipeline: ")


# ---- passes that run again -------------------------------------------------------------------------------------------


def test_what_runs_again_does_so_once_between_the_two_passes() -> None:
    text = build(NAME, toy(), 1, checkpoint="block").text()
    check(parse(text), toy())
    line = next(line for line in text.splitlines() if line.startswith("again.c2"))
    bare = line.partition(" after=")[0]
    rest = text.replace(f"{line}\n", "").replace("after=again.c2", "after=bwd.f1")
    for where, message in (
        (text.replace(line, f"{line}\n{line.replace('again.c2', 'again2.c2')}"), "has run this forward pass already"),
        (f"{rest}{bare} lane=side after=bwd.f1\n", r"the activations inside c2 are there once it is computed again"),
        (rest.replace("fwd.c2:", f"{bare} after=fwd.pool\nfwd.c2:"), r"act\(c2\) is not there before it is used"),
    ):
        with pytest.raises(ScheduleError, match=message):
            check(parse(where), toy())


def test_nothing_runs_again_unless_asked_to() -> None:
    for checkpoint, count in (("none", 0), ("stage", 5), ("block", 5)):
        schedule = build(NAME, toy(), 2, stages=1, checkpoint=checkpoint)
        ran = [op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.RECOMPUTE]
        assert len(ran) == count
    assert strategies.get(NAME).Settings().checkpoint == "none"
