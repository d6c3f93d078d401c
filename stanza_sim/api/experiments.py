"""Experiments: files with models, a cluster and strategies, loaded and run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stanza_sim.api import _assemble
from stanza_sim.api._arguments import arguments, one_path, overrides, paths, placed
from stanza_sim.api.clusters_models import keeping_console, printed
from stanza_sim.api.predictions import knowing
from stanza_sim.api.schedules import ModelSchedule
from stanza_sim.base import config
from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.base.tables import Tabular, shortened
from stanza_sim.base.telling import Say
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment import file
from stanza_sim.experiment.loops import Files
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.experiment.run import run_loaded
from stanza_sim.report.folder import write_result
from stanza_sim.report.result import Infeasible, Result, Row, result_json
from stanza_sim.report.table import print_result


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExperimentResult(Tabular):
    """The rows of an experiment, in the order of its file: each a strategy for a model, with its `prediction`, its
    `measurement` (None unless it was executed), `error_pct`, `schedule`, `label` and `settings`. It prints as
    `stanza-sim run` prints it.

    >>> import stanza_sim as ss
    >>> result = ss.load_experiment("ec2_v100", set={"models": ["alexnet"], "nodes": 4}).run()
    >>> result
    <ExperimentResult of ec2_v100: 7 rows>
    >>> [row.label for row in result if row.prediction.iteration_s < 0.1]
    ['Stanza, CONV by PS', 'Stanza, CONV by ring', 'pipeline']
    """

    result: Result

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.result.experiment

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows."""
        return self.result.rows

    @property
    def infeasible(self) -> tuple[Infeasible, ...]:
        """The rows that are not possible there, each with its `model`, its `label` and the `reason`."""
        return self.result.infeasible

    def __iter__(self) -> Iterator[Row]:
        return iter(self.result.rows)

    def __len__(self) -> int:
        return len(self.result.rows)

    def __getitem__(self, index: int) -> Row:
        return self.result.rows[index]

    def __repr__(self) -> str:
        return f"<ExperimentResult of {shortened(self.name)}: {len(self)} rows>"

    def __str__(self) -> str:
        console = keeping_console(80)
        print_result(self.result, console)
        return printed(console).rstrip("\n")

    def to_json(self) -> str:
        """What `stanza-sim run --json` prints."""
        return result_json(self.result)

    def save(self, folder: str | Path) -> None:
        """Write what `stanza-sim run -o` writes: the result, schedules, spans and traces. Raises `InputError`."""
        with placed("save"):
            write_result(self.result, Path(folder))

    def _columns(self) -> Mapping[str, Sequence[object]]:
        rows = self.result.rows
        columns: dict[str, Sequence[object]] = {
            key: [getattr(row, key) for row in rows]
            for key in ("model", "label", "strategy", "cluster", "nodes", "batch_per_worker", "precision", "seed")
        }
        for key in (
            *("iteration_s", "samples_per_s", "samples_per_s_low", "samples_per_s_high", "exposed_comm_s", "bound_s"),
            *("bottleneck", "cost_source", "basis"),
        ):
            columns[key] = [getattr(row.prediction, key) for row in rows]
        for key in ("tokens_per_s", "mfu"):
            columns[key] = [getattr(row, key) for row in rows]
        columns["tied_with"] = ["; ".join(tied) for tied in self.result.tied_with()]
        if any(row.measurement is not None for row in rows):
            for key in ("iteration_s", "samples_per_s"):
                columns[f"measured_{key}"] = [getattr(row.measurement, key, None) for row in rows]
            columns["error_pct"] = [row.error_pct for row in rows]
            columns["machine_pct"] = [None if row.drift is None else 100 * row.drift.change for row in rows]
        return columns


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoadedExperiment:
    """An experiment, checked. `source` is what it was loaded by."""

    loaded: Loaded[file.Experiment]
    source: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.loaded.value.name

    @property
    def description(self) -> str:
        """What it says of itself."""
        return self.loaded.value.description.strip()

    def __repr__(self) -> str:
        experiment = self.loaded.value
        size = f"{len(experiment.models)} models, {len(experiment.strategies)} strategies"
        return f"<LoadedExperiment {shortened(self.name)}: {size} on {shortened(experiment.cluster)}>"

    def cluster(self) -> Cluster:
        """Its cluster, with its `nodes` and `network.rate` (of no use where there is one host). Raises `InputError`."""
        return cluster_of(self.loaded)

    def schedules(self, *, model: str | None = None, row: str | None = None) -> list[ModelSchedule]:
        """The schedule of every model and row, or of those that are called so.

        Raises `InputError`, also if one of them is impossible.
        """
        with placed("schedules"):
            plans = plans_of(self.loaded, self.cluster(), model=model, strategy=row)
        given = self.loaded.value
        training = given.training
        return [
            ModelSchedule.of(
                plan.schedule, plan.model, plan.strategy, given.precision, training.accumulation, training.optimizer
            )
            for plan in plans
        ]

    def run(
        self,
        *,
        execute: bool = False,
        testbed: bool = False,
        dilate: float | None = None,
        profiles: str | Path | Sequence[str | Path] = (),
        save_profile: str | Path | None = None,
        save: str | Path | None = None,
        resume: str | Path | None = None,
        say: Say = lambda text: None,
    ) -> ExperimentResult:
        """Predict every model and strategy and, if `execute`, run them too, as `stanza-sim run` does.

        `profiles` are files of measured block times, or of a calibrated network, in the place of the experiment's own;
        block times that executing measures go to `save_profile`. For `save` and `resume` see `measure`; {model} and
        {row} in their names are replaced. With `testbed` ranks run in an emulated network
        (root). Rows have predictions that know what they were made of, unless they were made of what was measured just
        then. Rows that are not possible are the result's `infeasible`. `dilate` is as in `measure`, and takes the
        place of the experiment's `execute.dilate`. Raises `InputError` and `RunError`; in a process that a launcher
        made a rank other than the first, the result has no rows.
        """
        with placed("run"):
            given = paths(profiles, "run", "profiles")
            loaded = self.loaded
            if dilate is not None:
                if not execute:
                    hint = "add execute=True, testbed=True"
                    raise InputError("nothing runs, so nothing can run more slowly", where="run: dilate", hint=hint)
                loaded = _assemble.with_dilation("run", loaded, dilate)
            result = run_loaded(
                loaded,
                execute=execute,
                profiles=given,
                save_profile=None if save_profile is None else Path(save_profile),
                testbed=testbed,
                files=Files(save=one_path(save, "run", "save"), resume=one_path(resume, "run", "resume")),
                say=say,
            )
            if result is None:
                return ExperimentResult(result=Result(experiment=self.name, rows=()))
            return ExperimentResult(result=self._knowing(result, given, executed=execute))

    def _knowing(self, result: Result, profiles: Sequence[Path], *, executed: bool) -> Result:
        """The rows with predictions that know their schedule and, unless it was executed, what they are made of."""
        models = _assemble.models_of(self.loaded)
        made: dict[str, _assemble.Setup | None] = dict.fromkeys(models)
        if not executed:
            cluster = self.cluster()
            for title, model in models.items():
                made[title] = _assemble.setup("run", cluster, model, self.loaded, profiles=profiles, models=models)
        rows = []
        for row in result.rows:
            entry = next(s for s in self.loaded.value.strategies if s.title == row.label)
            schedule = ModelSchedule.of(
                row.schedule,
                models[row.model],
                entry,
                Precision(row.precision),
                row.accumulation,
                self.loaded.value.training.optimizer,
            )
            rows.append(replace(row, schedule=schedule, prediction=knowing(row.prediction, schedule, made[row.model])))
        return replace(result, rows=tuple(rows))


def load_experiment(
    experiment: str | Path | Mapping[str, object],
    *,
    set: Mapping[str, object] | None = None,
    nodes: int | None = None,
    batch_per_worker: int | None = None,
) -> LoadedExperiment:
    """Return an experiment: by name, by the path of its file, or as a mapping of what its file would say.

    `set` changes keys by dotted path, as `--set` does: {"network.rate": "25Gbps", "strategies.0.settings.servers": 2}.
    Raises `InputError` with the file, the line and the key of what is wrong.

    >>> import stanza_sim as ss
    >>> ss.load_experiment("ec2_v100", set={"network.rate": "25Gbps"}, nodes=16)
    <LoadedExperiment ec2_v100: 4 models, 7 strategies on ec2-p3-10>
    """
    name = "load_experiment"
    with placed(name):
        changes = overrides(set, name, nodes=nodes, batch_per_worker=batch_per_worker)
        if isinstance(experiment, Mapping):
            data = config.apply_overrides(dict(experiment), changes)
            source = arguments(name)
            value = config.validate(data, file.Experiment, source)
            loaded = Loaded(value=value, source=source, path=Path("experiment.yaml"))
            return LoadedExperiment(loaded=loaded, source=name, overrides=tuple(changes))
        if not isinstance(experiment, str | Path):
            hint = "should be a name, a path or a mapping"
            raise InputError(f"is a {type(experiment).__name__}", where=f"{name}: experiment", hint=hint)
        loaded = file.load_experiment(str(experiment), changes)
        return LoadedExperiment(loaded=loaded, source=str(experiment), overrides=tuple(changes))
