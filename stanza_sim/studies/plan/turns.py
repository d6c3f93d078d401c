"""Where another plan begins to win as one value changes, up or down from its present: which values to look at.

First the value changes by `FACTOR` again and again, up to `REACH` times; where another plan wins, the place is narrowed
down by bisection. Where it is is guessed from how far ahead the better plan was at the two values around it, and the
ends of the interval that bisection would arrive at are looked at first: a good guess saves the steps between. Wherever
there is one turn only, the answer is that of plain bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from stanza_sim.studies.plan.choices import Choice

FACTOR, REACH = 4, 64
CLOSE = 0.02
"""A place is known when it is between two values that differ by no more than this, relatively."""

Middle = Callable[[float, float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The best plan at a value, and by how much the present winner is ahead of all others, as the logarithm of a ratio.

    `lead` is about that: a plan that its bound ruled out is taken to reach as much of it as at present. It
    is None where it is not known.
    """

    best: Choice
    lead: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where another plan begins to win: it loses at `wins_at`, the value nearest to it that was found to do so wins."""

    wins_at: float
    loses_at: float
    by: Choice


Values = Generator[float, Standing | None, None]


@dataclass(slots=True)
class Side:
    """What is looked at one way of a range, `up` or down from `present`, where the `winner` has a `lead`.

    With `whole`, values are whole numbers. `reached` are the values that `values` looked at, `turn` is where another
    plan begins to win, and `full` says that beyond no plan can be run.
    """

    present: float
    up: bool
    winner: Choice
    lead: float | None
    middle: Middle
    whole: bool = False
    reached: list[float] = field(default_factory=list)
    turn: Turn | None = None
    full: bool = False
    _leads: dict[float, float | None] = field(default_factory=dict)

    def values(self) -> Values:
        """Yield values, to be sent the standing at each, None if no plan can be run; note what is found."""
        wins_at = value = self.present
        self._leads[value] = self.lead
        while self.turn is None:
            value = value * FACTOR if self.up else value / FACTOR
            if self.whole and (value := int(value)) < 1:
                return
            there = yield value
            if there is None:  # nothing fits any more
                self.full = self.up
                return
            self.reached.append(value)
            self._leads[value] = there.lead
            if there.best != self.winner:
                self.turn = Turn(wins_at=wins_at, loses_at=value, by=there.best)
            elif not self.present / REACH < value < self.present * REACH:
                return
            wins_at = value
        yield from self._narrowed(self.turn)

    def _narrowed(self, turn: Turn) -> Values:
        """Look closer and closer at the turn."""
        ends = turn.wins_at, turn.loses_at
        widths = [_width(turn)]
        while True:
            # A guess that twice did not halve what is left is not worth another.
            guess = self._guess(turn) if len(widths) < 3 or widths[-1] <= widths[-3] / 2 else None
            value = self._next(ends, turn, guess)
            if value is None or (there := (yield value)) is None:
                return
            self._leads[value] = there.lead
            won = there.best == self.winner
            turn = replace(turn, wins_at=value) if won else replace(turn, loses_at=value, by=there.best)
            self.turn = turn
            widths.append(_width(turn))

    def _guess(self, turn: Turn) -> float | None:
        """Where the lead is zero if its course over the logarithm of the value is straight."""
        ahead, behind = self._leads[turn.wins_at], self._leads[turn.loses_at]
        if ahead is None or behind is None or not ahead - behind > 0:
            return None
        share = min(1.0, max(0.0, ahead / (ahead - behind)))
        return float(turn.wins_at * (turn.loses_at / turn.wins_at) ** share)

    def _next(self, ends: tuple[float, float], turn: Turn, guess: float | None) -> float | None:
        """The value to look at next: one that bisection of `ends` might come to; None if there is none left.

        Without a guess it is the first on its way of which `turn` does not say who wins there, else an end of the
        interval around the guess that it would end with.
        """
        wins, loses = ends
        while abs(loses - wins) > CLOSE * min(loses, wins):
            value = self.middle(wins, loses)
            if value in (wins, loses):
                break
            known = not (self._before(turn.wins_at, value) and self._before(value, turn.loses_at))
            if not known and guess is None:
                return value
            split = turn.wins_at if known or guess is None else guess
            if self._before(split, value):
                loses = value
            else:
                wins = value
        return next((value for value in (wins, loses) if value not in (turn.wins_at, turn.loses_at)), None)

    def _before(self, one: float, other: float) -> bool:
        """Whether `one` is nearer to the present than `other`."""
        return one < other if self.up else one > other


def _width(turn: Turn) -> float:
    return abs(math.log(turn.loses_at / turn.wins_at))
