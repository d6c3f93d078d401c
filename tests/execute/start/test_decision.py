"""One decision for all ranks: every small world exhaustively, larger ones at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.decision import Decision, RankFacts, Seat
from stanza_sim.execute.rank.devices import GpuInfo
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start import decision
from stanza_sim.execute.start.decision import decide, say_ranks
from tests.execute.start.worlds import GROUPS, PCIE, SXM, World, gpus

WORLDS = [world for group in GROUPS.values() for world in group]
Facts = Sequence[RankFacts]
Seats = tuple[Seat, ...] | None


@pytest.fixture(autouse=True, scope="module")
def quick_hints() -> Iterator[None]:
    """Hints read every topology; which they name is tested elsewhere."""
    with patch.object(decision, "fitting_hint", lambda hosts: "use what fits"):
        yield


def fact(host: int, local_rank: int, seen: tuple[GpuInfo, ...], *, nccl: bool = True, kind: str = "cuda") -> RankFacts:
    return RankFacts(host=f"h{host}", machine=f"m{host}", local_rank=local_rank, kind=kind, gpus=seen, nccl=nccl)


def seat(host: int, device: int | None, name: str = "H100") -> Seat:
    return Seat(host=host, device=device, name=name if device is not None else "cpu")


def outcome(facts: Facts, wanted: Backend, seats: Seats) -> Decision | str:
    try:
        return decide(facts, wanted, seats)
    except InputError as error:
        assert error.exit_status == 2
        assert error.hint
        return str(error)


def pairs(keys: Sequence[object]) -> set[tuple[int, int]]:
    """The pairs of ranks with equal keys; None is like nothing."""
    every = ((a, b) for b in range(len(keys)) for a in range(b))
    return {(a, b) for a, b in every if keys[a] is not None and keys[a] == keys[b]}


def agrees(facts: Facts, wanted: Backend, seats: Seats) -> Decision | str:
    """Decide, and hold it to the rules, worked out here from the words of the contract alone."""
    found = outcome(facts, wanted, seats)
    places = [s.device for s in seats] if seats is not None else [f.local_rank for f in facts]
    computing = [r for r, d in enumerate(places) if d is not None]
    names = [s.name for s in seats] if seats is not None else [""] * len(facts)
    taken: list[GpuInfo | None] = [None] * len(facts)
    for r in computing:
        seen = facts[r].gpus
        if not seen:
            assert isinstance(found, str)
            return found
        taken[r] = seen[0] if len(seen) == 1 else seen[(places[r] or 0) % len(seen)]
    shared = pairs([g.uuid if g is not None else None for g in taken])
    said = pairs([None if s.device is None else (s.host, s.device) for s in seats]) if seats is not None else set()
    looks = {(names[r], g.name) for r in computing if (g := taken[r]) is not None}
    alike = len(looks) == len({name for name, _ in looks})
    nccl = computing == list(range(len(facts))) and not shared and all(f.nccl for f in facts)
    possible = alike and shared == said and (nccl or wanted is not Backend.NCCL)
    assert isinstance(found, Decision) is possible, found
    if isinstance(found, Decision):
        assert list(found.gpus) == taken
        assert found.nccl is nccl
        assert {(a, b) for g in found.shared for a in g for b in g if a < b} == shared
        assert found.backend(Backend.AUTO) is (Backend.NCCL if nccl else Backend.GLOO)
        assert found.backend(Backend.GLOO) is Backend.GLOO
        if not nccl:
            with pytest.raises(InputError, match="backend nccl needs a GPU of its own"):
                found.backend(Backend.NCCL)
    return found


def test_every_world_of_up_to_four_ranks_on_up_to_two_hosts() -> None:
    """Each rank sees nothing, its own GPU, its neighbour's, both in either order, or another kind."""
    count = refused = 0
    for shape in ("a", "aa", "ab", "aab", "aabb"):
        hosts = ["ab".index(h) for h in shape]
        local = [hosts[:r].count(h) for r, h in enumerate(hosts)]
        views = [
            [
                (),
                gpus(f"{h}{n}"),
                gpus(f"{h}{1 - n}"),
                gpus(f"{h}0", f"{h}1"),
                gpus(f"{h}1", f"{h}0"),
                gpus(f"{h}{n}", name=PCIE),
            ]
            for h, n in zip(hosts, local, strict=True)
        ]
        own = tuple(seat(h, n) for h, n in zip(hosts, local, strict=True))
        one = tuple(seat(h, 0) for h in hosts)
        for seen in product(*views):
            facts = [fact(h, n, s) for h, n, s in zip(hosts, local, seen, strict=True)]
            for seats, wanted in product((None, own, one), (Backend.AUTO, Backend.NCCL)):
                count += 1
                refused += isinstance(agrees(facts, wanted, seats), str)
    assert count == (6 + 36 + 36 + 216 + 1296) * 6
    assert 0 < refused < count


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[RankFacts], Seats]:
    hosts = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=9)))
    uuids = st.sampled_from([f"u{n}" for n in range(draw(st.integers(1, 12)))])
    facts, seats = [], []
    for r, h in enumerate(hosts):
        name = draw(st.sampled_from([SXM, SXM, SXM, SXM, PCIE]))
        seen = draw(st.lists(uuids, max_size=4, unique=True))
        facts.append(fact(h, hosts[:r].count(h), gpus(*seen, name=name), nccl=draw(st.integers(0, 9)) > 0))
        device = draw(st.one_of(st.integers(0, 3), st.just(hosts[:r].count(h)), st.none()))
        seats.append(seat(h, device, draw(st.sampled_from(["H100", "H100", "H100 PCIe"]))))
    return facts, draw(st.sampled_from([None, tuple(seats)]))


@settings(max_examples=300, deadline=None)
@given(worlds(), st.sampled_from(Backend))
def test_larger_worlds_at_random(world: tuple[list[RankFacts], Seats], wanted: Backend) -> None:
    facts, seats = world
    found = agrees(facts, wanted, seats)
    assert outcome(list(facts), wanted, seats) == found  # what another rank makes of the same facts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_equal_hosts_take_each_gpu_once_however_they_are_masked(local: int, hosts: int, one_each: bool) -> None:
    facts, seats = [], []
    for h in range(hosts):
        here = [f"{h}-{d}" for d in range(local)]
        for r in range(local):
            facts.append(fact(h, r, gpus(here[r]) if one_each else gpus(*here)))
            seats.append(seat(h, r))
    for said in (None, tuple(seats)):
        found = decide(facts, Backend.AUTO, said)
        assert found.nccl
        assert found.shared == ()
        assert [g.uuid for g in found.gpus if g] == [f"{h}-{d}" for h in range(hosts) for d in range(local)]
        assert [g.index for g in found.gpus if g] == ([0] * local if one_each else list(range(local))) * hosts


def test_without_uuids_a_gpu_is_its_number_on_its_machine() -> None:
    seen = tuple(GpuInfo(index=i, uuid=None, name=SXM) for i in range(2))
    assert decide([fact(0, 0, seen), fact(0, 1, seen), fact(1, 0, seen)], Backend.AUTO).nccl
    masked = seen[:1]
    with pytest.raises(InputError, match="ranks 0 and 1 on h0 have one NVIDIA"):
        decide([fact(0, 0, masked), fact(0, 1, masked)], Backend.AUTO)


def test_ranks_on_cores_beside_gpus_talk_over_gloo() -> None:
    facts = [fact(0, r, gpus("a", "b")) for r in range(3)]
    seats = (seat(0, 0), seat(0, 1), seat(0, None))
    found = decide(facts, Backend.AUTO, seats)
    assert [g.uuid if g else None for g in found.gpus] == ["a", "b", None]
    assert found.backend(Backend.AUTO) is Backend.GLOO
    assert [found.sharing(r) for r in range(3)] == [(0,), (1,), ()]
    with pytest.raises(InputError, match=r"backend nccl needs .*: rank 2 computes on cores"):
        decide(facts, Backend.NCCL, seats)


def test_ranks_of_different_kinds_and_numbers_are_refused() -> None:
    two = [fact(0, 0, gpus("a")), fact(0, 1, (), kind="cpu")]
    with pytest.raises(InputError, match="different kinds of device: rank 0: for cuda; rank 1: for cpu"):
        decide(two, Backend.AUTO)
    with pytest.raises(InputError, match="2 ranks run, the topology has 1"):
        decide(two, Backend.AUTO, (seat(0, 0),))


def test_long_lists_are_cut() -> None:
    facts = [fact(r, 0, gpus(f"{r}", name=f"NVIDIA {r}")) for r in range(20)]
    with pytest.raises(InputError, match=r"rank 5: NVIDIA 5 on h5; and 14 more"):
        decide(facts, Backend.AUTO)
    doubled = [fact(r // 2, r % 2, gpus(f"{r // 2}")) for r in range(20)]
    with pytest.raises(InputError, match=r"ranks 10 and 11 on h5 have one NVIDIA H100 80GB HBM3; and 4 more"):
        decide(doubled, Backend.AUTO)


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.name)
def test_the_worlds_that_processes_visit_follow_the_rules_too(world: World) -> None:
    from stanza_sim.cluster import load_cluster
    from stanza_sim.execute.start.start import seats_of

    if world.cluster in ("two-by-two", "two-hosts"):
        names = [h for h in "ab" for _ in range(world.hosts.count(h))]
        seats = tuple(seat("ab".index(h), names[:r].count(h)) for r, h in enumerate(names))
    else:
        seats = seats_of(load_cluster(world.cluster, nodes=world.nodes))
    if world.cluster == "laptop":
        found = outcome([world.facts(r, "cpu") for r in range(len(world.hosts))], Backend(world.backend), None)
        assert isinstance(found, str) is (world.backend == "nccl")
    else:
        agrees([world.facts(r, "cuda") for r in range(len(world.hosts))], Backend(world.backend), seats)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranks_in_words_can_be_read_back(ranks: set[int]) -> None:
    words = say_ranks(sorted(ranks)).removeprefix("ranks ").removeprefix("rank ").replace(" and ", ", ").split(", ")
    read: set[int] = set()
    for word in words:
        first, _, last = word.partition(" to ")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == ranks
