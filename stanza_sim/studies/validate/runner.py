"""Runs a suite: calibrates every network, predicts every case, then measures all of them in random order, repeatedly.

What there is to be measured is behind `Bench`, so that this can be tested without a network. Everything is predicted
before anything is measured, and a journal keeps what is done: what it holds is not done again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from stanza_sim.base.telling import Tell
from stanza_sim.studies.validate.journal import Journal
from stanza_sim.studies.validate.records import CaseResult, Measured, Predicted, over_repeats
from stanza_sim.studies.validate.suite import Case

"""Told what has just been done, how many of the steps are done now, and of how many. Steps are calibrations of networks
and measurements."""


class Bench(Protocol):
    """What a suite is run against."""

    def calibrate(self, network: str, cases: Sequence[Case]) -> str:
        """Find out, by single messages and without any of `cases` (all on `network`), what predictions need.

        Returns what came of it in words. May raise `InputError` and `RunError`, as every method here.
        """
        ...

    def predict(self, case: Case) -> Predicted:
        """Predict a case of a network that has been calibrated."""
        ...

    def open(self, network: str) -> AbstractContextManager[None]:
        """Make the network ready; within, cases on it can be measured. Nothing of it is left afterwards."""
        ...

    def measure(self, case: Case, predicted: Predicted) -> Measured:
        """Run a case once, on the network that is open; `predicted` says how long it may take.

        Where the speed of computations may have changed since, predict it anew from how fast they are around it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One time that a network is opened: the number of the repeat, and the cases that are then measured, in order."""

    repeat: int
    network: str
    cases: tuple[Case, ...]


def order(cases: Sequence[Case], repeats: int, seed: int) -> tuple[Visit, ...]:
    """Every case once in every repeat, in an order that chance decides, the same for the same arguments.

    A repeat visits each network once, since opening one takes seconds: networks are shuffled, and the cases of each. So
    repeats of a case are as far apart as the suite is long, and what changes slowly on the machine is in their spread.
    """
    chance = random.Random(seed)
    networks = list(dict.fromkeys(c.network for c in cases))
    visits = []
    for repeat in range(repeats):
        for network in chance.sample(networks, len(networks)):
            here = [c for c in cases if c.network == network]
            visits.append(Visit(repeat=repeat, network=network, cases=tuple(chance.sample(here, len(here)))))
    return tuple(visits)


def run(
    cases: Sequence[Case], bench: Bench, journal: Journal, *, repeats: int, seed: int, tell: Tell = lambda *_: None
) -> tuple[CaseResult, ...]:
    """Predict and measure `cases` as far as the journal does not hold it yet; return all of them, in their own order.

    `tell` is told of each step when it is done: the calibration of a network, or a measurement.
    Raises what the bench raises, and `KeyboardInterrupt`; the journal then keeps what was done.
    """
    done = journal.done
    networks = list(dict.fromkeys(c.network for c in cases))
    left = [_without_done(visit, journal) for visit in order(cases, repeats, seed)]
    measuring = sum(len(v.cases) for v in left)
    unknown = {n: [c for c in cases if c.network == n and c.name not in done.predicted] for n in networks}
    total = sum(map(bool, unknown.values())) + measuring
    step = 0
    for network, new in unknown.items():
        if new:
            found = bench.calibrate(network, [c for c in cases if c.network == network])
            journal.note(network, found)
            for case in new:
                journal.predict(case.name, bench.predict(case))
            step += 1
            tell(f"{network}: {found}; {len(new)} predicted", step, total)
    for visit in left:
        if not visit.cases:
            continue
        with bench.open(visit.network):
            for case in visit.cases:
                measured = bench.measure(case, done.predicted[case.name])
                journal.measure(case.name, visit.repeat, measured)
                step += 1
                predicted = measured.predicted or done.predicted[case.name]
                tell(_about(case, visit.repeat, predicted, measured), step, total)
    return results(cases, journal)


def results(cases: Sequence[Case], journal: Journal) -> tuple[CaseResult, ...]:
    """Those of `cases` that the journal has measured, in their own order."""
    done = journal.done
    found = []
    for c in cases:
        if repeats := done.measured.get(c.name):
            measured = tuple(m for _, m in sorted(repeats.items()))
            predicted = over_repeats(done.predicted[c.name], measured)
            found.append(CaseResult(case=c, predicted=predicted, measured=measured))
    return tuple(found)


def _without_done(visit: Visit, journal: Journal) -> Visit:
    measured = journal.done.measured
    left = tuple(c for c in visit.cases if visit.repeat not in measured.get(c.name, {}))
    return Visit(repeat=visit.repeat, network=visit.network, cases=left)


def _about(case: Case, repeat: int, predicted: Predicted, measured: Measured) -> str:
    error = 100 * (predicted.iteration_s / measured.iteration_s - 1)
    times = f"{predicted.iteration_s * 1e3:.1f} ms predicted, {measured.iteration_s * 1e3:.1f} ms measured"
    return f"{case.name}, repeat {repeat + 1}: {times}, {error:+.1f}%"
