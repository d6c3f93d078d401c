"""Where another row begins to win as one varied number changes: by bisection between neighbouring points of a sweep.

A bisection only compares the two rows that win at its ends; at the place that it finds all rows are compared, and where
a third one wins, the places at which it takes over and gives way are looked for in turn. So every crossover that is
reported is one, but a row that wins only briefly between two points may be missed. Where a bisection cannot go on, its
bracket is what is known.

Costs may be off, so a crossover is a range: around the place that is predicted the two rows are tied, as
`stanza_sim.simulate.residual` says of rows that share their costs. Its ends are looked for in turn, outwards, no
further than the axis goes.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from stanza_sim.simulate.residual import Spread, tied
from stanza_sim.studies.sweep.points import SweepRow, best_of
from stanza_sim.studies.sweep.vary import Axis, Point, Scale, scale_of, shown, why_no_scale

CLOSE = 0.005
"""A crossover is known when it is between two values that differ by no more than this, relatively."""
CLOSE_END = 0.05
"""The same for an end of its range."""
MOST_STEPS = 40
"""A bisection that is not close by then ends: the place is as good as zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a bisection is: an axis by number, the point's other values, and a model."""

    axis: int
    point: Point
    model: str

    def at(self, text: str) -> Point:
        """The point with another value on the axis."""
        return (*self.point[: self.axis], text, *self.point[self.axis + 1 :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """As predicted, `below` wins up to `wins_to` (in the units of the axis's scale), `above` from `wins_from` on.

    Where these are not close, the place is anywhere between them, and `reason` says why no more is known. With costs
    that are off it may be anywhere from `low` to `high`. An end that is `open_low` or `open_high` is that of the values
    that were looked at: the rows are still tied there.
    """

    place: Place
    low: float
    high: float
    below: str
    above: str
    wins_to: float
    wins_from: float
    open_low: bool = False
    open_high: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlooked:
    """No crossover could be looked for along the axis of this key, for these models (none given: all)."""

    key: str
    models: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a bisection wants to know: a model's rows at a point, all or those of two labels.

    `off` asks for what these are with costs that are off, too.
    """

    point: Point
    model: str
    labels: tuple[str, str] | None
    off: bool = False


Bisection = Generator[Ask, tuple[SweepRow, ...], list[Crossover]]


def bisections(axes: Sequence[Axis], known: Mapping[Point, Sequence[SweepRow]]) -> list[Bisection]:
    """A bisection for every two neighbouring points, on every axis of numbers, with different winners for a model."""
    found: list[Bisection] = []
    for number, axis in enumerate(axes):
        scale = scale_of(axis)
        if scale is None or len(axis.values) < 2:
            continue
        for place, feasible in _lines(number, axis, scale, known):
            for (low, below), (high, above) in pairwise(feasible):
                if below != above:
                    found.append(_bisect(place, scale, (scale.number(low), below), (scale.number(high), above)))
    return found


def _lines(
    number: int, axis: Axis, scale: Scale, known: Mapping[Point, Sequence[SweepRow]]
) -> Iterator[tuple[Place, list[tuple[str, str]]]]:
    """Yield, for each combination of the other axes and each model there, its winners: (value, label), by value."""
    ordered = sorted(axis.values, key=scale.number)
    for point in known:
        if point[number] != ordered[0]:  # one for each combination of the other axes
            continue
        line = [Place(axis=number, point=point, model="").at(text) for text in ordered]
        for model in dict.fromkeys(one.model for there in line for one in known.get(there, ()) if one.label):
            winners = [(p[number], best_of(known.get(p, ()), model)) for p in line]
            feasible = [(text, best.label) for text, best in winners if best is not None]
            yield Place(axis=number, point=point, model=model), feasible


def unlooked(axes: Sequence[Axis], known: Mapping[Point, Sequence[SweepRow]]) -> list[Unlooked]:
    """The axes, or models on them, of which no two points could be compared, with the reason."""
    found: list[Unlooked] = []
    for number, axis in enumerate(axes):
        scale, why = scale_of(axis), why_no_scale(axis)
        if scale is None or why:
            found.append(Unlooked(key=axis.key, models=(), reason=why))
            continue
        at: dict[str, set[str]] = {}
        for point, lines in known.items():
            for one in lines:
                if one.label:
                    at.setdefault(one.model, set()).add(point[number])
        compared = {place.model for place, feasible in _lines(number, axis, scale, known) if len(feasible) > 1}
        for why, models in (
            ("it gives the model another name at each value", [m for m in at if len(at[m]) < 2]),
            ("no rows can be built at two of its values", [m for m in at if len(at[m]) > 1 and m not in compared]),
        ):
            if models:
                some = () if len(models) == len(at) else tuple(models)
                found.append(Unlooked(key=axis.key, models=some, reason=why))
        if not at:
            found.append(Unlooked(key=axis.key, models=(), reason="nothing could be predicted"))
    return found


def _bisect(place: Place, scale: Scale, low: tuple[float, str], high: tuple[float, str]) -> Bisection:
    """Find where the winner at `low` gives way on the way to `high`; both are (number, label)."""
    (a, below), (b, above) = low, high
    reason, doubtful, steps = "", [], 0
    while not _close(a, b, scale):
        if steps == MOST_STEPS:
            reason = f"not found more closely in {MOST_STEPS} steps"
            break
        steps += 1
        middle = _middle(a, b, scale)
        lines = yield Ask(point=place.at(scale.text(middle)), model=place.model, labels=(below, above))
        best = best_of(lines, place.model)
        if best is None:
            reason = f"no row can be built at {shown(middle, scale)}"
            doubtful.append(middle)  # perhaps one that wins at neither end can
            break
        if best.label == below:
            a = middle
        else:
            b = middle
    doubtful += [a] if reason and a != low[0] else []
    doubtful += [b] if b != high[0] else []
    for value in doubtful:
        lines = yield Ask(point=place.at(scale.text(value)), model=place.model, labels=None)
        best = best_of(lines, place.model)
        if best is not None and best.label not in (below, above):
            first = yield from _bisect(place, scale, low, (value, best.label))
            second = yield from _bisect(place, scale, (value, best.label), high)
            return [*first, *second]
    return [Crossover(place=place, low=a, high=b, below=below, above=above, wins_to=a, wins_from=b, reason=reason)]


def ranges(axes: Sequence[Axis], found: Sequence[Crossover]) -> list[Bisection]:
    """For each crossover, a bisection for both ends of its range: it returns the crossover with these."""
    scales = [scale_of(axis) for axis in axes]
    return [_ranged(one, scale, axes[one.place.axis]) for one in found if (scale := scales[one.place.axis]) is not None]


def _ranged(one: Crossover, scale: Scale, axis: Axis) -> Bisection:
    numbers = sorted(scale.number(value) for value in axis.values)
    down = [value for value in reversed(numbers) if value < one.wins_to]
    up = [value for value in numbers if value > one.wins_from]
    low, open_low = yield from _end(one, scale, one.wins_to, down, wins=one.below)
    high, open_high = yield from _end(one, scale, one.wins_from, up, wins=one.above)
    return [replace(one, low=low, high=high, open_low=open_low, open_high=open_high)]


def _end(
    one: Crossover, scale: Scale, start: float, outward: Sequence[float], *, wins: str
) -> Generator[Ask, tuple[SweepRow, ...], tuple[float, bool]]:
    """From `start` outwards, the first value that is known at which `wins` surely does; and whether there is none."""

    def ask(value: float) -> Ask:
        return Ask(
            point=one.place.at(scale.text(value)), model=one.place.model, labels=(one.below, one.above), off=True
        )

    inside, outside = start, None
    for value in (start, *outward):
        lines = yield ask(value)
        if len([line for line in lines if line.feasible]) < 2:
            return inside, True
        if _surely(lines, wins):
            outside = value
            break
        inside = value
    if outside is None:
        return inside, True
    while not _close(min(inside, outside), max(inside, outside), scale, CLOSE_END):
        middle = _middle(min(inside, outside), max(inside, outside), scale)
        lines = yield ask(middle)
        if _surely(lines, wins):
            outside = middle
        else:
            inside = middle
    return outside, False


def _surely(lines: Sequence[SweepRow], wins: str) -> bool:
    """Whether a row beats another with whatever costs; one that cannot be built beats none."""
    mine = next((line for line in lines if line.label == wins and line.feasible), None)
    other = next((line for line in lines if line.label != wins and line.feasible), None)
    if mine is None or other is None:
        return False
    a, b = (one.spread or Spread(predicted=one.samples_per_s or 0.0) for one in (mine, other))
    return a.predicted > b.predicted and not tied(a, b)


def _close(a: float, b: float, scale: Scale, most: float = CLOSE) -> bool:
    if scale.whole and b - a <= 1:
        return True
    return b - a <= most * max(abs(a), abs(b))


def _middle(a: float, b: float, scale: Scale) -> float:
    middle = math.sqrt(a * b) if a > 0 else (a + b) / 2
    if scale.whole:
        return min(max(math.floor(middle), a + 1), b - 1)
    return middle


def in_step(started: Iterable[Bisection]) -> Generator[list[Ask], list[tuple[SweepRow, ...]], list[Crossover]]:
    """Drive bisections side by side: yields what all of them want to know next, and is sent the answers in order."""
    done: dict[int, list[Crossover]] = {}
    asking: dict[int, tuple[Bisection, Ask]] = {}

    def advance(i: int, bisection: Bisection, answer: tuple[SweepRow, ...] | None) -> None:
        try:
            asking[i] = bisection, next(bisection) if answer is None else bisection.send(answer)
        except StopIteration as stop:
            asking.pop(i, None)
            done[i] = stop.value

    for i, bisection in enumerate(started):
        advance(i, bisection, None)
    while asking:
        now = list(asking.items())
        answers = yield [ask for _, (_, ask) in now]
        for (i, (bisection, _)), answer in zip(now, answers, strict=True):
            advance(i, bisection, answer)
    return [one for i in sorted(done) for one in done[i]]
