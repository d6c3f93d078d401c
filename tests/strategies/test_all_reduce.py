"""Fusion as Horovod has it, and algorithms by size."""

from __future__ import annotations

from itertools import pairwise
from math import log2

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.model import zoo
from stanza_sim.schedule import Algorithm, Collective, check, from_json, parse
from stanza_sim.schedule.collectives import steps
from stanza_sim.schedule.ops import CollectiveKind
from stanza_sim.strategies._shared.collectives import START_BYTES, all_reduce_costs, cheapest
from tests.schedule.toys import build, cluster, predict, toy

MIB = 1024 * 1024


def test_a_fusion_buffer_takes_what_fits() -> None:
    schedule = build("all_reduce", toy(), 4, fusion="horovod", buffer="220B")
    # In reverse: f2.t1 16 B, f2.t0 112 B | f1.t1 28 B, f1.t0 168 B, c2.t1 20 B | c2.t0 100 B, c1.t1 12 B, c1.t0 36 B.
    # 16 + 112 + 28 = 156 B, and 168 B more would be too much; 168 + 20 = 188 B, and 100 B more would be.
    assert [b.tensors for b in schedule.bundles] == [
        ("f1.t1", "f2.t0", "f2.t1"),
        ("c2.t1", "f1.t0"),
        ("c1.t0", "c1.t1", "c2.t0"),
    ]
    check(schedule, toy())
    assert parse(schedule.text()) == schedule == from_json(schedule.to_json())


@pytest.mark.parametrize("model", zoo.names())
def test_buffers_of_horovod_on_the_zoo(model: str) -> None:
    profile = zoo.get(model)
    schedule = build("all_reduce", profile, 8, fusion="horovod")
    check(schedule, profile)
    sizes = {b.name: [t.numel * 4 for bl in profile.blocks for t in bl.tensors if t.name in b.tensors] for b in
             schedule.bundles}  # fmt: skip
    assert all(sum(s) <= 64 * MIB or len(s) == 1 for s in sizes.values())
    buckets = list(sizes.values())
    for first, second in pairwise(buckets):
        assert sum(first) + second[-1] > 64 * MIB  # the next tensor did not fit
    assert sum(map(sum, buckets)) == profile.nbytes


def test_horovod_moves_what_ddp_moves() -> None:
    for fusion in ("ddp", "horovod"):
        predicted = predict(build("all_reduce", toy(20), 4, fusion=fusion), toy(20), cluster(4))
        assert predicted.sent_bytes[0] == pytest.approx(2 * 3 / 4 * toy(20).nbytes, abs=4 * 4)
        assert predicted.iteration_s >= predicted.bound_s * (1 - 1e-9)


def _walked(algorithm: Algorithm, ranks: int, nbytes: int, start: float) -> float:
    """Steps one after the other, each as long as its busiest port, of messages of one byte an element."""
    made = steps(CollectiveKind.ALL_REDUCE, algorithm, range(ranks), nbytes, chunk=512 * 1024)
    ports: dict[int, dict[tuple[str, int], int]] = {}
    for s in made:
        at = ports.setdefault(s.step, {})
        for end in (("out", s.src), ("in", s.dst)):
            at[end] = at.get(end, 0) + s.hi - s.lo
    return sum(start + max(at.values()) for at in ports.values())


@pytest.mark.parametrize("ranks", [3, 4, 6, 8, 10, 16, 23])
@pytest.mark.parametrize("nbytes", [1, 4_000, 150_000, 1_200_000, 30_000_000])
def test_costs_are_those_of_the_steps(ranks: int, nbytes: int) -> None:
    costs = all_reduce_costs(nbytes, ranks, start=START_BYTES)
    for algorithm in (Algorithm.RING, Algorithm.HALVING_DOUBLING):
        # Blocks are rounded up to whole bytes.
        assert costs[algorithm] == pytest.approx(_walked(algorithm, ranks, nbytes, START_BYTES), abs=2 * ranks)
    tree = _walked(Algorithm.TREE, ranks, nbytes, START_BYTES)
    assert tree - 200 <= costs[Algorithm.TREE] <= 1.3 * tree + 2  # the deepest leaves may have no sibling


def test_the_cheapest_by_size() -> None:
    assert cheapest(1_000, 10, start=START_BYTES) is Algorithm.TREE  # 6 starts against 8
    assert cheapest(100_000, 10, start=START_BYTES) is Algorithm.HALVING_DOUBLING
    assert cheapest(MIB, 10, start=START_BYTES) is Algorithm.RING
    assert cheapest(MIB, 10, start=10 * START_BYTES) is Algorithm.HALVING_DOUBLING
    assert cheapest(MIB, 8, start=START_BYTES) is Algorithm.HALVING_DOUBLING  # as many bytes, fewer starts
    assert cheapest(100 * MIB, 8, start=START_BYTES) is Algorithm.RING  # which would save under 5%
    assert cheapest(1_000, 2, start=START_BYTES) is Algorithm.RING
    assert cheapest(100 * MIB, 32, start=START_BYTES, local=8) is Algorithm.HIERARCHICAL
    assert cheapest(100 * MIB, 8, start=START_BYTES, local=8) is Algorithm.RING  # on one host
    few = all_reduce_costs(8, 1024, start=START_BYTES, local=2)
    assert few[Algorithm.HALVING_DOUBLING] == pytest.approx(2 * log2(1024) * START_BYTES, rel=0.01)
    assert cheapest(8, 1024, start=START_BYTES, local=2) is not Algorithm.HIERARCHICAL


def test_auto_with_several_ranks_on_a_host() -> None:
    schedule = build("all_reduce", zoo.get("vgg16"), 16, algorithm="auto", local=4)
    found = {(o.algorithm, o.local) for o in schedule.ops if isinstance(o, Collective)}
    assert found == {(Algorithm.HIERARCHICAL, 4)}
    check(schedule, zoo.get("vgg16"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "horovod", "bucket": "1MiB"}, "bucket is for fusion: ddp"),
        ({"fusion": "horovod", "first_bucket": "1MiB"}, "first_bucket is for fusion: ddp"),
        ({"buffer": "1MiB"}, "buffer is for fusion: horovod"),
    ],
)
def test_sizes_of_the_other_rule(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        build("all_reduce", toy(), 4, **settings)
    assert e.value.hint
