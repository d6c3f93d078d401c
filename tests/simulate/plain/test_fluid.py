"""Fluid sharing against a reference that is slow and plain, and against its own laws."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.simulate.plain.fluid import FluidShare, RunningActivity, fair_rates, usage_of

SOME = st.floats(0.1, 10.0)


@dataclass(frozen=True, slots=True)
class Problem:
    """Capacities, and for each activity (usage, phi, cap)."""

    capacities: list[float]
    users: list[tuple[tuple[tuple[int, float], ...], float, float]]

    def activities(self) -> list[RunningActivity]:
        return [RunningActivity(work=1.0, usage=u, weight=weight, cap=cap) for u, weight, cap in self.users]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    capacities = draw(st.lists(st.one_of(SOME, st.just(1.0)), min_size=1, max_size=5))
    users = []
    for _ in range(draw(st.integers(1, 9))):
        used = draw(st.sets(st.integers(0, len(capacities) - 1), max_size=3))
        usage = tuple((q, draw(st.one_of(SOME, st.just(1.0)))) for q in sorted(used))
        cap = draw(SOME if not usage else st.one_of(SOME, st.just(inf)))
        users.append((usage, draw(st.one_of(SOME, st.just(1.0))), cap))
    return Problem(capacities, users)


def reference(p: Problem) -> list[float]:
    """Progressive filling as the textbook has it: raise all levels together, freeze what can rise no more."""
    rates = [0.0] * len(p.users)
    growing = set(range(len(p.users)))
    while growing:
        steps = []
        for i in growing:
            steps.append((p.users[i][2] - rates[i]) / p.users[i][1])
        for q, capacity in enumerate(p.capacities):
            slope = sum(p.users[i][1] * d for i in growing for r, d in p.users[i][0] if r == q)
            used = sum(rates[i] * d for i, u in enumerate(p.users) for r, d in u[0] if r == q)
            if slope > 0:
                steps.append((capacity - used) / slope)
        step = max(0.0, min(steps))
        for i in growing:
            rates[i] += p.users[i][1] * step
        for i in list(growing):
            usage, _, cap = p.users[i]
            full = any(_used(p, rates, q) >= p.capacities[q] * (1 - 1e-12) for q, _ in usage)
            if full or rates[i] >= cap * (1 - 1e-12):
                growing.discard(i)
    return rates


def _used(p: Problem, rates: list[float], q: int) -> float:
    return sum(rates[i] * d for i, (usage, _, _) in enumerate(p.users) for r, d in usage if r == q)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_rates_are_those_of_progressive_filling(p: Problem) -> None:
    assert fair_rates(p.activities(), p.capacities) == pytest.approx(reference(p), rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_nothing_is_overloaded_and_everything_has_a_bottleneck(p: Problem) -> None:
    rates = fair_rates(p.activities(), p.capacities)
    full = []
    for q, capacity in enumerate(p.capacities):
        used = _used(p, rates, q)
        assert used <= capacity * (1 + 1e-9)
        full.append(used >= capacity * (1 - 1e-9))
    for i, (usage, weight, cap) in enumerate(p.users):
        assert 0 < rates[i] <= cap * (1 + 1e-12)
        if rates[i] >= cap * (1 - 1e-9):
            continue
        level = rates[i] / weight
        # A saturated resource on which nobody has a higher level than this activity.
        assert any(
            full[q] and all(rates[j] / f <= level * (1 + 1e-9) for j, (u, f, _) in enumerate(p.users) if q in dict(u))
            for q, _ in usage
        )


def test_small_cases_by_hand() -> None:
    def rates(*users: tuple[dict[int, float], float, float], capacities: tuple[float, ...] = (6.0,)) -> list[float]:
        return fair_rates(
            [
                RunningActivity(work=1, usage=tuple(sorted(u.items())), weight=weight, cap=cap)
                for u, weight, cap in users
            ],
            capacities,
        )

    assert rates(({0: 1.0}, 1, inf), ({0: 1.0}, 1, inf)) == pytest.approx([3, 3])
    assert rates(({0: 1.0}, 2, inf), ({0: 1.0}, 1, inf)) == pytest.approx([4, 2])
    assert rates(({0: 2.0}, 1, inf), ({0: 1.0}, 1, inf)) == pytest.approx([2, 2])  # demand is not weight
    assert rates(({0: 1.0}, 1, 1.0), ({0: 1.0}, 1, inf)) == pytest.approx([1, 5])
    assert rates(({}, 1, 7.0), ({0: 1.0}, 1, inf)) == pytest.approx([7, 6])
    # The parking lot: one long flow over both links, one short flow on each.
    assert rates(
        ({0: 1.0, 1: 1.0}, 1, inf), ({0: 1.0}, 1, inf), ({1: 1.0}, 1, inf), capacities=(2.0, 6.0)
    ) == pytest.approx([1, 1, 5])


def test_weights_of_very_different_size() -> None:
    """A flow that uses links only has a weight of 1e9, a computation one of 1: neither may starve or overflow."""
    big, small = (
        RunningActivity(work=1, usage=((0, 1.0),), weight=1e9),
        RunningActivity(work=1, usage=((0, 1.0),), weight=1.0),
    )
    assert fair_rates([big, small], [1e9]) == pytest.approx([1e9, 1.0], rel=1e-6)
    many = [RunningActivity(work=1, usage=((0, 1.0), (1, 1.0)), weight=1e9) for _ in range(50)]
    lone = RunningActivity(work=1, usage=((1, 1.0),), weight=1e4)
    rates = fair_rates([*many, lone], [1e6, 1e9])
    assert rates == pytest.approx([2e4] * 50 + [1e9 - 1e6], rel=1e-9)


def test_what_nothing_limits_is_refused() -> None:
    with pytest.raises(InputError, match="needs a resource or a rate cap"):
        fair_rates([RunningActivity(work=1, usage=())], [1.0])
    for bad in (0.0, -1.0, inf):
        with pytest.raises(InputError, match="capacity must be positive"):
            FluidShare([1.0, bad])


def _run(p: Problem, works: list[float], starts: list[float]) -> tuple[list[float], list[list[float]], list[float]]:
    """Event-driven: returns finish times, and for each interval the length and what each resource had used."""
    share = FluidShare(p.capacities)
    activities = p.activities()
    for a, w, i in zip(activities, works, range(len(works)), strict=True):
        a.work, a.tag = w, i
    finish = [inf] * len(works)
    waiting = sorted(range(len(works)), key=lambda i: starts[i])
    now, used, lengths = 0.0, [], []
    running: set[int] = set()
    while waiting or running:
        nxt = min(share.next_finish_s(), starts[waiting[0]] if waiting else inf)
        assert nxt < inf
        rates = [activities[i].rate if i in running else 0.0 for i in range(len(works))]
        used.append([_used(p, rates, q) for q in range(len(p.capacities))])
        lengths.append(nxt - now)
        now = nxt
        for a in share.finish(now):
            i = int(str(a.tag))
            finish[i] = now
            running.discard(i)
        while waiting and starts[waiting[0]] <= now:
            i = waiting.pop(0)
            share.start(activities[i], now)
            running.add(i)
        assert share.dirty == bool(share._changed or share._fresh)
        share.solve(now)
        assert not share.dirty
    return finish, used, lengths


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_all_work_is_served_and_no_more(p: Problem, data: st.DataObject) -> None:
    n = len(p.users)
    works = data.draw(st.lists(SOME, min_size=n, max_size=n))
    starts = data.draw(st.lists(st.one_of(st.just(0.0), SOME), min_size=n, max_size=n))
    finish, used, lengths = _run(p, works, starts)
    for q, capacity in enumerate(p.capacities):
        served = sum(u[q] * dt for u, dt in zip(used, lengths, strict=True))
        wanted = sum(w * d for w, (usage, _, _) in zip(works, p.users, strict=True) for r, d in usage if r == q)
        assert served == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert all(u[q] <= capacity * (1 + 1e-9) for u in used)
    for i, (usage, _, cap) in enumerate(p.users):
        alone = max([works[i] / cap, *(works[i] * d / p.capacities[q] for q, d in usage)])
        assert finish[i] >= starts[i] + alone * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(), st.data())
def test_solving_only_what_changed_is_solving_everything(p: Problem, data: st.DataObject) -> None:
    """At every moment the rates are those of a fresh solution for what runs."""
    share = FluidShare(p.capacities)
    running: list[RunningActivity] = []
    now = 0.0
    for activity, gap in zip(p.activities(), data.draw(st.lists(SOME, min_size=9, max_size=9)), strict=False):
        later = now + 0.1 * gap
        while share.next_finish_s() <= later:
            now = share.next_finish_s()
            for a in share.finish(now):
                running.remove(a)
            share.solve(now)
        now = later
        share.start(activity, now)
        running.append(activity)
        share.solve(now)
        assert [a.rate for a in running] == pytest.approx(fair_rates(running, p.capacities), rel=1e-9)


def test_rates_that_are_known_are_forgotten_with_the_capacity() -> None:
    share = FluidShare([4.0])

    def two_run() -> list[tuple[float, int]]:
        made = [RunningActivity(work=1.0, usage=((0, 1.0),), cap=1.0), RunningActivity(work=1.0, usage=((0, 1.0),))]
        for a in made:
            share.start(a, 0.0)
        share.solve(0.0)
        found = [(a.rate, a.limit) for a in made]
        for a in made:
            share.stop(a, 0.0)
        return found

    assert two_run() == two_run() == [(1.0, -1), (3.0, 0)]
    share.set_capacity(0, 1.0)
    assert two_run() == two_run() == [(0.5, 0), (0.5, 0)]
    share.set_capacity(0, 4.0)
    assert two_run() == [(1.0, -1), (3.0, 0)]


def test_those_that_finish_together_come_in_the_order_of_their_start() -> None:
    share = FluidShare([3.0])
    made = [RunningActivity(work=1.0, usage=((0, 1.0),), tag=i) for i in range(3)]
    for a in reversed(made):
        share.start(a, 0.0)
    assert share.next_finish_s() == inf  # not solved yet
    share.solve(0.0)
    assert share.next_finish_s() == pytest.approx(1.0)
    assert [a.tag for a in share.finish(share.next_finish_s())] == [2, 1, 0]
    assert share.next_finish_s() == inf


def test_work_of_nothing_finishes_at_once() -> None:
    share = FluidShare([1.0])
    share.start(RunningActivity(work=0.0, usage=((0, 1.0),)), 5.0)
    share.solve(5.0)
    assert share.next_finish_s() == 5.0
    assert len(share.finish(5.0)) == 1


def test_demands_on_one_resource_add_up() -> None:
    assert usage_of([(3, 1.0), (1, 2.0), (3, 0.5), (2, 0.0)]) == ((1, 2.0), (3, 1.5))
