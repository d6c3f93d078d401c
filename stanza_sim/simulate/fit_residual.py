"""How far off computed costs may be: what fits to published timings leave."""

from __future__ import annotations

from collections.abc import Sequence

from stanza_sim.cluster.device import Precision, PublishedTiming, WorkConstants
from stanza_sim.simulate.residual import Residual, leave_one_out, of_ratios, within

FITTED_ONCE = 0.35
"""How far off times may be that were fitted to a single timing of a model, which tells no residual, unless models that
were not fitted at all are closer: of the fits of the shipped devices to several timings nine in ten are within a factor
of 1.35 of each, and the middle one within 1.10."""
ELSEWHERE = 0.45
"""How far off times may be whose constants are those of other GPUs: the worst 90th percentile of a shipped device that
was measured is 0.44, of models left out of the fit."""
UNFITTED = 1.0
"""How far off times may be on a device without any published timing: models without one of their own were off by
factors of 1.5 to 3 under a roofline on devices that have some."""


def sum_residual(constants: WorkConstants, known_as: str | None) -> Residual:
    """How far off the sum over kinds of op may be for a model that has a factor as `known_as`, or for another."""
    known = constants.residuals
    if known_as is not None:
        most = FITTED_ONCE if known is None else min(FITTED_ONCE, known.p90)
        return _of_timings(constants.models[known_as].timings, most)
    if known is None:
        return within(ELSEWHERE, f"sum by kind of op, constants of other GPUs: taken to be within {ELSEWHERE:.0%}")
    many = f"{known.models} models" if known.models != 1 else "1 model"
    return within(known.p90, f"sum by kind of op, median error {known.median:.0%} on {many}, p90 {known.p90:.0%}")


def roofline_residual(spec: Precision, known_as: str, efficiency: float | None) -> Residual:
    """How far off a roofline may be for a model that is `known_as` so, or at an `efficiency` that is given."""
    if efficiency is not None:
        return Residual(basis="roofline, efficiency as given")
    fit = spec.models.get(known_as)
    if fit is not None:
        return _of_timings(fit.timings, FITTED_ONCE)
    if len(spec.models) < 2:
        return within(UNFITTED, f"roofline, not fitted: taken to be within a factor of {1 + UNFITTED:g}")
    middle, most = leave_one_out([one.value for one in spec.models.values()])
    return within(most, f"roofline, median error {middle:.0%} on {len(spec.models)} models, p90 {most:.0%}")


def _of_timings(timings: Sequence[PublishedTiming], once: float) -> Residual:
    """What a fit to timings of a model leaves; if there is one only, `once`."""
    ratios = [row.ratio for row in timings if row.fitted]
    if len(ratios) < 2:
        return within(once, f"fitted to 1 published timing: taken to be within {once:.0%}")
    text = f"{min(ratios) - 1:+.0%} to {max(ratios) - 1:+.0%} of {len(ratios)} published timings"
    return of_ratios(ratios, f"fitted, {text}")
