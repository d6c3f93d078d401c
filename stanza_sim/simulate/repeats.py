"""Predictions over repeats: the same case again and again, with chance drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from stanza_sim.base.collector import collector_off
from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Say
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.routing import mix
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate.background import BackgroundFlow
from stanza_sim.simulate.engines import EngineChoice
from stanza_sim.simulate.prediction import Prediction, Repeats
from stanza_sim.simulate.run import Collectives, SimulationCase, SimulationOutcome
from stanza_sim.simulate.variation import Variation

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel


def simulate_repeats(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    costs: Callable[[int], CostModel],
    *,
    variation: Variation,
    repeats: int,
    collectives: Collectives = Collectives.ACTIVITY,
    engine: EngineChoice | str = EngineChoice.AUTO,
    issue: Issue = Issue.EAGER,
    say: Say = lambda text: None,
) -> Prediction:
    """Simulate `repeats` times, each with draws of its own; see `simulate` for the rest.

    Background traffic that comes and goes does so differently in each. An iteration's time in one repeat is its mean
    over the repeat's iterations; `iteration_s` is the median over the repeats, and `Prediction.repeats` holds the
    percentiles. All else is from the repeat in the middle (of an even number, the faster of the two). Compiled code
    runs repeats side by side on all cores; how many there are makes no difference to the answer.
    """
    if repeats < 1:
        raise InputError(f"{repeats} repeats", hint="there must be at least 1")
    with collector_off():
        case = SimulationCase(
            schedule,
            model,
            cluster,
            costs,
            by_chance=variation.varies or cluster.varies,
            fold_ranks=True,
            collectives=collectives,
            times=repeats,
            engine=engine,
            issue=issue,
            say=say,
        )
        found = _outcomes(case, variation, repeats)
        if repeats == 1:
            return case.predict(found[0])
        ranked = sorted(range(repeats), key=lambda k: found[k].iteration_s)
        middle = ranked[(repeats - 1) // 2]
        times = [o.iteration_s for o in found]
        median_s = median(times)
        p5_s, p95_s = np.quantile(times, (0.05, 0.95)).tolist()
        return replace(
            case.predict(found[middle]),
            iteration_s=median_s,
            samples_per_s=schedule.global_batch / median_s if median_s > 0 else float("inf"),
            events=sum(o.events for o in found),
            repeats=Repeats(count=repeats, p5_s=p5_s, median_s=median_s, p95_s=p95_s, middle=middle),
        )


def _outcomes(case: SimulationCase, variation: Variation, repeats: int) -> list[SimulationOutcome]:
    """Simulate `case` so often, with draws of their own: side by side where compiled code does it, on all cores."""
    stop = Event()
    workers = min(repeats, case.side_by_side)
    if workers == 1:
        return [one_repeat(case, variation, k) for k in range(repeats)]
    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(lambda k: one_repeat(case, variation, k, stop=stop), range(repeats)))
    finally:  # also after Ctrl-C
        stop.set()
        pool.shutdown(cancel_futures=True)


def one_repeat(
    case: SimulationCase,
    variation: Variation,
    repeat: int,
    *,
    stop: Event | None = None,
    moved: Callable[[], None] = lambda: None,
) -> SimulationOutcome:
    """Simulate `case` with the draws of one repeat; see `SimulationCase.run` for the rest."""
    drawn = replace(variation, repeat=repeat) if variation.varies else None
    traffic = [redrawn(flow, repeat) for flow in case.lowered.background]
    return case.run(drawn, traffic, stop=stop, moved=moved)


def redrawn(flow: BackgroundFlow, repeat: int) -> BackgroundFlow:
    """Return `flow` with other draws of when it comes and goes; as it is for repeat 0."""
    if not repeat:
        return flow
    return replace(flow, traffic=replace(flow.traffic, seed=mix(flow.traffic.seed) ^ repeat))
