"""Folding on fabrics with shared links is exact too, and folds where there is symmetry."""

from __future__ import annotations

import dataclasses

import pytest

from stanza_sim.cluster import load_cluster
from stanza_sim.simulate.lowering.fold import fold
from tests.schedule.toys import build, predict
from tests.simulate.lowering.test_fold import MODEL, STRATEGIES

FABRICS = ("leaf-spine", "fat-tree", "torus", "ring", "multi-gpu")
SOME_STRATEGIES = ("one server", "co-located, cut, no overlap", "all-reduce", "Stanza", "two FC workers, servers")


@pytest.mark.parametrize("where", FABRICS)
@pytest.mark.parametrize("name", SOME_STRATEGIES)
def test_folded_is_unfolded(name: str, where: str) -> None:
    on = load_cluster(where)
    strategy, options = STRATEGIES[name]
    schedule = build(strategy, MODEL, on.world_size, **options)
    folded, plain = (predict(schedule, MODEL, on, fold_ranks=f) for f in (True, False))
    # Where iterations never repeat, the order of messages that tie decides; the mean hardly feels it.
    within = 1e-9 if folded.steady and plain.steady else 1e-3
    assert folded.iteration_s == pytest.approx(plain.iteration_s, rel=within)
    assert folded.exposed_comm_s == pytest.approx(plain.exposed_comm_s, rel=max(within, 1e-6), abs=1e-12)
    assert folded.bound_s == pytest.approx(plain.bound_s, rel=1e-9)
    assert folded.sent_bytes.items() <= plain.sent_bytes.items()
    assert folded.iteration_s >= folded.bound_s * (1 - 1e-9)


def test_symmetry_is_found_and_respected() -> None:
    on = load_cluster("leaf-spine")
    schedule = build("parameter_server", MODEL, on.world_size)
    # The server, its neighbours on the same leaf, and everybody else.
    assert [len(c) for c in fold(schedule, on).classes] == [24, 7, 1]
    ring = build("all_reduce", MODEL, on.world_size)
    assert len(fold(ring, on).classes) == 1  # every link between switches has as much of the ring
    hosts = tuple(dataclasses.replace(h, device_speed=0.9 if i == 3 else 1.0) for i, h in enumerate(on.hosts))
    slow = dataclasses.replace(on, hosts=hosts)
    assert [len(c) for c in fold(schedule, slow).classes] == [7, 1, 16, 7, 1]
