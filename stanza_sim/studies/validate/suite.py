"""What a validation suite says: models, strategies and networks by name, which of them make a case, what is expected.

See `experiments/validation/` for those that are shipped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from stanza_sim.base import config
from stanza_sim.base.config import Count, Kind, Loaded, Section
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.base.units import PositiveSeconds, Rate, format_rate
from stanza_sim.experiment.file import (
    Execute,
    Experiment,
    ModelEntry,
    Name,
    Network,
    StrategyEntry,
    Training,
)
from stanza_sim.experiment.simulated import Simulation

DEFAULT = "emulated"
"""The suite that is run unless another is named."""

Percent = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _from_name(key: str) -> BeforeValidator:
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
"""One name, or a list of names."""


class NetworkEntry(Section):
    """A cluster with its number of nodes and the rate of its NICs."""

    cluster: str = Field(min_length=1, description="Name of a topology, or path of its file.")
    nodes: Count | None = Field(None, description="How many nodes; default: the topology's.")
    rate: Rate | None = Field(None, description="Rate of every NIC; default: the topology's.")


class CaseEntry(Section):
    """Every combination of the networks, models and strategies that it names is a case."""

    network: Names
    model: Names
    strategy: Names


class Bounds(Section):
    """What the absolute errors must not exceed, in percent; what is left out is not judged."""

    median: Percent | None = None
    p90: Percent | None = Field(None, description="90th percentile over cases.")
    max: Percent | None = None


class Rules(Section):
    """What keeps a suite from being easy: shares of its cases, by their predictions."""

    exposed_share: Share = Field(0.3, description="From this share of exposed communication on a case counts ...")
    exposed_cases: Share = Field(0.5, description="... and at least so many of the cases must count.")
    single_server_cases: Share = Field(0.25, description="At most so many may be of one parameter server.")


class Timing(Section):
    """How long a case is measured in each repeat."""

    time: PositiveSeconds = Field(2.0, description="Iterations that are timed take about so long ...")
    least: int = Field(6, ge=2, description="... but there are at least so many ...")
    most: int = Field(40, ge=2, description="... and at most so many.")
    warmup: Count = Field(2, description="Iterations before them, which are not timed.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"at least {self.least} and at most {self.most} iterations contradict each other")
        return self


class Suite(Section):
    """One suite file."""

    name: Name
    description: str = ""
    seed: int = Field(1, ge=0, lt=2**63, strict=True, description="Of the order of the cases.")
    repeats: Count = Field(3, description="How often each case is measured.")
    precision: Precision = Precision.FP32
    bounds: Bounds = Bounds()
    calibrate_on: int | None = Field(
        None,
        ge=2,
        strict=True,
        description="Each network is also calibrated on so many of its hosts, and every case predicted from that too.",
    )
    small_bounds: Bounds = Field(Bounds(), description="What errors of these predictions must not exceed, in percent.")
    rules: Rules | None = None
    timing: Timing = Timing()
    execute: Execute = Execute()
    simulation: Simulation = Simulation()
    models: dict[Name, Annotated[ModelEntry, _from_name("model")]] = Field(min_length=1)
    strategies: dict[Name, Annotated[StrategyEntry, _from_name("strategy")]] = Field(min_length=1)
    networks: dict[Name, Annotated[NetworkEntry, _from_name("cluster")]] = Field(min_length=1)
    cases: tuple[CaseEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _calibrates(self) -> Self:
        if self.calibrate_on is not None and self.execute.compute == "real":
            raise ValueError("calibrate_on is for emulated compute: real computations are timed on all ranks")
        if self.calibrate_on is None and "small_bounds" in self.model_fields_set:
            raise ValueError("small_bounds without calibrate_on")
        return self

    def digest(self) -> str:
        """A hash of everything that the suite says but its order and its bounds, which change no case."""
        bounds = {"bounds", "small_bounds"}
        said = self.model_dump(mode="json", exclude={"seed", "repeats", "rules", "description", *bounds})
        if self.execute.dilate == 1:
            del said["execute"]["dilate"]  # what it was before time could be dilated
        if self.calibrate_on is None:  # as before there was such a key
            del said["calibrate_on"]
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model on a network with a strategy; each by its name in the suite. `index` is its place in the suite."""

    index: int
    network: str
    model: str
    strategy: str

    @property
    def name(self) -> str:
        """What the case is called: network/model/strategy."""
        return f"{self.network}/{self.model}/{self.strategy}"


def load_suite(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[Loaded[Suite], tuple[Case, ...]]:
    """Read a suite by name or path and return it with its cases, in the order of the file.

    `overrides` are `key=value` texts, as for experiments. Raises `InputError` with file, key and what would be right;
    also for a name that the suite does not define, and for a case that is there twice.
    """
    loaded = config.load_located(config.find(Kind.SUITES, name_or_path), Suite, overrides=overrides)
    suite, source = loaded.value, loaded.source
    if suite.simulation.varies:
        where = source.where("simulation")
        raise InputError("a validation without jitter and stragglers is meant", where=where, hint="leave them out")
    cases: dict[str, Case] = {}
    for i, entry in enumerate(suite.cases):
        for key, names, known in (
            ("network", entry.network, suite.networks),
            ("model", entry.model, suite.models),
            ("strategy", entry.strategy, suite.strategies),
        ):
            if unknown := [n for n in names if n not in known]:
                hint = config.near(unknown[0], known)
                raise InputError(f"there is no {key} {unknown[0]!r}", where=source.where("cases", i, key), hint=hint)
        for network in entry.network:
            for model in entry.model:
                for strategy in entry.strategy:
                    case = Case(index=len(cases), network=network, model=model, strategy=strategy)
                    if case.name in cases:
                        raise InputError(f"the case {case.name} is there twice", where=source.where("cases", i))
                    cases[case.name] = case
    return loaded, tuple(cases.values())


def chosen(cases: Sequence[Case], words: Sequence[str]) -> tuple[Case, ...]:
    """Return the cases whose name holds one of `words`, all if there are none. Raises `InputError` if none is left."""
    found = tuple(c for c in cases if not words or any(word in c.name for word in words))
    if not found:
        example = cases[0].name
        raise InputError(f"no case has {' or '.join(words)} in its name", where="--only", hint=f"such as {example}")
    return found


def experiment_of(
    loaded: Loaded[Suite], case: Case, *, timed: int | None = None, nodes: int | None = None
) -> Loaded[Experiment]:
    """Return the case as an experiment of one row; `timed` is how many iterations to time, the least unless stated.

    `nodes` replaces the number of nodes.
    """
    suite = loaded.value
    network, how = suite.networks[case.network], suite.timing
    # One more at the end, behind which nothing runs, is not timed either.
    iterations = how.warmup + (how.least if timed is None else timed) + 1
    experiment = Experiment(
        name=suite.name,
        cluster=network.cluster,
        nodes=nodes or network.nodes,
        network=Network.model_construct(rate=network.rate),
        seed=suite.seed,
        precision=suite.precision,
        models=(suite.models[case.model],),
        strategies=(suite.strategies[case.strategy],),
        training=Training(iterations=iterations, warmup=how.warmup),
        execute=suite.execute,
        simulation=suite.simulation,
    )
    # What is wrong with a case has no line of its own in the suite.
    source = replace(loaded.source, file=f"{loaded.source.file}: case {case.name}", lines={})
    return Loaded(value=experiment, source=source, path=loaded.path)


def timed_iterations(timing: Timing, predicted_s: float) -> int:
    """How many iterations fill the time of a repeat, between the least and the most."""
    wanted = round(timing.time / predicted_s) if predicted_s > 0 else timing.most
    return max(timing.least, min(timing.most, wanted))


def about_network(entry: NetworkEntry) -> str:
    """A network in words, such as `emulated-star, 4 nodes, 500 Mbps`."""
    nodes = [] if entry.nodes is None else [f"{entry.nodes} nodes"]
    rate = [] if entry.rate is None else [format_rate(entry.rate)]
    return ", ".join([entry.cluster, *nodes, *rate])
