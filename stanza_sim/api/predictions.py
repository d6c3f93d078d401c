"""Predictions: of a schedule on a cluster, with its critical path, and again with something faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from stanza_sim.api import _assemble, _what_if
from stanza_sim.api._arguments import factor, paths, placed
from stanza_sim.api._assemble import Setup
from stanza_sim.api._costs import GivenCosts
from stanza_sim.api.schedules import ModelSchedule, agreed_precision, check_agreed, of_model
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.base.tables import shortened
from stanza_sim.base.units import format_time
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment.details import path_of
from stanza_sim.experiment.what_if import Change
from stanza_sim.experiment.why import explain
from stanza_sim.experiment.worth import flops_utilisation, price_per_hour
from stanza_sim.model.profile import ModelProfile
from stanza_sim.report.explanation import Explanation
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.costs import CostModel
from stanza_sim.simulate.prediction import Prediction as Simulated
from stanza_sim.timeline.critical_path import CriticalPath


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prediction(Simulated):
    """What is predicted of a `schedule` on a `cluster`, per iteration in the steady state. Times in seconds.

    `iteration_s`, `samples_per_s` (of the whole cluster), `bound_s` (what no order of the same work can beat),
    `bottleneck` (the resource that sets it, in words), `exposed_comm_s`, `idle_s`, `utilisation` by resource,
    `op_seconds` by kind of op, `timeline`, and `repeats` where it was made of several. `samples_per_s_low` and
    `samples_per_s_high` are what is left of `samples_per_s` where costs are off as far as `basis` says; when they are
    first asked for, it is simulated four times more.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
    >>> b = ss.predict(ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32), cluster)
    >>> print(f"{b.iteration_s * 1e3:.0f} ms, limited by {b.bottleneck}")
    727 ms, limited by node-0 receive side (worker, 3 more like it), 92% busy
    >>> f"{b.samples_per_s_low:.0f} < {b.samples_per_s:.0f} < {b.samples_per_s_high:.0f} samples/s"
    '154 < 176 < 202 samples/s'
    """

    schedule: ModelSchedule
    setup: Setup | None = None
    change: str = ""

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.schedule.title}, {self.change}" if self.change else self.schedule.title

    @property
    def model(self) -> ModelProfile:
        """The model whose training it predicts."""
        return self.schedule.profile

    @property
    def cluster(self) -> Cluster:
        """The cluster that it is for. Raises `InputError` for a prediction that was made while ranks ran."""
        return self._setup("cluster").cluster

    def __repr__(self) -> str:
        speed = f"{format_time(self.iteration_s)} an iteration, {self.samples_per_s:,.4g} samples/s"
        return f"<Prediction of {shortened(self.label, 50)}: {speed}, limited by {shortened(self.bottleneck, 70)}>"

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of the whole cluster; None of a model whose samples are no tokens.

        >>> import stanza_sim as ss
        >>> cluster, model = ss.load_cluster("ec2-p3-10", nodes=4), ss.load_model("gpt2", sequence=512)
        >>> b = ss.predict(ss.build_schedule("all_reduce", model, cluster, batch_per_worker=8), cluster)
        >>> b.tokens_per_s == 512 * b.samples_per_s
        True
        """
        tokens = self.model.sample_tokens
        return None if tokens is None else self.samples_per_s * tokens

    @property
    def mfu(self) -> float | None:
        """The model's FLOPs as a share of the peak of the devices at work; None where no peak is known.

        >>> import stanza_sim as ss
        >>> cluster, model = ss.load_cluster("ec2-p3-10", nodes=4), ss.load_model("resnet50")
        >>> b = ss.predict(ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32), cluster)
        >>> 0.2 < b.mfu < 0.4
        True
        """
        precision = self.schedule.precision or Precision.FP32
        if self.setup is not None:
            precision = self.setup.conditions.loaded.value.precision
        return flops_utilisation(self.schedule, self.model, self.cluster, precision, self.samples_per_s)

    @property
    def price_per_hour(self) -> float | None:
        """Dollars an hour of the hosts that have something to do; None unless all state it."""
        return price_per_hour(self.schedule, self.cluster)

    @property
    def samples_per_dollar(self) -> float | None:
        """Samples that a dollar trains; None where no price is known, or nothing is paid.

        >>> import stanza_sim as ss
        >>> host = {"name": "node", "count": 2, "cores": 8, "devices": ["V100"], "nic": {"rate": "10Gbps"}}
        >>> topology = {"name": "two", "hosts": [{**host, "price_per_hour": 3.06}], "switches": [{"name": "switch"}]}
        >>> cluster, model = ss.load_cluster(topology), ss.load_model("resnet50")
        >>> b = ss.predict(ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32), cluster)
        >>> b.price_per_hour, round(b.samples_per_dollar / b.samples_per_s)
        (6.12, 588)
        """
        price = self.price_per_hour
        return self.samples_per_s * 3600 / price if price else None

    @property
    def samples_per_s_low(self) -> float | None:
        """Samples/s with computation and network as slow as their residuals allow; None if that is not known."""
        spread = self.with_spread().spread
        return None if spread is None else spread.low

    @property
    def samples_per_s_high(self) -> float | None:
        """Samples/s with computation and network as fast as their residuals allow; None if that is not known."""
        spread = self.with_spread().spread
        return None if spread is None else spread.high

    def with_spread(self) -> Prediction:
        """Itself, once it knows how sure it is: it is simulated again unless that was done before."""
        if self.spread is None and self.setup is not None:
            found = self.setup.scenario(self.schedule).spread(self)
            object.__setattr__(self, "spread", found)  # kept, as a cached property is
        return self

    def critical_path(self) -> CriticalPath:
        """Return the chain of ops and waits that sets the time of an iteration, across ranks and iterations.

        Its steps follow each other without a gap; in a steady state their seconds add up to `iteration_s`, over its
        `iterations`. Of a prediction with chance it is the path of the last iteration of the repeat in the middle.

        >>> import stanza_sim as ss
        >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
        >>> b = ss.predict(ss.build_schedule("local", model, cluster, batch_per_worker=32), cluster)
        >>> path = b.critical_path()
        >>> len(path), path.iterations, abs(path.iteration_s / b.iteration_s - 1) < 1e-6
        (49, 1, True)
        """
        return path_of(self.schedule, self, self._representative())

    def _representative(self) -> Callable[[int], int]:
        """Which rank's spans stand for those of each, where identical ranks were folded."""
        if all(size == 1 for size in self.timeline.multiplicity.values()):
            return lambda rank: rank
        return self._setup("critical_path").scenario(self.schedule).representative()

    def what_if(
        self,
        *,
        network: float = 1.0,
        latency: float = 1.0,
        compute: float = 1.0,
        link: Mapping[str, float] | None = None,
        nic: Mapping[str, float] | None = None,
        device: Mapping[str, float] | None = None,
        rank: Mapping[int, float] | None = None,
    ) -> Prediction:
        """Return the prediction for the same schedule, were something so many times as fast; it is simulated again.

        `network`: all that messages cross, links, fabrics inside hosts and loopbacks, carries so many times as many
        bytes per second; what a message costs whatever its size stays. `latency`: what messages take beside that,
        latencies and what they cost cores, is divided. `compute`: every computation. `link` (by name or
        label), `nic` (both sides of those of a host, by its name), `device` (all hosts that have it, by its name;
        `cpu` for cores) and `rank` (its host) map a name to a factor. With `math.inf` it takes no time: an infinitely
        fast network is `network=math.inf, latency=math.inf`. Raises `InputError` for a factor that is not a
        positive number, and for names that are not there.

        >>> import stanza_sim as ss
        >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
        >>> b = ss.predict(ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32), cluster)
        >>> [round(b.iteration_s / b.what_if(network=times).iteration_s, 2) for times in (0.5, 2)]
        [0.52, 1.86]
        """
        name, made = _what_if.FUNCTION, self._setup(_what_if.FUNCTION)
        with placed(name):
            cluster = made.cluster
            hosts: dict[int, float] = {}
            for given, found in ((device, _what_if.devices_called), (rank, _what_if.ranks_called)):
                for h, times in found(cluster, given).items():
                    hosts[h] = hosts.get(h, 1.0) * times
            change = Change(
                network=factor(network, name, "network"),
                latency=factor(latency, name, "latency"),
                compute=factor(compute, name, "compute"),
                links=_what_if.links_called(cluster, link) | _what_if.nics_called(cluster, nic),
                hosts=hosts,
            )
            whole = {"network": network, "latency": latency, "compute": compute}
            told = [f"{what} x{times:g}" for what, times in whole.items() if times != 1]
            for given in (link, nic, device, rank):
                told += [f"{key} x{times:g}" for key, times in (given or {}).items()]
            words = ", ".join([*([self.change] if self.change else []), *told])
            return replace(_predicted(self.schedule, replace(made, changes=(*made.changes, change))), change=words)

    def explain(self) -> Explanation:
        """Return what sets the time of an iteration and what would shorten it, by some dozen what-ifs.

        Printed, it is a few sentences; `cause`, `place` and `effects` are for programs.

        >>> import stanza_sim as ss
        >>> cluster, model = ss.load_cluster("star", nodes=5), ss.load_model("vgg16")
        >>> b = ss.predict(ss.build_schedule("parameter_server", model, cluster, batch_per_worker=32), cluster)
        >>> why = b.explain()
        >>> str(why.cause), why.place
        ('link', "node-4's NIC (server)")
        """
        scenario = self._setup("explain").scenario(self.schedule)
        return explain(scenario, self, self.critical_path())

    def _setup(self, what: str) -> Setup:
        if self.setup is None:
            hint = "predict(schedule, cluster) makes one that knows"
            message = "this prediction was made during a run and knows neither its cluster nor its costs"
            raise InputError(message, where=what, hint=hint)
        return self.setup


def predict(
    schedule: Schedule,
    cluster: Cluster,
    *,
    model: ModelProfile | None = None,
    costs: Callable[[int], CostModel] | None = None,
    profiles: str | Path | Sequence[str | Path] = (),
    precision: str | None = None,
    launch: Literal["eager", "graphs"] = "eager",
    engine: Literal["auto", "plain", "compiled"] = "auto",
    collectives: Literal["activity", "steps"] = "activity",
    issue: Literal["auto", "eager", "in_order"] = "auto",
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    jitter: Mapping[str, object] | None = None,
    straggler: Mapping[str, object] | None = None,
    repeats: int | None = None,
    uncertainty: Mapping[str, object] | None = None,
    seed: int = 1,
) -> Prediction:
    """Return how long an iteration of `schedule` takes on `cluster`, and why.

    Computations cost what `profiles` (files of measured block times, and of a network) say, else what each device's
    constants give, which are fitted to published timings at `precision` (default: that for which the schedule was
    built), with kernels that are launched one by one or by CUDA graphs (`launch`); or what `costs(rank)` says, a cost
    model with seconds for each phase of a block. `jitter` ({"kind": "lognormal", "spread": 0.1}) and `straggler`
    ({"probability": 0.01, "slowdown": 3}) let computations vary by chance, from `seed`; the answer is then the median
    of `repeats`. `uncertainty` ({"computation": 0.1, "network": 0.2}) is how far costs may be off, where that is not
    what their sources say. `issue` is how messages are issued ("in_order": op by op). Collectives between devices
    are NCCL's unless `backend` is "gloo". A schedule that `build_schedule` did not build needs its `model`. Raises
    `InputError` for what is wrong or does not fit, `ScheduleError` for an illegal schedule.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
    >>> schedule = ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32)
    >>> b = ss.predict(schedule, cluster, jitter={"kind": "lognormal", "spread": 0.1}, repeats=5)
    >>> b.repeats.count, b.repeats.p5_s < b.iteration_s < b.repeats.p95_s
    (5, True)
    """
    name = "predict"
    with placed(name):
        known = of_model(schedule, model, name)
        simulation = {
            "jitter": jitter,
            "straggler": straggler,
            "repeats": repeats,
            "collectives": collectives,
            "engine": engine,
        }
        keys = {
            "precision": agreed_precision(known, precision),
            "launch": launch,
            "seed": seed,
            "execute": {"issue": issue, "backend": backend},
            "simulation": {key: value for key, value in simulation.items() if value is not None},
            "uncertainty": uncertainty,
        }
        if costs is not None and not callable(costs):
            hint = "should be a function from a rank to its cost model"
            raise InputError(f"is a {type(costs).__name__}", where=f"{name}: costs", hint=hint)
        loaded = _assemble.experiment_of(name, keys, within=("simulation", "execute"))
        check_agreed(known, loaded.value.precision, name)
        made = _assemble.setup(
            name,
            cluster,
            known.profile,
            loaded,
            profiles=paths(profiles, name, "profiles"),
            costs=None if costs is None else GivenCosts(costs),
        )
        return _predicted(known, made)


def _predicted(schedule: ModelSchedule, made: Setup) -> Prediction:
    return knowing(made.scenario(schedule).predict(), schedule, made)


def knowing(found: Simulated, schedule: ModelSchedule, made: Setup | None) -> Prediction:
    """A prediction that knows what it was made of."""
    parts = {field.name: getattr(found, field.name) for field in fields(Simulated)}
    return Prediction(**parts, schedule=schedule, setup=made)
