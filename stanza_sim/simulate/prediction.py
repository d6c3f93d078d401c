"""What the simulator predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.base.tables import Tabular, shortened
from stanza_sim.base.units import format_time
from stanza_sim.simulate.residual import Spread
from stanza_sim.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """How long an iteration takes over `count` repeats of a random simulation: 5th, 50th and 95th percentile, seconds.

    Percentiles interpolate linearly between repeats. `middle` is the number of the repeat in the middle, from 0 on.
    """

    count: int
    p5_s: float
    median_s: float
    p95_s: float
    middle: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prediction:
    """What the simulator predicts for one schedule. Times in seconds, per iteration, in the steady state.

    `utilisation` maps resources (links, also those that folding made one, devices and cores) to the share of the
    iteration in which they are busy, background traffic included; `bound_s` is what no order of the same work can
    beat; bytes are per iteration and rank (of the rank that stands for its class when folded). `steady` says that
    iterations repeat; otherwise `iteration_s` is a mean, which has `settled` or not after `iterations`. `repeats` is
    there for a prediction made of several (see `simulate_repeats`), of which all but `iteration_s` and `samples_per_s`
    is the one in the middle. `spread` has samples/s with costs that are off by their residuals, if it was simulated
    with these; `basis` says what the prediction rests on and how far that can be trusted.
    """

    timeline: Timeline
    iteration_s: float
    samples_per_s: float
    exposed_comm_s: float
    idle_s: float
    bound_s: float
    bottleneck: str
    cost_source: str
    utilisation: dict[str, float]
    op_seconds: dict[str, float]
    sent_bytes: dict[int, int]
    received_bytes: dict[int, int]
    iterations: int
    steady: bool
    events: int
    settled: bool = True
    repeats: Repeats | None = None
    spread: Spread | None = None
    basis: str = ""

    @property
    def samples_per_s_low(self) -> float | None:
        """Samples/s with computation and network as slow as their residuals allow; None if that was not simulated."""
        return None if self.spread is None else self.spread.low

    @property
    def samples_per_s_high(self) -> float | None:
        """Samples/s with computation and network as fast as their residuals allow; None if that was not simulated."""
        return None if self.spread is None else self.spread.high

    def __repr__(self) -> str:
        speed = f"{format_time(self.iteration_s)} an iteration, {self.samples_per_s:,.4g} samples/s"
        return f"<Prediction: {speed}, limited by {shortened(self.bottleneck)}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FlowResult(Tabular):
    """Answer to a case of bare flows, see `simulate_flows`.

    `utilisation` is the share of `makespan_s` in which a link's whole rate is used.

    `bottleneck` names, for each flow, the link that limited it when it ended, or None for a flow that used none.
    """

    completion_s: dict[str, float]
    utilisation: dict[str, float]
    bottleneck: dict[str, str | None]
    makespan_s: float

    def __repr__(self) -> str:
        size = f"{len(self.completion_s):,} flows over {len(self.utilisation):,} links"
        return f"<FlowResult of {size}, complete after {format_time(self.makespan_s)}>"

    def _columns(self) -> Mapping[str, Sequence[object]]:
        """One row for each flow."""
        names = list(self.completion_s)
        return {
            "flow": names,
            "completion_s": list(self.completion_s.values()),
            "bottleneck": [self.bottleneck[name] for name in names],
        }
