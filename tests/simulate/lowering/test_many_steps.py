"""Collectives of many messages: counted without working them out, and said at once."""

from __future__ import annotations

import pytest

from stanza_sim.schedule import Collective
from stanza_sim.schedule.collectives import about_how_many, steps_of
from stanza_sim.simulate import run
from stanza_sim.simulate.run import Collectives, SimulationCase
from tests.schedule.toys import SOME, build, cluster, toy

MODEL = toy(4000)


@pytest.mark.parametrize("algorithm", ["halving_doubling", "tree", "hierarchical"])
@pytest.mark.parametrize("world", [2, 4, 6, 9, 16])
def test_about_as_many_as_there_are(algorithm: str, world: int) -> None:
    settings: dict[str, object] = {"local": 2} if algorithm == "hierarchical" else {}
    schedule = build("all_reduce", MODEL, world, algorithm=algorithm, **settings)
    for op in schedule.ops:
        if isinstance(op, Collective):
            ranks = schedule.group(op.ranks)
            there = len(steps_of(op, ranks, schedule.itemsize_of(op)))
            assert there / 2 <= about_how_many(op, ranks) <= 3 * there + 4


def test_one_rank_a_host_is_a_ring() -> None:
    ring = build("all_reduce", MODEL, 5, algorithm="ring")
    assert build("all_reduce", MODEL, 5, algorithm="hierarchical", local=1).ops == ring.ops
    assert all(about_how_many(op, ring.group(op.ranks)) == 0 for op in ring.ops if isinstance(op, Collective))


def test_what_takes_long_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**settings: object) -> list[str]:
        schedule, said = build("all_reduce", MODEL, 8, **settings), list[str]()
        SimulationCase(
            schedule,
            MODEL,
            cluster(8),
            lambda rank: SOME,
            by_chance=False,
            fold_ranks=True,
            collectives=Collectives.ACTIVITY,
            times=1,
            say=said.append,
        )
        return said

    assert told(algorithm="hierarchical", local=2) == []
    monkeypatch.setattr(run, "LONG", 50)
    monkeypatch.setattr(run, "PROGRESS_S", -1.0)
    said = [text for text in told(algorithm="hierarchical", local=2) if "one by one" not in text]
    assert said[0].startswith("note: collectives by hierarchical go message by message, ")
    assert said[1].startswith("worked out the messages of 1 of ")
    assert not any("message by message" in text for text in told(algorithm="ring"))
