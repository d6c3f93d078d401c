"""Many predictions at once: the best plan, a grid of keys, and predictions held against measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Literal

from stanza_sim.api import _assemble
from stanza_sim.api._arguments import as_text, checked, count, expect, overrides, paths, placed
from stanza_sim.api.clusters_models import keeping_console, printed
from stanza_sim.api.experiments import LoadedExperiment
from stanza_sim.api.predictions import Prediction, knowing
from stanza_sim.api.schedules import USE_CLUSTER, USE_MODEL, ModelSchedule
from stanza_sim.base.config import Section
from stanza_sim.base.errors import InputError
from stanza_sim.base.limits import check_memory
from stanza_sim.base.tables import Tabular, shortened
from stanza_sim.base.telling import Say
from stanza_sim.base.units import PositiveSeconds, Size
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment.scenario import Conditions
from stanza_sim.model.profile import ModelProfile
from stanza_sim.studies.plan.answer import plan_json, print_plan
from stanza_sim.studies.plan.choices import changed
from stanza_sim.studies.plan.session import Answer, PlanAnswers, check_not_launched, plan_problems, problems_of
from stanza_sim.studies.sweep.points import SweepRow
from stanza_sim.studies.sweep.report import in_words, print_sweep, sweep_json
from stanza_sim.studies.sweep.session import Sweep, SweepFindings
from stanza_sim.studies.sweep.table import FIELDS

DEFAULT_BUDGET_S = 100.0
"""For a whole search, unless a number of evaluations limits it."""


class _PlanArguments(Section):
    budget: PositiveSeconds | None = None
    memory: Size | None = None


# ---- plan ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanResult(Tabular):
    """What a search found: `best`, and as a table all plans that were simulated, the best of each model first.

    It prints as `stanza-sim plan` prints it: the ranking, and why the best is the best.
    """

    planned: PlanAnswers
    _made: list[Prediction] = field(default_factory=list, compare=False)

    @property
    def best(self) -> Prediction:
        """The best plan, of the first model if there are several: its `schedule` can be measured."""
        return self.bests[0]

    @property
    def bests(self) -> tuple[Prediction, ...]:
        """The best plan of each model; when they are first asked for they are simulated again, with their timelines."""
        if not self._made:
            self._made.extend(_best(answer) for answer in self.planned.answers if answer.best is not None)
        return tuple(self._made)

    def __repr__(self) -> str:
        count = sum(len(answer.found.ranked) for answer in self.planned.answers)
        best = next(answer.best for answer in self.planned.answers if answer.best is not None)
        speed = f"{shortened(best.label, 70)}, {best.prediction.samples_per_s:,.4g} samples/s"
        return f"<PlanResult of {count} plans; the best: {speed}>"

    def __str__(self) -> str:
        console = keeping_console(80)
        print_plan(self.planned, console, top=10)
        return printed(console).rstrip("\n")

    def to_json(self, *, top: int = 10) -> str:
        """What `stanza-sim plan --json` prints."""
        return plan_json(self.planned, top=top)

    def _columns(self) -> Mapping[str, Sequence[object]]:
        rows = [(answer.problem.entry.title, one) for answer in self.planned.answers for one in answer.found.ranked]
        columns: dict[str, Sequence[object]] = {
            "model": [title for title, _ in rows],
            "plan": [one.choice.label for _, one in rows],
            "strategy": [one.choice.strategy for _, one in rows],
            "settings": [
                " ".join(f"{k}={v}" for k, v in changed(one.choice.entry.settings).items()) for _, one in rows
            ],
        }
        for key in (
            *("samples_per_s", "samples_per_s_low", "samples_per_s_high", "iteration_s", "exposed_comm_s", "bound_s"),
            *("bottleneck", "basis"),
        ):
            columns[key] = [getattr(one.prediction, key) for _, one in rows]
        columns["tied_with"] = ["; ".join(t) for answer in self.planned.answers for t in answer.found.tied_with()]
        return columns | {"memory_nbytes": [one.memory_nbytes for _, one in rows]}


def _best(answer: Answer) -> Prediction:
    problem, winner, best = answer.problem, answer.found.best, answer.best
    if best is None or winner is None:
        raise InputError("no plan could be made", where="plan", hint="see what was left out: print the result")
    conditions = Conditions(loaded=problem.loaded, cluster=problem.cluster, network=problem.network)
    made, said = _assemble.Setup(conditions=conditions, profile=problem.profile), problem.loaded.value
    again = problem.predict(problem.plan(winner.choice))  # a search keeps no timelines
    return knowing(
        replace(again, spread=winner.prediction.spread),
        ModelSchedule.of(
            best.schedule,
            problem.model,
            winner.choice.entry,
            said.precision,
            said.training.accumulation,
            said.training.optimizer,
        ),
        made,
    )


def plan(
    model: ModelProfile | LoadedExperiment,
    cluster: Cluster | None = None,
    batch_per_worker: int = 32,
    *,
    budget: str | float | None = None,
    max_evaluations: int | None = None,
    memory: str | None = None,
    profiles: str | Path | Sequence[str | Path] = (),
    precision: str = "fp32",
    gradients: Literal["parameter", "bf16", "fp16"] = "parameter",
    accumulation: int = 1,
    optimizer: str | Mapping[str, object] = "sgd",
    jobs: int = 1,
    scheduler: str | None = None,
    say: Say = lambda text: None,
) -> PlanResult:
    """Search all strategies and their settings for the most samples/s of `model` on `cluster`.

    For `precision`, `gradients`, `accumulation` and `optimizer` see `build_schedule`. In the place of both an
    experiment may stand: then its models, its rows first. `budget` (100 s unless `max_evaluations` is given; seconds,
    or as "30s") is for all of it; with a number of evaluations for each model the answer is reproducible. With several
    `jobs`, processes that import the caller's script simulate; with a `scheduler`, a Dask cluster. No process takes
    more than `memory`, such as "1GB" (its part of what is free). Raises `InputError` if there is no plan, and for what
    is wrong.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("alexnet")
    >>> ss.plan(model, cluster, batch_per_worker=128, max_evaluations=2).best.samples_per_s > 0
    True
    """
    name, began_s = "plan", monotonic()
    with placed(name):
        check_not_launched()
        if isinstance(budget, int | float) and not isinstance(budget, bool):
            budget = f"{budget:.9f}s"
        limits = checked(name, _PlanArguments, {"budget": budget, "memory": memory})
        budget_s = limits.budget
        if limits.memory is not None:
            check_memory(limits.memory, f"{name}: memory")
        if max_evaluations is not None:
            count(max_evaluations, name, "max_evaluations")
        elif budget_s is None:
            budget_s = DEFAULT_BUDGET_S
        given = paths(profiles, name, "profiles")
        if isinstance(model, LoadedExperiment):
            loaded = model.loaded
            problems, rows, title = problems_of(loaded, given, say), loaded.value.strategies, loaded.value.name
        else:
            from stanza_sim.api._problems import ObjectProblem

            expect(model, ModelProfile, name, "model", USE_MODEL)
            cluster = expect(cluster, Cluster, name, "cluster", USE_CLUSTER)
            count(batch_per_worker, name, "batch_per_worker")
            count(accumulation, name, "accumulation")
            training = {"accumulation": accumulation, "optimizer": optimizer}
            keys = {"precision": precision, "gradients": gradients, "training": training}
            loaded = _assemble.experiment_of(name, {**keys, "batch_per_worker": batch_per_worker}, within=("training",))
            made = _assemble.setup(name, cluster, model, loaded, profiles=given, say=say)
            problem = ObjectProblem(
                loaded=loaded,
                cluster=made.cluster,
                entry=_assemble.entry_of(model, batch_per_worker),
                model=model,
                profile=made.profile,
                network=made.conditions.network,
            )
            problems, rows, title = [problem], (), "plan"
        planned = plan_problems(
            title,
            problems,
            rows,
            end_s=None if budget_s is None else began_s + budget_s,
            max_evaluations=max_evaluations,
            memory_nbytes=limits.memory,
            jobs=count(jobs, name, "jobs"),
            scheduler=scheduler,
        )
        if all(answer.best is None for answer in planned.answers):
            out = [one for answer in planned.answers for one in answer.found.left_out]
            hint = f"the first that was left out, {out[0].choice.label}: {out[0].reason}" if out else None
            raise InputError("no plan could be made", where=name, hint=hint)
        return PlanResult(planned=planned)


# ---- sweep -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SweepResult(Tabular):
    """The rows of an experiment over a grid: each a `SweepRow` with a value for each key, figures, or a reason why not.

    It prints as `stanza-sim sweep` prints it; `crossovers` says in words where the winner changes.
    """

    swept: SweepFindings

    @property
    def crossovers(self) -> tuple[str, ...]:
        """Where another row begins to win, in words, such as `vgg16: Stanza wins up to 18.2 Gbps (network.rate), …`."""
        return tuple(in_words(one, self.swept.axes) for one in self.swept.crossovers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What network profiles do not fit."""
        return tuple(self.swept.warnings)

    def __iter__(self) -> Iterator[SweepRow]:
        return iter(self.swept.lines)

    def __len__(self) -> int:
        return len(self.swept.lines)

    def __repr__(self) -> str:
        keys = shortened(" and ".join(axis.key for axis in self.swept.axes))
        size = f"{len(self.swept.points)} points, {len(self)} rows"
        return f"<SweepResult of {shortened(self.swept.experiment)} over {keys}: {size}>"

    def __str__(self) -> str:
        console = keeping_console(80)
        print_sweep(self.swept, console)
        return printed(console).rstrip("\n")

    def to_json(self) -> str:
        """What `stanza-sim sweep --json` prints."""
        return sweep_json(self.swept)

    def _columns(self) -> Mapping[str, Sequence[object]]:
        swept = self.swept
        lines = [(point, line) for point in swept.points for line in swept.table.lines[point]]
        columns: dict[str, Sequence[object]] = {
            axis.key: [point[i] for point, _ in lines] for i, axis in enumerate(swept.axes)
        }
        columns["feasible"] = [line.feasible for _, line in lines]
        for name in FIELDS:
            columns.setdefault(name, [getattr(line, name) for _, line in lines])
        return columns


def sweep(
    experiment: str | Path | LoadedExperiment,
    *,
    vary: Mapping[str, Sequence[object]],
    set: Mapping[str, object] | None = None,
    nodes: int | None = None,
    batch_per_worker: int | None = None,
    profiles: str | Path | Sequence[str | Path] = (),
    output: str | Path | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
) -> SweepResult:
    """Predict every row of an experiment at every combination of the values of the keys that vary.

    `vary` maps keys by dotted path to their values, as `set` does to one. Where the winner differs between neighbouring
    values of a number, the place is found by bisection. The CSV file `output` gets every point as it is known; what it
    holds already is not predicted again. With several `jobs`, processes that import the caller's script predict; with a
    `scheduler`, a Dask cluster. Raises `InputError`, and `RunError` where a worker was lost.

    >>> import stanza_sim as ss
    >>> found = ss.sweep(
    ...     "ec2_v100", vary={"network.rate": ["10Gbps", "100Gbps"]}, set={"models": ["alexnet"]}, nodes=4)
    >>> found
    <SweepResult of ec2_v100 over network.rate: 2 points, 14 rows>
    """
    name = "sweep"
    with placed(name):
        changes = overrides(set, name, nodes=nodes, batch_per_worker=batch_per_worker)
        if isinstance(experiment, LoadedExperiment):
            if experiment.source == "load_experiment":
                hint = "write it to a file, and name that"
                raise InputError("a mapping cannot be swept", where=f"{name}: experiment", hint=hint)
            changes = [*experiment.overrides, *changes]
            experiment = experiment.source
        if not isinstance(vary, Mapping):
            hint = 'should be a mapping, such as {"network.rate": ["10Gbps", "25Gbps"]}'
            raise InputError(f"is a {type(vary).__name__}", where=f"{name}: vary", hint=hint)
        made = Sweep(
            str(experiment),
            vary=[f"{key}={_listed(values, key)}" for key, values in vary.items()],
            overrides=changes,
            profiles=paths(profiles, name, "profiles"),
            output=None if output is None else Path(output),
        )
        return SweepResult(swept=made.run(jobs=count(jobs, name, "jobs"), scheduler=scheduler))


def _listed(values: object, key: str) -> str:
    """Values as `--vary` takes them."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        what, hint = f"is a {type(values).__name__}", "should be a list of values"
        raise InputError(what, where=f"sweep: vary[{key!r}]", hint=hint)
    return ",".join(map(as_text, values))


# ---- validate --------------------------------------------------------------------------------------------------------
