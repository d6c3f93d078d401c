"""The steps of collectives: carried out on arrays they give the collective, and they move what the formulas say."""

from __future__ import annotations

from math import log2

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.schedule import Algorithm, Carrier, Collective, CollectiveKind, Ranks, Value, ValueKind, slice_bounds
from stanza_sim.schedule.collectives import Step, rank_steps, steps, steps_of, traffic
from stanza_sim.schedule.phases import Tree

Vector = npt.NDArray[np.int64]
AR, RS, AG, BC = CollectiveKind
RING, HD, TREE, HIER = Algorithm


def op_of(
    kind: CollectiveKind,
    algorithm: Algorithm,
    numel: int,
    *,
    local: int = 0,
    chunk: int = 1 << 19,
    root: int | None = None,
) -> Collective:
    return Collective(
        name="x",
        kind=kind,
        ranks="w",
        value=Value(ValueKind.GRAD, "b"),
        nbytes=4 * numel,
        algorithm=algorithm,
        by=Carrier.STEPS,
        local=local,
        chunk=chunk,
        root=root,
    )


def carried_out(made: tuple[Step, ...], data: dict[int, Vector], order: list[int]) -> dict[int, Vector]:
    """Each rank on its own way through its steps, whichever of `order` can go on first; fails on a deadlock.

    Nothing sent or received in one step may overlap: only then is the result free of the engine's timing.
    """
    data = {r: v.copy() for r, v in data.items()}
    programs = {r: list(rank_steps(made, r)) for r in data}
    wire: dict[Step, Vector] = {}
    entered: dict[int, int] = {}
    while any(programs.values()):
        moved = False
        for r in order:
            if not programs[r]:
                continue
            step = programs[r][0]
            if entered.get(r) != step.step:
                entered[r], moved = step.step, True
                for s in step.sends:
                    wire[s] = data[r][s.lo : s.hi].copy()
                    for other in step.receives:
                        assert other.hi <= s.lo or s.hi <= other.lo, (s, other)
            if all(s in wire for s in step.receives):
                for s in step.receives:
                    got = wire.pop(s)
                    assert len(got) == s.hi - s.lo > 0
                    data[r][s.lo : s.hi] = data[r][s.lo : s.hi] + got if s.reduce else got
                programs[r].pop(0)
                moved = True
        assert moved, "deadlock"
    assert not wire
    return data


@settings(max_examples=300)
@given(
    kind=st.sampled_from(CollectiveKind),
    algorithm=st.sampled_from(Algorithm),
    n=st.integers(1, 17),
    numel=st.integers(1, 70),
    chunk=st.integers(1, 80),
    local=st.integers(1, 9),
    first=st.integers(0, 9),
    data=st.data(),
)
def test_the_steps_give_the_collective(
    kind: CollectiveKind,
    algorithm: Algorithm,
    n: int,
    numel: int,
    chunk: int,
    local: int,
    first: int,
    data: st.DataObject,
) -> None:
    members = list(range(first, first + n))
    root = data.draw(st.sampled_from(members)) if kind is BC else None
    order = data.draw(st.permutations(members))
    made = steps(kind, algorithm, members, numel, chunk=chunk, hosts=[r // local for r in members], root=root)
    own = {r: np.arange(numel) * 1000 + 7 * r + 1 for r in members}
    total = sum(own.values(), np.zeros(numel, dtype=np.int64))
    slices = [slice_bounds(numel, n, i) for i in range(n)]
    if kind is AG:
        own = {r: np.full(numel, -5) for r in members}
        for r, (lo, hi) in zip(members, slices, strict=True):
            own[r][lo:hi] = total[lo:hi]
    elif kind is BC:
        own = {r: total if r == root else np.full(numel, -5) for r in members}
    found = carried_out(made, own, order)
    for r, (lo, hi) in zip(members, slices, strict=True):
        part = slice(lo, hi) if kind is RS else slice(None)
        assert (found[r][part] == total[part]).all(), r


@settings(max_examples=100)
@given(
    kind=st.sampled_from(CollectiveKind),
    algorithm=st.sampled_from(Algorithm),
    n=st.integers(1, 17),
    numel=st.integers(1, 70),
    local=st.integers(1, 9),
    data=st.data(),
)
def test_traffic_is_what_the_steps_move(
    kind: CollectiveKind, algorithm: Algorithm, n: int, numel: int, local: int, data: st.DataObject
) -> None:
    ranks = Ranks.of(range(3, 3 + n))
    root = data.draw(st.sampled_from(list(ranks))) if kind is BC else None
    op = op_of(kind, algorithm, numel, local=local if algorithm is HIER else 0, chunk=20, root=root)
    made = steps_of(op, ranks, 4)
    for r, (sent, received) in traffic(op, ranks, 4).items():
        assert sent == 4 * sum(s.hi - s.lo for s in made if s.src == r)
        assert received == 4 * sum(s.hi - s.lo for s in made if s.dst == r)


def count(made: tuple[Step, ...]) -> int:
    return made[-1].step + 1


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 12, 16, 17])
def test_numbers_of_steps_and_bytes_have_their_closed_forms(n: int) -> None:
    numel = 16 * 17 * n
    size = 4 * numel
    power = 1 << (n.bit_length() - 1)
    surplus, ranks = n - power, Ranks.of(range(n))

    def moved(kind: CollectiveKind, algorithm: Algorithm, root: int | None = None) -> tuple[int, list[int]]:
        op = op_of(kind, algorithm, numel, chunk=size // 16, root=root)
        return count(steps_of(op, ranks, 4)), sorted({a for a, _ in traffic(op, ranks, 4).values()})

    each = (n - 1) * size // n
    assert moved(AR, RING) == (2 * (n - 1), [2 * each])
    assert moved(RS, RING) == moved(AG, RING) == (n - 1, [each])
    assert moved(BC, RING, 0) == (n + 14, [0, size])
    halves, levels = (power - 1) * size // power, int(log2(power))
    steps_, sent = moved(AR, HD)
    assert steps_ == 2 * levels + 2 * bool(surplus)
    kinds = ((2 * halves + size, surplus), (2 * halves, power - surplus), (size, surplus))  # bytes, ranks that send so
    assert sent == sorted({nbytes for nbytes, those in kinds if those})
    assert moved(BC, HD, 1)[0] == 2 * levels + bool(surplus)
    assert moved(RS, HD)[0] == moved(AG, HD)[0] == levels + 2 * bool(surplus)
    depth = Tree.of(n).depth
    assert depth == n.bit_length() - 1
    assert moved(AR, TREE) == (2 * depth + 15, [k * size for k in range(1, 4) if any_sends(n, k)])
    assert moved(BC, TREE, n - 1)[0] == depth + 15
    for kind in (RS, AG):  # what is empty at the ends is not sent
        assert 2 * depth + 5 <= moved(kind, TREE)[0] <= 2 * depth + 15


def any_sends(n: int, times: int) -> bool:
    """Whether some rank of a tree over n sends the whole so many times: to its parent, to each of its children."""
    tree = Tree.of(n)
    return any((tree.parent[i] >= 0) + tree.parent.count(i) == times for i in range(n))


@pytest.mark.parametrize("local", [2, 4])
def test_a_hierarchy_sends_little_between_hosts(local: int) -> None:
    """Per host 2 (H-1)/H S leaves, whatever the number of its ranks; a ring over all lets as much pass."""
    hosts, numel = 4, 64 * 9
    ranks = Ranks.of(range(hosts * local))
    made = steps_of(op_of(AR, HIER, numel, local=local), ranks, 4)
    left = [sum(s.hi - s.lo for s in made if s.src // local == h != s.dst // local) for h in range(hosts)]
    assert left == [2 * (hosts - 1) * numel // hosts] * hosts
    assert count(made) == 2 * (local - 1) + 2 * (hosts - 1)


def test_uneven_hosts_meet_in_one_rank_each() -> None:
    ranks = Ranks.of(range(1, 8))  # hosts of 3 and 4
    for kind in CollectiveKind:
        op = op_of(kind, HIER, 100, local=4, root=5 if kind is BC else None)
        across = {(s.src, s.dst) for s in steps_of(op, ranks, 4) if s.src // 4 != s.dst // 4}
        leaders = {r for pair in across for r in pair}
        assert len(leaders) == 2, kind
        if kind is BC:
            assert 5 in leaders


def test_sums_are_formed_once() -> None:
    """Each element is complete at one rank first, so that all ranks get equal bits."""
    for algorithm in Algorithm:
        made = steps(AR, algorithm, range(11), 40, chunk=7, hosts=[r // 3 for r in range(11)])
        data = {r: np.random.default_rng(r).normal(size=40).astype(np.float32) for r in range(11)}
        found = carried_out(made, data, list(range(11)))
        assert len({v.tobytes() for v in found.values()}) == 1, algorithm
