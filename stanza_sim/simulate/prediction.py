"""What the simulator predicts."""

from __future__ import annotations

from dataclasses import dataclass

from stanza_sim.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """How long an iteration takes over `count` repeats of a random simulation: 5th, 50th and 95th percentile, seconds.

    Percentiles interpolate linearly between repeats.
    """

    count: int
    p5_s: float
    median_s: float
    p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the simulator predicts for one schedule. Times in seconds, per iteration, in the steady state.

    `utilisation` maps resources (links, also those that folding made one, devices and cores) to the share of the
    iteration in which they are busy, background traffic included; `bound_s` is what no order of the same work can
    beat; bytes are per iteration and rank (of the rank that stands for its class when folded). `steady` says that
    iterations repeat; otherwise `iteration_s` is a mean, which has `settled` or not after `iterations`. `repeats` is
    there for a prediction made of several (see `simulate_repeats`), of which all but `iteration_s` and `samples_per_s`
    is the one in the middle.
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
