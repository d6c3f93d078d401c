"""How far off a roofline may be: what fits to published timings leave."""

from __future__ import annotations

from stanza_sim.cluster.device import Precision
from stanza_sim.simulate.residual import Residual, leave_one_out, of_ratios, within

FITTED_ONCE = 0.4
"""How far off times may be whose efficiency was fitted to a single timing, which tells no residual: of the fits of the
shipped devices to several timings nine in ten are within a factor of 1.43 of each, and the middle one within 1.12."""
UNFITTED = 1.0
"""How far off times may be on a device without any published timing: models without one of their own were off by
factors of 1.5 to 3 on devices that have some."""


def roofline_residual(spec: Precision, known_as: str, efficiency: float | None) -> Residual:
    """How far off a roofline may be: what its fit leaves or, of a model without one, what others' would have been."""
    if efficiency is not None:
        return Residual(basis="roofline, efficiency as given")
    fit = spec.models.get(known_as)
    if fit is None:
        if len(spec.models) < 2:
            return within(UNFITTED, f"roofline, not fitted: within a factor of {1 + UNFITTED:g}")
        middle, most = leave_one_out([one.value for one in spec.models.values()])
        return within(most, f"roofline, median error {middle:.0%} on {len(spec.models)} models left out in turn")
    ratios = [row.ratio for row in fit.timings if row.fitted]
    if len(ratios) < 2:
        return within(FITTED_ONCE, f"roofline, fitted to 1 published timing: within {FITTED_ONCE:.0%}")
    basis = f"roofline, {min(ratios) - 1:+.0%} to {max(ratios) - 1:+.0%} of {len(ratios)} published timings"
    return of_ratios(ratios, basis)
