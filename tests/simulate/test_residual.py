"""Residuals, the corners that they span, and which predictions are tied at them."""

from math import exp, log

import pytest

from stanza_sim.cluster.device import load_device
from stanza_sim.model.zoo import load_model
from stanza_sim.simulate.costs import RooflineCosts, throughput_costs
from stanza_sim.simulate.residual import (
    SAME,
    Corner,
    Residual,
    Spread,
    leave_one_out,
    of_ratios,
    residual_of,
    tied,
    ties,
    within,
)
from stanza_sim.simulate.roofline_residual import FITTED_ONCE, UNFITTED
from stanza_sim.simulate.throughput import GIVEN


def test_a_residual_holds_one():
    for low, high in ((1.1, 2.0), (0.5, 0.9), (0.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="does not hold 1"):
            Residual(low=low, high=high)
    assert Residual().nothing
    assert within(0.25).times(slow=True) == 1.25
    assert within(0.25).times(slow=False) == 0.8


def test_ratios_are_predicted_over_true():
    """Predicted 0.8 of what it is: it takes 1.25 times as long."""
    assert of_ratios([0.8, 1.0]) == Residual(low=1.0, high=1.25)
    assert of_ratios([2.0, 1.6]) == Residual(low=0.5, high=1.0)


def test_leaving_one_out_compares_each_with_the_mean_of_the_others():
    middle, most = leave_one_out([1.0, 1.0, 8.0])
    # Left out in turn, 1 is compared with the geometric mean of 1 and 8, and 8 with 1.
    off = sorted([log(8) / 2, log(8) / 2, log(8)])
    assert middle == pytest.approx(exp(off[1]) - 1)
    assert most == pytest.approx(exp(off[1] + 0.8 * (off[2] - off[1])) - 1)
    with pytest.raises(ValueError, match="nothing is left"):
        leave_one_out([1.0])


def spread(predicted: float, *corners: float) -> Spread:
    return Spread(predicted=predicted, corners=dict(zip(Corner, corners, strict=True)) if corners else {})


def test_low_and_high_are_the_ends_of_all_corners():
    one = spread(100.0, 80.0, 125.0, 90.0, 120.0)
    assert (one.low, one.high) == (80.0, 125.0)
    assert (spread(100.0).low, spread(100.0).high) == (100.0, 100.0)


def test_errors_that_are_shared_reverse_no_order():
    """The ranges overlap by far, and still one is faster whatever the costs are."""
    fast, slow = spread(100.0, 80.0, 125.0, 90.0, 110.0), spread(90.0, 72.0, 112.0, 81.0, 99.0)
    assert slow.high > fast.low
    assert not tied(fast, slow)
    assert not tied(slow, fast)


def test_opposite_errors_may_reverse_an_order():
    """One computes, the other sends: where computation is slow and the network fast, the other wins."""
    computes, sends = spread(100.0, 80.0, 125.0, 80.0, 125.0), spread(90.0, 72.0, 112.0, 108.0, 75.0)
    assert tied(computes, sends)
    assert tied(sends, computes)


def test_a_difference_that_vanishes_is_a_tie():
    assert tied(spread(100.0), spread(100.0 / (1 + SAME)))
    assert not tied(spread(100.0), spread(100.0 / (1 + 2 * SAME)))
    assert tied(spread(100.0, 80.0, 120.0, 90.0, 110.0), spread(90.0, 70.0, 100.0, 89.0, 80.0)), "at one corner"


def test_what_is_not_shared_may_be_off_either_way():
    fast, slow = spread(100.0, 80.0, 125.0, 90.0, 110.0), spread(90.0, 72.0, 112.0, 81.0, 99.0)
    assert tied(fast, slow, share_network=False)
    assert tied(fast, slow, share_computation=False)


def test_ties_are_by_number_and_of_nothing_without_a_spread():
    found = ties([spread(100.0), None, spread(99.0), spread(50.0)])
    assert found == [(2,), (), (0,), ()]


def test_a_roofline_says_what_its_fit_leaves():
    v100, vgg16 = load_device("V100"), load_model("vgg16")
    ratios = [row.ratio for row in v100.precision("fp32").models["vgg16"].timings if row.fitted]
    found = RooflineCosts(v100, vgg16).residual
    assert (found.low, found.high) == (pytest.approx(1 / max(ratios)), pytest.approx(1 / min(ratios)))
    assert "published timings" in found.basis

    once = next(
        (name, load_device("V100").precision("fp16"))
        for name, fit in v100.precision("fp16").models.items()
        if sum(row.fitted for row in fit.timings) == 1
    )
    assert RooflineCosts(v100, load_model(once[0]), "fp16").residual.high == 1 + FITTED_ONCE

    unknown = RooflineCosts(load_device("cpu"), vgg16).residual
    assert (unknown.low, unknown.high) == (1 / (1 + UNFITTED), 1 + UNFITTED)
    assert RooflineCosts(v100, vgg16, efficiency=0.5).residual.nothing


def test_a_given_throughput_leaves_its_own_residual():
    costs = throughput_costs("V100", load_model("vgg16"), "fp32", 200.0, 32)
    assert costs.residual.high == 1 + GIVEN
    assert costs.residual.basis == "throughput of V100 as given, taken to be within 5%"


def test_costs_that_state_no_residual_are_taken_as_exact():
    assert residual_of(object()).nothing
