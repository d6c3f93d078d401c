"""Figures over cases: percentiles, errors, bounds and rules."""

from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate import budget
from stanza_sim.studies.validate.records import over_repeats
from stanza_sim.studies.validate.statistics import errors_of, judge, mixture, require_rules
from stanza_sim.studies.validate.suite import Bounds, Rules
from tests.studies.validate.validate_fakes import measured, predicted, result

numbers = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)


@given(numbers)
def test_percentiles_are_linear_between_neighbours(values):
    """Definition 7 of Hyndman and Fan (The American Statistician 50, 1996)."""
    sizes = sorted(map(abs, values))
    place = 0.9 * (len(sizes) - 1)
    low = int(place)
    p90 = sizes[low] + (sizes[min(low + 1, len(sizes) - 1)] - sizes[low]) * (place - low)
    assert errors_of(values).p90_pct == pytest.approx(p90, abs=1e-9)
    assert errors_of(values).median_pct == pytest.approx(median(sizes), abs=1e-9)


def test_errors_need_values():
    with pytest.raises(ValueError, match="no values"):
        errors_of([])


@given(numbers)
def test_errors_are_in_order_and_know_no_sign(values):
    errors = errors_of(values)
    assert min(map(abs, values)) - 1e-9 <= errors.median_pct <= errors.p90_pct <= errors.max_pct
    assert errors.max_pct == max(map(abs, values))
    other = errors_of([-v for v in values])
    assert (other.median_pct, other.p90_pct, other.max_pct) == (errors.median_pct, errors.p90_pct, errors.max_pct)
    assert other.bias_pct == pytest.approx(-errors.bias_pct)


def test_errors_by_hand():
    errors = errors_of([-1, 2, -3, 4, 5, -6, 7, 8, -9, 10, 11])
    assert (errors.count, errors.median_pct, errors.p90_pct, errors.max_pct) == (11, 6, 10, 11)
    assert errors.bias_pct == pytest.approx(28 / 11)


def test_bounds_are_held_up_to_their_value():
    errors = errors_of([1.0, -2.0, 3.0])
    verdicts = judge(errors, Bounds(median=2.0, p90=2.5))
    assert [(v.name, v.held) for v in verdicts] == [("median", True), ("p90", False)]
    assert judge(errors, Bounds()) == ()


def test_a_result_is_a_median_of_its_repeats():
    found = result(predicted(0.11), measured(0.1), measured(0.13), measured(0.09))
    assert found.measured_s == 0.1
    assert found.error_pct == pytest.approx(10)
    assert found.spread_pct == pytest.approx(40)
    assert result(predicted(0.09), measured(0.1)).error_pct == pytest.approx(-10)


def test_of_repeats_predicted_anew_the_one_with_the_median_error_is_compared():
    """Cores that are slow for a while make both longer; the source stays that of the first prediction."""
    first = predicted(0.2)
    times = ((0.1, 0.14), (0.16, 0.17), (0.12, 0.12))  # errors of +40, +6.25 and 0%
    repeats = [
        replace(measured(s), predicted=predicted(p), drift=d) for (s, p), d in zip(times, (0.1, -0.3, 0.2), strict=True)
    ]
    again = over_repeats(first, repeats)
    assert again == predicted(0.17)
    found = result(again, *repeats)
    assert (found.measured_s, found.measured_exposed_s) == (0.16, 0.08)
    assert found.error_pct == pytest.approx(6.25)
    assert found.spread_pct == pytest.approx(50)
    assert found.drift == -0.3
    assert sum(budget.differences(found).values()) == pytest.approx(0.01)
    assert over_repeats(first, [measured(0.1), measured(0.3)]) == first
    assert over_repeats(first, [measured(0.1), repeats[0], measured(0.3)]) == predicted(0.14)
    assert result(first, measured(0.1), measured(0.3)).drift is None


def test_error_of_communication_time():
    """20% of the iteration is communication, so 2% of the iteration are 10% of that."""
    found = result(predicted(0.098, exposed=0.5), measured(0.1, exposed=0.2))
    assert found.error_pct == pytest.approx(-2)
    assert found.error_of_comm_pct == pytest.approx(-10)
    assert result(predicted(0.098), measured(0.1, exposed=0.04)).error_of_comm_pct is None


def test_rules_by_hand():
    cases = {
        "a": predicted(exposed=0.3),
        "b": predicted(exposed=0.29, servers=1),
        "c": predicted(exposed=0.9, servers=2),
        "d": predicted(exposed=0.1),
    }
    found = mixture(cases, 0.3)
    assert (found.cases, found.exposed, found.single_server) == (4, 2, 1)
    require_rules(found, Rules(), "here")
    with pytest.raises(InputError, match="here: 2 of 4 cases have 30% or more of exposed communication"):
        require_rules(found, Rules(exposed_cases=0.6), "here")
    with pytest.raises(InputError, match="1 of 4 cases have a single parameter server"):
        require_rules(found, Rules(single_server_cases=0.2), "here")
