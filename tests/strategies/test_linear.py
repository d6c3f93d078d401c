"""What is done to build and check a schedule grows with its ops, not with their square: lookups by name are counted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from stanza_sim.model.profile import Block, BlockKind, ModelProfile
from stanza_sim.schedule import Schedule, check
from tests.schedule.toys import block, build, toy

CASES: list[tuple[str, dict[str, object]]] = [
    ("local", {}),
    ("all_reduce", {"first_bucket": "1B", "bucket": "1B"}),
    ("all_reduce", {}),
    ("parameter_server", {"servers": 2}),
    ("parameter_server", {"servers": 2, "assignment": "byteps", "partition": "64B"}),
    ("parameter_server", {"assignment": "sliced", "slice": 20, "placement": "colocated", "local": 2}),
    ("stanza", {"fc_workers": 2}),
    ("stanza", {"fc_workers": 2, "fc_parallel": "model"}),
    ("sharded_head", {}),
    ("sufficient_factors", {"fc_exchange": "factors"}),
    ("sufficient_factors", {"conv_exchange": "all_reduce"}),
]


class Name(str):
    """A name that counts how often it is hashed or compared."""

    uses = 0

    def __hash__(self) -> int:
        Name.uses += 1
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        Name.uses += 1
        return str.__eq__(self, other)


def _deep(depth: int) -> ModelProfile:
    """`depth` CONV blocks and as many FC blocks."""
    made = [block(f"c{i}", BlockKind.CONV, [(30,), (5,)], 8) for i in range(depth)]
    made += [block(f"f{i}", BlockKind.FC, [(8, 8), (8,)], 8) for i in range(depth)]
    return replace(toy(), name="deep", blocks=tuple(map(_counting, made)), boundary=depth)


def _counting(plain: Block) -> Block:
    tensors = tuple(replace(t, name=Name(t.name)) for t in plain.tensors)
    return replace(plain, name=Name(plain.name), tensors=tensors)


def _uses(depth: int, strategy: str, settings: dict[str, object]) -> tuple[int, int, Schedule]:
    model = _deep(depth)
    Name.uses = 0
    schedule = build(strategy, model, 4, **settings)
    building = Name.uses
    check(schedule, model)
    return building, Name.uses - building, schedule


@pytest.mark.parametrize(("strategy", "settings"), CASES)
def test_lookups_grow_with_the_ops(strategy: str, settings: dict[str, object]) -> None:
    """Of twice the ops, building and checking each take at most twice the lookups, and some."""
    runs = [_uses(depth, strategy, settings) for depth in (10, 20, 40)]
    ops = [b - a for a, b in pairwise(len(schedule.ops) for *_, schedule in runs)]
    assert ops[1] == pytest.approx(2 * ops[0], rel=0.2)
    for what, counts in zip(("build", "check"), zip(*(run[:2] for run in runs), strict=True), strict=True):
        first, second = (b - a for a, b in pairwise(counts))
        assert second <= 2.3 * first, f"{what}: {counts}"
