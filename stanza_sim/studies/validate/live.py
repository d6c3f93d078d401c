"""The bench that runs cases for real: ranks on this machine, in a testbed where a case has several hosts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Say
from stanza_sim.base.units import format_rate, format_time
from stanza_sim.cluster import Cluster
from stanza_sim.cluster.dilation import dilated
from stanza_sim.experiment.fitted import fitted
from stanza_sim.experiment.jobs import jobs_of, open_ranks
from stanza_sim.experiment.rows import Plan, cluster_of, plans_of
from stanza_sim.experiment.scenario import Conditions
from stanza_sim.profiles.blocks import Profile
from stanza_sim.report.compare import per_iteration
from stanza_sim.simulate import Prediction
from stanza_sim.studies.validate import machine
from stanza_sim.studies.validate.records import Measured, Predicted
from stanza_sim.studies.validate.suite import Case, Suite, experiment_of, timed_iterations
from stanza_sim.timeline.measures import waiting
from stanza_sim.timeline.spans import Timeline

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import Measurement, RunJob, Workers
    from stanza_sim.profiles.network import NetworkProfile


class CasePlans:
    """The clusters of a suite's networks as their topologies state them, and the plan of each case."""

    def __init__(self, suite: Loaded[Suite], cases: Sequence[Case]) -> None:
        """Raises `InputError` for a case that cannot be."""
        self.suite, self.cases = suite, tuple(cases)
        self.clusters: dict[str, Cluster] = {}
        self._plans: dict[str, Plan] = {}
        for case in cases:
            experiment = experiment_of(suite, case)
            if case.network not in self.clusters:
                self.clusters[case.network] = cluster_of(experiment)
                self._check_nodes(case)
            (self._plans[case.name],) = plans_of(experiment, self.clusters[case.network])

    def small_cluster(self, case: Case) -> Cluster | None:
        """The case's network with as few nodes as it is also to be calibrated on; None if it is not."""
        few = self.suite.value.calibrate_on
        return None if few is None else cluster_of(experiment_of(self.suite, case, nodes=few))

    def _check_nodes(self, case: Case) -> None:
        """Raise `InputError` for a network that cannot be calibrated on so few nodes, or has no more than these."""
        small, whole = self.small_cluster(case), self.clusters[case.network]
        if small is not None and len(small.hosts) >= len(whole.hosts):
            what = f"network {case.network} has {len(whole.hosts)} nodes, and is to be calibrated on {small.nodes}"
            where = self.suite.source.where("calibrate_on")
            raise InputError(what, where=where, hint="name fewer nodes, or larger networks")

    def __getitem__(self, case: Case) -> Plan:
        """The plan of a case."""
        return self._plans[case.name]

    def predict(self, case: Case, cluster: Cluster | None = None, profile: Profile | None = None) -> Predicted:
        """Predict a case, on its network as stated or on `cluster`, with block times as in `profile`."""
        plan, experiment = self[case], experiment_of(self.suite, case)
        cluster = cluster or self.clusters[case.network]
        scenario = Conditions(loaded=experiment, cluster=cluster).scenario(plan, profile)
        return predicted_of(plan, cluster, scenario.predict())


def predicted_of(plan: Plan, cluster: Cluster, prediction: Prediction) -> Predicted:
    """What is kept of a prediction."""
    names = [group.name for group in plan.schedule.groups]
    of_servers = plan.strategy.strategy == "parameter_server" and "server" in names
    return Predicted(
        iteration_s=prediction.iteration_s,
        exposed_comm_s=prediction.exposed_comm_s,
        parts=per_iteration(prediction.timeline, plan.schedule),
        source=prediction.cost_source,
        nodes=cluster.nodes,
        servers=len(plan.schedule.group("server")) if of_servers else 0,
    )


def measured_of(plan: Plan, measurement: Measurement, *, iterations: int, wall_s: float, load: float) -> Measured:
    """What is kept of a measurement."""
    timeline = measurement.timeline
    return Measured(
        iteration_s=measurement.iteration_s,
        iteration_s_min=measurement.iteration_s_min,
        iteration_s_max=measurement.iteration_s_max,
        exposed_comm_s=waiting(plan.schedule, timeline, *_timed(timeline)).exposed_comm_s,
        parts=per_iteration(timeline, plan.schedule),
        iterations=iterations,
        wall_s=wall_s,
        load=load,
        realtime=measurement.realtime,
        stolen=measurement.stolen,
        tries=measurement.tries,
        others=measurement.others,
    )


def _timed(timeline: Timeline) -> tuple[int, int]:
    """(first, last) such that iterations first+1 .. last were timed from end to end, with another one behind them."""
    last = min(map(len, timeline.iteration_end_s.values())) - 2
    return timeline.first_iteration, max(last, timeline.first_iteration + 1)


class LiveBench:
    """Runs the cases of a suite on this machine; see `stanza_sim.studies.validate.runner.Bench`.

    A network is calibrated with single messages between ranks in it. For real computations the blocks of its models are
    timed as well, on all of its ranks at once, and again right before and after each repeat of a case, since the speed
    of shared cores moves by a third within seconds; emulated ones take as long as the cost model says, so nothing is.
    """

    def __init__(self, suite: Loaded[Suite], plans: CasePlans, cases: Sequence[Case], *, say: Say) -> None:
        """Raises `InputError` for cases that cannot be run here, before anything is."""
        from stanza_sim.execute import require_torch

        require_torch()
        self._suite, self._plans, self._say = suite, plans, say
        self._emulated = suite.value.execute.compute == "emulated"
        self._clusters: dict[str, Cluster] = {}  # as calibrated
        self._small: dict[str, Cluster] = {}  # as calibrated on a few of its hosts
        self._profiles: dict[tuple[str, str], Profile] = {}  # by network and model
        self._workers: Workers | None = None
        self._said: set[str] = set()
        for case in cases:
            self._check(case)

    def _check(self, case: Case) -> None:
        plan, where = self._plans[case], experiment_of(self._suite, case).source.where()
        if not self._emulated and plan.model.factory is None:
            hint = "leave `scale` out, or use --compute emulated"
            what = f"model {plan.model.name} cannot be trained: it is a table of numbers"
            raise InputError(what, where=where, hint=hint)
        self._job(case, self._suite.value.timing.least)

    def calibrate(self, network: str, cases: Sequence[Case]) -> str:
        """See `Bench`."""
        with self._ranks(network) as workers:
            begin = time.monotonic()
            found = self._calibrate(cases[0], workers)
            if not self._emulated:
                for case in cases:
                    self._profile(case, workers)
            took_s = time.monotonic() - begin
        words = f"{_in_words(found)} ({took_s:.0f} s)"
        if (small := self._plans.small_cluster(cases[0])) is not None:
            words += f"; on {small.nodes} hosts {self._calibrate_on(small, cases[0])}"
        return words

    def _calibrate_on(self, small: Cluster, case: Case) -> str:
        """Calibrate a case's network on a few of its hosts; return what that came to, in words."""
        from stanza_sim.execute import Backend
        from stanza_sim.execute.calibrate.network import calibrate_network
        from stanza_sim.profiles.network import with_network

        begin, backend = time.monotonic(), Backend(self._suite.value.execute.backend)
        with self._ranks(case.network, small) as workers:
            found = calibrate_network(
                workers, small, testbed=_in_testbed(small), realtime=self._realtime(case), backend=backend
            )
        self._small[case.network] = with_network(self._plans.clusters[case.network], found)
        return f"{_in_words(found)} ({time.monotonic() - begin:.0f} s)"

    def _calibrate(self, case: Case, workers: Workers) -> NetworkProfile:
        """Calibrate the network of a case, on which `workers` are."""
        from stanza_sim.execute import Backend
        from stanza_sim.execute.calibrate.network import calibrate_network
        from stanza_sim.experiment.emulation import on_testbed

        stated, how = self._plans.clusters[case.network], self._suite.value.execute
        found = calibrate_network(
            workers,
            dilated(stated, how.dilate),
            testbed=_in_testbed(stated),
            realtime=self._realtime(case),
            backend=Backend(how.backend),
        )
        self._clusters[case.network] = on_testbed(stated, found, how.dilate)
        return found

    def _profile(self, case: Case, workers: Workers) -> Profile:
        """The block times of a case's model, at all samples that cases of its network need; timed if not known yet."""
        from stanza_sim.execute import Backend
        from stanza_sim.execute.calibrate.calibration import calibrate

        key = case.network, self._plans[case].entry.title
        if key not in self._profiles:
            plans = [self._plans[c] for c in self._plans.cases if c.network == case.network]
            mine = [plan for plan in plans if plan.entry.title == key[1]]
            suite = self._suite.value
            self._profiles[key] = calibrate(
                workers,
                mine[0].model,
                [plan.schedule for plan in mine],
                backend=Backend(suite.execute.backend),
                precision=suite.precision,
                seed=suite.seed,
            )
        return self._profiles[key]

    def predict(self, case: Case) -> Predicted:
        """See `Bench`."""
        profile = self._profiles.get((case.network, self._plans[case].entry.title))
        found = self._plans.predict(case, self._clusters[case.network], profile)
        if (small := self._small.get(case.network)) is not None:
            found = replace(found, small_s=self._plans.predict(case, small).iteration_s)
        return found

    @contextmanager
    def open(self, network: str) -> Iterator[None]:
        """See `Bench`."""
        with self._ranks(network) as self._workers:
            try:
                yield
            finally:
                self._workers = None

    def measure(self, case: Case, predicted: Predicted) -> Measured:
        """See `Bench`."""
        from stanza_sim.execute import execute

        if self._workers is None:
            raise RuntimeError(f"network {case.network} is not open")
        begin, load, plan, workers = time.monotonic(), machine.load(), self._plans[case], self._workers
        suite = self._suite.value
        iterations = timed_iterations(suite.timing, predicted.iteration_s * suite.execute.dilate)
        job = self._job(case, iterations)
        anew, drift = None, None
        if self._emulated:
            (measurement,) = execute([job], workers)
        else:
            from stanza_sim.experiment.retiming import Retimer

            title = plan.entry.title
            if case.network not in self._clusters:  # a journal that is continued has predictions, and no calibration
                self._calibrate(case, workers)
            retimer = Retimer(workers, [plan], {title: self._profile(case, workers)}, seed=self._suite.value.seed)
            (measurement,) = execute([job], workers, between=retimer.between)
            timed = retimer.timed(0)
            anew = self._plans.predict(case, self._clusters[case.network], timed.profile)
            drift = timed.drift.change
        if self._realtime(case) and not measurement.realtime:
            self._once("warning: real-time scheduling is not permitted here: ranks were scheduled as all processes are")
        wall_s = time.monotonic() - begin
        measured = measured_of(plan, measurement, iterations=iterations, wall_s=wall_s, load=load)
        return replace(measured, predicted=anew, drift=drift)

    @contextmanager
    def _ranks(self, network: str, small: Cluster | None = None) -> Iterator[Workers]:
        """The ranks of a network, or of a `small` form of it, in a testbed if there are several hosts."""
        cluster = small or self._plans.clusters[network]
        case = next(c for c in self._plans.cases if c.network == network)
        experiment = experiment_of(self._suite, case, nodes=None if small is None else small.nodes)
        with open_ranks(experiment, cluster, testbed=_in_testbed(cluster), say=self._once) as workers:
            yield workers

    def _job(self, case: Case, iterations: int) -> RunJob:
        experiment = experiment_of(self._suite, case, timed=iterations)
        cluster = self._plans.clusters[case.network]
        (job,) = jobs_of(experiment, fitted(experiment, [self._plans[case]]), cluster, {}, testbed=_in_testbed(cluster))
        return job

    def _realtime(self, case: Case) -> bool:
        """Whether the ranks of a case ask for real-time scheduling, when they are measured and when calibrated."""
        emulation = self._job(case, self._suite.value.timing.least).emulation
        return emulation is not None and emulation.realtime

    def _once(self, text: str) -> None:
        """Say something that would otherwise be said whenever a network is opened."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def _in_testbed(cluster: Cluster) -> bool:
    return len({place.host for place in cluster.placement}) > 1


def _in_words(profile: NetworkProfile) -> str:
    """What calibration came to, in a few words."""
    parts = [f"wake-up {format_time(profile.hop_s.value)}"]
    for p in profile.pairs:
        first_s = p.latency_s.value + p.overhead_s.value
        rate = format_rate(p.kind.bottleneck_Bps)
        parts.append(f"{p.efficiency:.4f} of {rate}, first byte {format_time(first_s)}")
    return "; ".join(parts)
