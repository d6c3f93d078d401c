"""Where another row begins to win as one varied number changes: by bisection between neighbouring points of a sweep.

A bisection only compares the two rows that win at its ends; at the place that it finds all rows are compared, and where
a third one wins, the places at which it takes over and gives way are looked for in turn. So every crossover that is
reported is one, but a row that wins only briefly between two points may be missed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stanza_sim.sweeps.points import Line, best_of
from stanza_sim.sweeps.vary import Axis, Point, Scale, scale_of

CLOSE = 0.005
"""A crossover is known when it is between two values that differ by no more than this, relatively."""


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
    """`below` wins up to `low` (in the units of the axis's scale), `above` from `high` on."""

    place: Place
    low: float
    high: float
    below: str
    above: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a bisection wants to know: a model's rows at a point, all or those of two labels."""

    point: Point
    model: str
    labels: tuple[str, str] | None


Bisection = Generator[Ask, tuple[Line, ...], list[Crossover]]


def bisections(axes: Sequence[Axis], known: Mapping[Point, Sequence[Line]]) -> list[Bisection]:
    """A bisection for every two neighbouring points, on every axis of numbers, with different winners for a model."""
    found: list[Bisection] = []
    for number, axis in enumerate(axes):
        scale = scale_of(axis)
        if scale is None or len(axis.values) < 2:
            continue
        ordered = sorted(axis.values, key=scale.number)
        for point in known:
            if point[number] != ordered[0]:  # one for each combination of the other axes
                continue
            line = [Place(axis=number, point=point, model="").at(text) for text in ordered]
            models = dict.fromkeys(one.model for there in line for one in known.get(there, ()) if one.label)
            for model in models:
                place = Place(axis=number, point=point, model=model)
                winners = [(p[number], best_of(known.get(p, ()), model)) for p in line]
                feasible = [(text, best.label) for text, best in winners if best is not None]
                for (low, below), (high, above) in pairwise(feasible):
                    if below != above:
                        found.append(_bisect(place, scale, (scale.number(low), below), (scale.number(high), above)))
    return found


def _bisect(place: Place, scale: Scale, low: tuple[float, str], high: tuple[float, str]) -> Bisection:
    """Find where the winner at `low` gives way on the way to `high`; both are (number, label)."""
    (a, below), (b, above) = low, high
    while not _close(a, b, scale):
        middle = _middle(a, b, scale)
        lines = yield Ask(point=place.at(scale.text(middle)), model=place.model, labels=(below, above))
        best = best_of(lines, place.model)
        if best is None:  # neither can be built there, so there is no place to be found
            break
        if best.label == below:
            a = middle
        else:
            b = middle
    if b != high[0]:
        lines = yield Ask(point=place.at(scale.text(b)), model=place.model, labels=None)
        best = best_of(lines, place.model)
        if best is not None and best.label not in (below, above):
            first = yield from _bisect(place, scale, low, (b, best.label))
            second = yield from _bisect(place, scale, (b, best.label), high)
            return [*first, *second]
    return [Crossover(place=place, low=a, high=b, below=below, above=above)]


def _close(a: float, b: float, scale: Scale) -> bool:
    if scale.whole and b - a <= 1:
        return True
    return b - a <= CLOSE * max(abs(a), abs(b))


def _middle(a: float, b: float, scale: Scale) -> float:
    middle = math.sqrt(a * b) if a > 0 else (a + b) / 2
    if scale.whole:
        return min(max(math.floor(middle), a + 1), b - 1)
    return middle


def in_step(started: Iterable[Bisection]) -> Generator[list[Ask], list[tuple[Line, ...]], list[Crossover]]:
    """Drive bisections side by side: yields what all of them want to know next, and is sent the answers in order."""
    done: dict[int, list[Crossover]] = {}
    asking: dict[int, tuple[Bisection, Ask]] = {}

    def advance(i: int, bisection: Bisection, answer: tuple[Line, ...] | None) -> None:
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
