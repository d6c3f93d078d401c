"""ZeRO's stages and FSDP: bytes, memory and times by hand, the order of collectives, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from stanza_sim import strategies
from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.cluster import Cluster
from stanza_sim.model import zoo
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, ParamTensor
from stanza_sim.schedule import Collective, Schedule, check, parse
from stanza_sim.schedule.collectives import collective_bytes
from stanza_sim.studies.plan.memory import memory_of
from stanza_sim.studies.plan.whole import whole_at
from tests.schedule.toys import ZERO, block, build, cluster, predict, toy

SIZES = (80, 240, 400, 160)
RATE = 1e6
BY_STAGE: list[dict[str, object]] = [
    {},
    {"prefetch": 0},
    {"prefetch": 2},
    {"reshard_after_forward": False},
    {"stage": 2},
    {"stage": 1},
]


def even(sizes: Sequence[int] = SIZES, tied: bool = False) -> ModelProfile:
    """Linear blocks of so many elements, which four ranks share evenly; `tied`: the last uses what the first has."""
    blocks = [block(f"b{i}", BlockKind.FC, [(n,)], 4) for i, n in enumerate(sizes)]
    if tied:
        last: Block = blocks[-1]
        blocks[-1] = Block(**{**{f: getattr(last, f) for f in last.__slots__}, "tied": blocks[0].tensors})
    return ModelProfile(name="even", blocks=tuple(blocks), boundary=0, input_shape=(4,), num_classes=4)


def sent(schedule: Schedule, rank: int) -> int:
    return sum(
        collective_bytes(op, schedule.group(op.ranks), rank, schedule.itemsize_of(op))[0]
        for op in schedule.ops
        if isinstance(op, Collective) and rank in schedule.group(op.ranks)
    )


def moved_by(model: ModelProfile, n: int, hosts: int = 1, *, again: bool, root: int = 0) -> int:
    """The closed form of `fsdp.build`."""
    whole, last = model.nbytes, model.blocks[-1].numel * 4
    gathered = 3 * whole - last - root if again else 2 * whole
    return (n - 1) * gathered // n + 2 * (hosts - 1) * whole // n // hosts


@pytest.mark.parametrize("settings", BY_STAGE)
@pytest.mark.parametrize("local", [None, 2])
def test_bytes_are_those_of_the_closed_form_in_the_schedule_and_in_the_engine(
    settings: dict[str, object], local: int | None
) -> None:
    model = even()
    given = settings if local is None else {**settings, "local": local}
    schedule = build("fsdp", model, 4, **given)
    again = settings.get("stage", 3) == 3 and settings.get("reshard_after_forward", True) is True
    expected = moved_by(model, 4, again=again) if local is None else moved_by(model, 2, 2, again=again)
    predicted = predict(schedule, model, cluster(4), fold_ranks=False)
    assert [sent(schedule, r) for r in range(4)] == [expected] * 4
    assert [predicted.sent_bytes[r] for r in range(4)] == [expected] * 4


def by_hand(prefetch: int, *, again: bool, stage: int, fresh: int = 0) -> tuple[int, int]:
    """The most bytes of whole parameters and gradients at once, pass by pass; `fresh` 1: with those in the making."""
    moments = []
    for u in range(len(SIZES)):
        ahead = SIZES[: u + 1 + prefetch] if not again else SIZES[u : u + 1 + prefetch]
        moments.append((sum(ahead), 0, 0))
        back = SIZES[: u + 1] if not again else SIZES[max(0, u - prefetch) : u + 1]
        added = SIZES[u : u + 1] if again and not prefetch else SIZES[u : u + 2]
        moments.append((sum(back), sum(added), fresh * SIZES[u]))
    if stage == 2:
        moments = [(0, gradients, made) for _, gradients, made in moments]
    parameters, gradients, _ = max(moments, key=sum)
    return 4 * parameters, 4 * gradients


@pytest.mark.parametrize("settings", BY_STAGE)
def test_memory_is_that_of_the_closed_form(settings: dict[str, object]) -> None:
    model = even()
    schedule = build("fsdp", model, 4, **settings)
    need = memory_of(schedule, model, {1: {}})[1]
    own, whole = model.nbytes // 4, model.nbytes
    assert need.optimiser_nbytes == own
    assert need.sums_nbytes == 2 * own
    stage = settings.get("stage", 3)
    if stage == 1:
        assert (need.weights_nbytes, need.gradients_nbytes) == (whole, 2 * whole)
        return
    prefetch = int(str(settings.get("prefetch", 1)))
    again = stage == 3 and settings.get("reshard_after_forward", True) is True
    most = by_hand(prefetch, again=again, stage=int(str(stage)))
    parameters, gradients = by_hand(prefetch, again=again, stage=int(str(stage)), fresh=1)
    assert max(whole_at(schedule, model, 1).values(), key=sum) == most
    assert need.weights_nbytes == (whole if stage == 2 else own + parameters)
    assert need.gradients_nbytes == gradients


@pytest.mark.parametrize("settings", [*BY_STAGE, {"overlap": False}, {"local": 2}])
def test_both_engines_agree_folded_or_not(settings: dict[str, object]) -> None:
    model = toy(8)
    schedule = build("fsdp", model, 4, **settings)
    on: Cluster = cluster(2, ranks_per_host=2) if "local" in settings else cluster(4)
    found = [
        predict(schedule, model, on, engine=engine, fold_ranks=fold).iteration_s
        for engine in ("plain", "compiled")
        for fold in (True, False)
    ]
    assert found == pytest.approx([found[0]] * 4, rel=1e-9)
    assert found[0] >= predict(schedule, model, on).bound_s


@pytest.mark.parametrize("settings", BY_STAGE)
def test_where_computing_takes_no_time_an_iteration_takes_what_is_moved(settings: dict[str, object]) -> None:
    """One communicator carries one collective at a time."""
    model = even()
    schedule = build("fsdp", model, 4, **settings)
    found = predict(schedule, model, cluster(4), ZERO)
    assert found.iteration_s == pytest.approx(sent(schedule, 0) / RATE, rel=1e-9)


def test_hosts_share_what_crosses_them() -> None:
    """Across hosts only slices travel: 2(H-1)/H S/L bytes of each rank, L ranks at once on a host's link."""
    model = even((4_000, 4_000, 4_000, 4_000))
    plain = predict(build("fsdp", model, 4), model, cluster(2, ranks_per_host=2), ZERO)
    hybrid = predict(build("fsdp", model, 4, local=2), model, cluster(2, ranks_per_host=2), ZERO)
    assert plain.iteration_s == pytest.approx(3 / 4 * (3 * 64_000 - 16_000) / RATE, rel=0.01)
    assert 64_000 / RATE <= hybrid.iteration_s <= 1.02 * 64_000 / RATE


ORDER = """\
ag.unit0 ag.unit1 fwd.b0 ag.unit2 fwd.b1 ag.unit3 fwd.b2 fwd.b3 loss
again.unit2 bwd.b3 rs.unit3 again.unit1 bwd.b2 rs.unit2 again.unit0 bwd.b1 rs.unit1 bwd.b0 rs.unit0
upd.unit3 upd.unit2 upd.unit1 upd.unit0
"""


def test_collectives_are_in_the_order_of_torch() -> None:
    schedule = build("fsdp", even(), 4)
    assert [op.name for op in schedule.ops] == ORDER.split()
    after = {op.name: op.after for op in schedule.ops}
    assert after["ag.unit2"] == ("fwd.b0",)
    assert after["bwd.b1"] == ("bwd.b2", "again.unit1", "rs.unit3")
    two_ahead = {op.name: op.after for op in build("fsdp", even(), 4, prefetch=2).ops}
    assert (two_ahead["ag.unit3"], two_ahead["again.unit0"]) == (("fwd.b0",), ("bwd.b3",))


def test_units_by_number_size_and_name() -> None:
    def units(**given: object) -> list[tuple[str, ...]]:
        return [b.tensors for b in build("fsdp", toy(), 4, **given).bundles]

    c1, c2, f1, f2 = (tuple(t.name for t in b.tensors) for b in toy().blocks if b.tensors)
    assert units() == [c1, c2, f1, f2]
    assert units(unit_blocks=3) == [c1 + c2 + f1, f2]
    assert units(unit_size="160B") == [c1 + c2, f1, f2]  # 48 and 120 bytes, 196, 128
    assert units(unit_starts=["f1"]) == [c1 + c2, f1 + f2]


def test_tied_weights_are_whole_from_their_first_use_to_their_last() -> None:
    model = even(tied=True)
    schedule = build("fsdp", model, 4)
    check(schedule, model)
    root, *others = schedule.bundles
    assert (root.name, root.tensors) == ("root", ("b0.t0",))
    assert [b.tensors for b in others] == [("b1.t0",), ("b2.t0",), ("b3.t0",)]
    gathers = [op.name for op in schedule.ops if isinstance(op, Collective) and op.value.name == "root"]
    assert gathers == ["ag.root", "rs.root"]
    assert sent(schedule, 0) == moved_by(model, 4, again=True, root=80 * 4)
    assert max(whole_at(schedule, model, 0).values())[0] >= 4 * 80 + max(a + b for a, b in pairwise(SIZES))
    gpt = zoo.get("gpt2")
    check(build("fsdp", gpt, 4, batch=8), gpt)


BROKEN = [
    ("after=fwd.b0,ag.unit1", "after=fwd.b0", "param(unit1) may not be whole before it is used"),
    ("again.unit1: all_gather param(unit1) @worker nbytes=960 algorithm=ring after=bwd.b3", None, "while fwd.b1 may"),
    (" after=fwd.b0 after_previous=upd.unit2", " after=fwd.b0", "while the iteration before may still use it"),
    ("rs.unit3: reduce_scatter grad(unit3)", "rs.unit3: all_reduce grad(unit3)", "ranks keep it in slices"),
    ("upd.unit0: update unit0 @worker after=rs.unit0", None, "has not been summed"),
    ("layout=cut keep=slices tensors=b0.t0", "layout=cut replicas=3 keep=slices tensors=b0.t0", "and 4 owners"),
    ("layout=cut keep=slices tensors=b0.t0", "layout=replicated keep=slices tensors=b0.t0", "in slices has"),
]


@pytest.mark.parametrize(("was", "made", "message"), BROKEN)
def test_a_schedule_that_breaks_a_rule_is_refused(was: str, made: str | None, message: str) -> None:
    refused(build("fsdp", even(), 4), was, made, message)


def refused(schedule: Schedule, was: str, made: str | None, message: str) -> None:
    """`made`: None to take the dependencies away."""
    assert was in schedule.text()
    with pytest.raises(ScheduleError) as e:
        check(parse(schedule.text().replace(was, was.partition(" after=")[0] if made is None else made)), even())
    assert message in str(e.value)


HYBRID = [
    ("ar.unit3.slice0: all_reduce sum(unit3) @slice0", "ar.unit3.slice0: all_reduce sum(unit3) @worker", "is over all"),
    ("nbytes=320 algorithm=ring after=rs.unit3", "nbytes=640 algorithm=ring after=rs.unit3", "the slice has 320 bytes"),
    ("@slice1 nbytes=320 algorithm=ring after=rs.unit3.host0,rs.unit3.host1", None, "sum(unit3) is not there"),
    ("update unit3 @worker after=ar.unit3.slice0,ar.unit3.slice1", None, "has not been summed over all owners"),
    ("all_gather param(unit0) @host0", "all_gather param(unit0) @worker", "needs a bundle that is cut over its own"),
]


@pytest.mark.parametrize(("was", "made", "message"), HYBRID)
def test_a_hybrid_that_breaks_a_rule_is_refused(was: str, made: str | None, message: str) -> None:
    refused(build("fsdp", even(), 4, local=2), was, made, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 2, "prefetch": 1}, "prefetch is for stage 3"),
        ({"stage": 1, "reshard_after_forward": True}, "reshard_after_forward is for stage 3"),
        ({"local": 3}, "hosts of 3 ranks do not divide 4 ranks"),
        ({"unit_blocks": 2, "unit_size": "1kB"}, "unit_blocks and unit_size both say what a unit is"),
        ({"unit_starts": ["nowhere"]}, "model toy has no block nowhere"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        build("fsdp", toy(), 4, **settings)
    assert e.value.hint
    assert "fsdp: " in str(e.value)


def test_the_space_is_small_and_every_setting_in_it_is_another_schedule() -> None:
    model = zoo.get("vgg16")
    found = list(strategies.get("fsdp").space(model, world_size=16, batch_per_worker=32, local_size=8))
    assert len(found) <= 21
    made = [
        strategies.get("fsdp").build(model, world_size=16, batch_per_worker=32, settings=settings) for settings in found
    ]
    assert len({schedule.digest() for schedule in made}) == len(found)
    for schedule in made:
        check(schedule, model)


def test_a_model_of_one_tensor_that_has_fewer_elements_than_ranks() -> None:
    few = ModelProfile(
        name="few",
        blocks=(block("b", BlockKind.FC, [(3,)], 4),),
        boundary=0,
        input_shape=(4,),
        num_classes=4,
    )
    assert few.blocks[0].tensors == (ParamTensor(name="b.t0", shape=(3,)),)
    for settings in ({}, {"stage": 2, "local": 4}):
        check(build("fsdp", few, 8, **settings), few)
