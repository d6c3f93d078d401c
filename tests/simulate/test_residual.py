"""Residuals, the corners that they span, and which predictions are tied at them."""

from dataclasses import replace
from math import exp, log

import pytest

from stanza_sim.cluster.device import ModelEfficiency, ModelFactor, PublishedTiming, load_device
from stanza_sim.model.zoo import load_model
from stanza_sim.simulate.costs import RooflineCosts, device_costs, throughput_costs
from stanza_sim.simulate.fit_residual import ELSEWHERE, FITTED_ONCE, UNFITTED, roofline_residual, sum_residual
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


def timing(ratio: float) -> PublishedTiming:
    return PublishedTiming(
        gpu="g", batch=1, batch_assumed=False, images_per_s=1.0, kind="k", source="s", fitted=True, ratio=ratio
    )


def test_a_fit_leaves_what_is_between_its_timings():
    v100, vgg16 = load_device("V100"), load_model("vgg16")
    ratios = [row.ratio for row in v100.precision("fp32").constants.models["vgg16"].timings if row.fitted]
    found = device_costs(v100, vgg16).residual
    assert (found.low, found.high) == (pytest.approx(1 / max(ratios)), pytest.approx(1 / min(ratios)))
    assert found.basis.endswith(f"of {len(ratios)} published timings")


def test_one_timing_leaves_no_more_than_is_left_without_any():
    constants = load_device("V100").precision("fp32").constants
    once = replace(constants, models={"m": ModelFactor(value=1.0, timings=(timing(1.0),))})
    assert sum_residual(once, "m").high == 1 + min(FITTED_ONCE, constants.residuals.p90)
    assert sum_residual(replace(once, residuals=None), "m").high == 1 + FITTED_ONCE


def test_a_model_that_was_not_measured_has_the_residual_of_others():
    constants = load_device("A100").precision("tf32").constants
    known = constants.residuals
    found = sum_residual(constants, None)
    assert found.high == 1 + known.p90
    assert f"median error {known.median:.0%} on {known.models} models" in found.basis
    assert sum_residual(replace(constants, residuals=None), None).high == 1 + ELSEWHERE


def test_a_roofline_says_what_its_fit_leaves():
    cpu = load_device("cpu")
    spec = cpu.precision("fp32")
    unknown = RooflineCosts(cpu, load_model("vgg16")).residual
    assert (unknown.low, unknown.high) == (1 / (1 + UNFITTED), 1 + UNFITTED)
    assert RooflineCosts(cpu, load_model("vgg16"), efficiency=0.5).residual.nothing
    fits = {name: ModelEfficiency(value=v, timings=(timing(1.0),)) for name, v in (("a", 0.2), ("b", 0.2), ("c", 0.4))}
    several = replace(spec, models=fits)
    assert roofline_residual(several, "other", None).high == pytest.approx(1 + leave_one_out([0.2, 0.2, 0.4])[1])
    assert roofline_residual(several, "a", None).high == 1 + FITTED_ONCE


def test_a_given_throughput_leaves_its_own_residual():
    costs = throughput_costs("V100", load_model("vgg16"), "fp32", 200.0, 32)
    assert costs.residual.high == 1 + GIVEN
    assert costs.residual.basis == "throughput of V100 as given, taken to be within 5%"


def test_costs_that_state_no_residual_are_taken_as_exact():
    assert residual_of(object()).nothing
