"""What `stanza` can be set to: cuts, pipelines, places, exchanges, bytes; and `local`, which it has to beat."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from stanza_sim import strategies
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Nic
from stanza_sim.model import zoo
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Compute, Phase, Schedule, Transfer, check, from_json, parse
from tests.schedule.toys import SOME, ZERO, block, build, cluster, predict, toy
from tests.strategies.stanza_bytes import stanza_bytes

EXCHANGES = [
    {},
    {"conv_exchange": "parameter_server"},
    {"conv_exchange": "parameter_server", "conv_servers": "sharded"},
    {"conv_exchange": "parameter_server", "conv_servers": "single"},
]
PIPELINES = [
    {},
    {"microbatches": 2},
    {"microbatches": 4, "eager_backward": 1, "activations": "bf16"},
    {"fc_compute": "arrival"},
    {"fc_compute": "arrival", "microbatches": 2, "eager_backward": 2},
]
PLACES = [
    (4, {}),
    (5, {"fc_workers": 2}),
    (1, {"placement": "colocated"}),
    (3, {"placement": "colocated", "fc_workers": 3}),
    (5, {"placement": "colocated", "fc_workers": 2}),
]


def heavy() -> ModelProfile:
    """A toy of whose parameters 96% are in the FC part."""
    model = toy()
    fc = BlockKind.FC
    wide = (block("f1", fc, [(31, 31), (31,)], 31, flops=961), block("f2", fc, [(31, 4), (4,)], 4, flops=124))
    return replace(model, blocks=(*model.conv_blocks, *wide))


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda v: "-".join(map(str, v.values())) or "plain")
@pytest.mark.parametrize(("world", "place"), PLACES, ids=lambda v: str(v))
def test_legal_and_of_the_closed_form_s_bytes(
    world: int, place: dict[str, object], pipeline: dict[str, object]
) -> None:
    model = heavy()
    for exchange, cut in product(EXCHANGES, [{}, {"cut": "c2"}]):
        settings = place | pipeline | exchange | cut
        schedule = build("stanza", model, world, batch=4, **settings)
        check(schedule, model)
        assert parse(schedule.text()) == schedule == from_json(schedule.to_json())
        expected = stanza_bytes(model, world, 4, **settings)  # type: ignore[arg-type]
        on = cluster(world, nic=Nic(bandwidth_Bps=1e6, latency_s=1e-4, overhead_s=1e-5))
        predicted = predict(schedule, model, on, fold_ranks=False)
        assert [(predicted.sent_bytes[r], predicted.received_bytes[r]) for r in range(world)] == expected, settings
        assert predicted.iteration_s >= predicted.bound_s * (1 - 1e-9)


def _order(schedule: Schedule, rank: int, *phases: Phase) -> list[tuple[str, int]]:
    """(block, micro-batch) of the passes of a rank, in program order."""
    passes = [op for op in schedule.for_rank(rank) if isinstance(op, Compute) and op.phase in phases]
    return [(op.target, op.microbatch) for op in passes]


def test_backward_passes_go_block_by_block_but_for_the_eager_ones() -> None:
    backward = (Phase.BACKWARD,)
    together = _order(build("stanza", toy(), 3, microbatches=2), 0, *backward)
    assert together == [(b, m) for b in ("c2", "pool", "c1") for m in (0, 1)]
    one_by_one = _order(build("stanza", toy(), 3, microbatches=2, eager_backward=2), 0, *backward)
    assert one_by_one == [(b, m) for m in (0, 1) for b in ("c2", "pool", "c1")]
    mixed = _order(build("stanza", toy(), 3, microbatches=4, eager_backward=1), 0, *backward)
    assert mixed[:3] == [("c2", 0), ("pool", 0), ("c1", 0)]
    assert mixed[3:6] == [("c2", 1), ("c2", 2), ("c2", 3)]


def test_fc_workers_compute_weight_gradients_behind_all_input_gradients() -> None:
    schedule = build("stanza", toy(), 3, microbatches=2)
    passes = [op.phase for op in schedule.for_rank(2) if isinstance(op, Compute) and not op.phase.on_bundle]
    assert passes.index(Phase.BACKWARD_WEIGHT) > max(i for i, p in enumerate(passes) if p is Phase.BACKWARD_INPUT)


def test_on_arrival_each_conv_worker_s_samples_are_computed_by_themselves() -> None:
    schedule = build("stanza", toy(), 6, fc_workers=2, fc_compute="arrival", microbatches=2)
    # 4 serves ranks 0 and 1, 5 serves 2 and 3; numbers 0 and 1 are those of the CONV workers' own micro-batches.
    assert _order(schedule, 4, Phase.FORWARD) == [(b, n) for n in (2, 3, 4, 5) for b in ("f1", "f2")]
    sent = [op for op in schedule.ops if isinstance(op, Transfer) and op.channel == "act"]
    assert [(op.microbatch, op.arrives_as, [*schedule.pairs(op)]) for op in sent] == [
        (0, 2, [(0, 4), (2, 5)]),
        (0, 3, [(1, 4), (3, 5)]),
        (1, 4, [(0, 4), (2, 5)]),
        (1, 5, [(1, 4), (3, 5)]),
    ]


def test_micro_batches_overlap_both_parts() -> None:
    """With free communication and equal parts, two micro-batches take 3/4 of the time of one batch."""
    model = replace(toy(), blocks=(toy().blocks[0], replace(toy().blocks[4], forward_flops=500)), boundary=1)
    flops = {"forward_flops": 500, "backward_input_flops": 250, "backward_weight_flops": 0}
    model = replace(model, blocks=tuple(replace(b, **flops) for b in model.blocks))
    on = cluster(2, nic=Nic(bandwidth_Bps=1e15))
    costs = replace(ZERO, flops_s=1e-6)
    whole, halves = (predict(build("stanza", model, 2, microbatches=m), model, on, costs) for m in (1, 2))
    assert whole.iteration_s == pytest.approx(2 * 4 * 750e-6, rel=1e-3)
    assert halves.iteration_s == pytest.approx(0.75 * whole.iteration_s, rel=1e-3)


def test_rounded_activations_halve_what_travels() -> None:
    plain, rounded = (build("stanza", toy(), 3, activations=a) for a in ("fp32", "bf16"))
    sizes = [{op.name: op.nbytes for op in s.ops if isinstance(op, Transfer)} for s in (plain, rounded)]
    assert sizes == [{"act": 4 * (6 * 4 + 8), "actgrad": 4 * 6 * 4}, {"act": 4 * (6 * 2 + 8), "actgrad": 4 * 6 * 2}]
    assert "wire=bf16" in rounded.text()


def test_a_co_located_fc_worker_is_the_first_of_its_share() -> None:
    schedule = build("stanza", toy(), 5, fc_workers=2, placement="colocated")
    assert [*schedule.group("fc_worker")] == [0, 3]
    act = schedule.op("act")
    assert isinstance(act, Transfer)
    assert [*schedule.pairs(act)] == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3)]
    assert schedule.global_batch == 5 * 4


@pytest.mark.parametrize(
    ("model", "settings", "message", "hint"),
    [
        (
            "toy",
            {"cut": "c9"},
            "model toy has no block 'c9' to cut at",
            "a cut is at the beginning of a block: pool, c2",
        ),
        ("toy", {"cut": "c1"}, "a cut at c1, the first block, leaves no CONV part", "pool, c2, f1, f2"),
        (
            "inception_v3",
            {"cut": "Mixed_5b.branch1x1"},
            "is inside block Mixed_5b of model inception_v3; a cut goes through no",
            "Mixed_5c",
        ),
        ("toy", {"microbatches": 3}, "a batch of 4 cannot be cut in 3 equal micro-batches", "use one of 1, 2, 4"),
        ("toy", {"eager_backward": 2}, "2 micro-batches cannot go backward one by one: there are 1", "at most 1"),
        ("toy", {"conv_servers": "single"}, "conv_servers is for parameter servers", "conv_exchange: parameter_server"),
        (
            "toy",
            {"fc_workers": 7, "placement": "colocated"},
            "7 co-located FC workers are more than the 6",
            "at most 6",
        ),
        ("toy", {"fc_workers": 4}, "4 FC workers of 6 nodes leave 2 CONV workers", "at most 3 of 6"),
    ],
)
def test_what_does_not_fit(model: str, settings: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(InputError) as e:
        build("stanza", toy() if model == "toy" else zoo.get(model), 6, **settings)
    assert message in str(e.value)
    assert hint in str(e.value)
    assert f"stanza: {next(iter(settings))}" in str(e.value)


def test_micro_batches_of_a_large_batch_are_named_at_once() -> None:
    with pytest.raises(InputError, match="a batch of 999999937 cannot be cut in 7 equal micro-batches") as e:
        build("stanza", toy(), 6, batch=999_999_937, microbatches=7)
    assert e.value.hint == "use one of 1, 999999937"  # a prime number


def test_a_cut_makes_two_parts_of_a_model_that_has_one() -> None:
    model = replace(toy(), boundary=5)
    with pytest.raises(InputError, match="no FC part"):
        build("stanza", model, 4)
    check(build("stanza", model, 4, cut="f2"), model)


@pytest.mark.parametrize("model", ["vgg16", "resnet152"])
@pytest.mark.parametrize(("world", "batch", "local"), [(1, 4, 1), (2, 6, 1), (10, 32, 1), (12, 32, 4)])
def test_the_space_is_of_settings_that_can_be_built(model: str, world: int, batch: int, local: int) -> None:
    profile, stanza = zoo.get(model), strategies.get("stanza")
    found = list(stanza.space(profile, world_size=world, batch_per_worker=batch, local_size=local))
    assert len(found) == len(set(found)) <= 350
    assert world == 1 or found[0] == stanza.Settings()
    for settings in found[::7]:
        schedule = stanza.build(profile, world_size=world, batch_per_worker=batch, settings=settings)
        if world < 3:
            check(schedule, profile)


def test_local_is_one_node_that_waits_for_nobody() -> None:
    model, local = heavy(), strategies.get("local")
    alone, crowd = (build("local", model, n) for n in (1, 5))
    check(crowd, model)
    (settings,) = local.space(model, world_size=5, batch_per_worker=4, local_size=1)
    assert settings == local.Settings()
    assert [len(crowd.for_rank(r)) for r in range(5)] == [len(alone.ops), 0, 0, 0, 0]
    for folded in (True, False):
        predicted = predict(crowd, model, cluster(5), SOME, fold_ranks=folded)
        assert predicted.iteration_s == pytest.approx(predicted.bound_s, rel=1e-12)
        assert predicted.iteration_s == predict(alone, model, cluster(1), SOME).iteration_s
        assert predicted.samples_per_s == pytest.approx(4 / predicted.iteration_s)
        assert not any(predicted.sent_bytes.values())
