"""Turns: the values that are looked at lead to what plain bisection finds, in fewer steps."""

import math

from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.studies.plan.turns import CLOSE, FACTOR, REACH, Side, Standing


def geometric(a, b):
    return math.sqrt(a * b)


def whole(a, b):
    return (int(a) + int(b)) // 2


def plain(present, up, turns_at, middle):
    """The nearest values around `turns_at`, by factors and then by bisection; None without a turn within reach."""
    wins, value = present, present
    while True:
        value = value * FACTOR if up else value / FACTOR
        if middle is whole and (value := int(value)) < 1:
            return None
        if (value > turns_at) is up:
            break
        if not present / REACH < value < present * REACH:
            return None
        wins = value
    loses = value
    while abs(loses - wins) > CLOSE * min(loses, wins) and (value := middle(wins, loses)) not in (wins, loses):
        wins, loses = (wins, value) if (value > turns_at) is up else (value, loses)
    return wins, loses


def looked_at(side, turns_at, lead):
    """How many values were looked at."""
    values, count = side.values(), 0
    try:
        value = next(values)
        while True:
            count += 1
            best = "other" if (value > turns_at) is side.up else "winner"
            value = values.send(Standing(best=best, lead=lead(value)))
    except StopIteration:
        return count


@given(
    st.booleans(),
    st.sampled_from([(1.25e9, geometric), (32, whole), (2000, whole)]),
    st.floats(-5.0, 5.0),
    st.sampled_from(["straight", "bent", "unknown", "nonsense"]),
)
def test_turns_are_those_of_plain_bisection(up, known, logarithm, kind):
    present, middle = known
    turns_at = present * math.exp(abs(logarithm) if up else -abs(logarithm))

    def lead(value):
        away = math.log(turns_at / value) * (1 if up else -1)
        ways = {"straight": away, "bent": math.expm1(5 * away), "unknown": None, "nonsense": math.sin(1e3 * value)}
        return ways[kind]

    side = Side(present, up, "winner", lead(present), middle, middle is whole)
    looked_at(side, turns_at, lead)
    found = None if side.turn is None else (side.turn.wins_at, side.turn.loses_at)
    assert found == plain(present, up, turns_at, middle)


def test_a_good_guess_saves_most_steps():
    turns_at = 3.3e9

    def counted(lead):
        return looked_at(Side(1e9, True, "winner", lead(1e9), geometric), turns_at, lead)

    assert counted(lambda value: math.log(turns_at / value)) == 3
    assert counted(lambda value: None) == 8
