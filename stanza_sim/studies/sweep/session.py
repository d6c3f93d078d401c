"""A whole sweep: the points that are not in the file yet, then the crossovers between them and how sure these are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base import config
from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import only_writer
from stanza_sim.base.telling import Tell
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.rows import model_of
from stanza_sim.profiles.network import read_either
from stanza_sim.studies.sweep.crossover import (
    Ask,
    Bisection,
    Crossover,
    Unlooked,
    bisections,
    in_step,
    ranges,
    unlooked,
)
from stanza_sim.studies.sweep.crossover_file import write_crossovers
from stanza_sim.studies.sweep.inputs import KEYS, inputs_of
from stanza_sim.studies.sweep.points import BETWEEN, Request, Spreads, SweepRow
from stanza_sim.studies.sweep.table import Table, digest_of
from stanza_sim.studies.sweep.vary import Axis, Point, check_values, combinations, points, read_axes
from stanza_sim.studies.sweep.workers import Workers, dask_workers, local_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFindings:
    """What a sweep found: the table of all points, and the crossovers. `computed` points were not in its file."""

    experiment: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    table: Table
    computed: int
    crossovers: tuple[Crossover, ...]
    unlooked: tuple[Unlooked, ...]

    @property
    def lines(self) -> list[SweepRow]:
        """The lines of all points."""
        return [line for point in self.points for line in self.table.lines[point]]

    @property
    def reasons(self) -> dict[str, int]:
        """Why lines are infeasible, each reason with the number of its lines, the most frequent first."""
        return dict(Counter(line.reason for line in self.lines if not line.feasible).most_common())

    @property
    def warnings(self) -> list[str]:
        """What network profiles do not fit, each once."""
        return list(dict.fromkeys(one for line in self.lines for one in line.warnings.split(BETWEEN) if one))


class Sweep:
    """A sweep of an experiment, checked: `axes`, `points`, and the `table` with what its file holds already.

    Raises `InputError` for keys that the experiment does not have, and for values that are wrong whatever goes with
    them; what does not go together at a point is found out there. Raises it also for a file that is of another sweep,
    or was begun before something changed that is read for it, or cannot be written.
    """

    def __init__(
        self,
        experiment: str,
        *,
        vary: Sequence[str],
        overrides: Sequence[str] = (),
        profiles: Sequence[Path] = (),
        output: Path | None = None,
    ) -> None:
        self.experiment, self.overrides, self.profiles = experiment, tuple(overrides), tuple(profiles)
        self.axes = read_axes(vary)
        self.points = points(self.axes)
        self._inputs: dict[tuple[str, ...], str] = {}
        self._base: list[str] = []
        self.name = self._check_files()
        check_values(self.axes, self._try)
        self.table = Table(digest_of(overrides, self.axes), self.axes, output, self._inputs_of)
        self.table.open()
        self._drop_half_a_point()

    def run(
        self, *, jobs: int, scheduler: str | None = None, tell: Tell = lambda what, done, total: None
    ) -> SweepFindings:
        """Predict what is not known yet and look for crossovers.

        Every point is in the file as soon as it and those before it are known. Raises `InputError` and `RunError`.
        """
        with nullcontext() if self.table.path is None else only_writer(self.table.path):
            return self._run(jobs, scheduler, tell)

    def _run(self, jobs: int, scheduler: str | None, tell: Tell) -> SweepFindings:
        left = [point for point in self.points if point not in self.table.lines]
        who: AbstractContextManager[Workers]
        who = local_workers(jobs, len(left)) if scheduler is None else dask_workers(scheduler)
        for point in left if self.table.path is not None else ():
            self._inputs_of(point)  # as it is before anything is predicted
        if scheduler is None:  # before processes start; where a scheduler cannot be reached, no file is begun
            self.table.begin()
        with who as workers:
            if scheduler is not None:
                self.table.begin()
            tell("points", 0, len(left))
            found = workers.each([self._request(point) for point in left])
            for done, (point, lines) in enumerate(zip(left, found, strict=True), 1):
                self.table.add(point, lines)
                tell("points", done, len(left))
            self.table.finish(self.points)
            crossovers = self._crossovers(workers, tell)
        if self.table.path is not None:
            write_crossovers(self.table.path, self.axes, crossovers)
        return SweepFindings(
            experiment=self.name,
            axes=self.axes,
            points=tuple(self.points),
            table=self.table,
            computed=len(left),
            crossovers=tuple(crossovers),
            unlooked=tuple(unlooked(self.axes, {point: self.table.lines[point] for point in self.points})),
        )

    def _crossovers(self, workers: Workers, tell: Tell) -> list[Crossover]:
        places = bisections(self.axes, {point: self.table.lines[point] for point in self.points})
        found = self._driven(places, workers, "crossovers", tell)
        return self._driven(ranges(self.axes, found), workers, "their ranges", tell)

    def _driven(self, started: Sequence[Bisection], workers: Workers, what: str, tell: Tell) -> list[Crossover]:
        driver = in_step(started)
        tell(what, 0, len(started))
        try:
            asked = next(driver)
            while True:
                answers = list(workers.each([self._question(ask) for ask in asked]))
                asked = driver.send(answers)
                tell(what, len(started) - len(asked), len(started))
        except StopIteration as stop:
            found: list[Crossover] = stop.value
            return found

    def _request(self, point: Point) -> Request:
        changes = [axis.override(value) for axis, value in zip(self.axes, point, strict=True)]
        return Request(experiment=self.experiment, overrides=(*self.overrides, *changes), profiles=self.profiles)

    def _question(self, ask: Ask) -> Request:
        whole = self._request(ask.point)
        return Request(
            experiment=whole.experiment,
            overrides=whole.overrides,
            profiles=whole.profiles,
            model=ask.model,
            labels=ask.labels,
            spreads=Spreads.ALL if ask.off else Spreads.NONE,
        )

    def _check_files(self) -> str:
        """Return the experiment's name; raise `InputError` for a file that every point needs and that is not there."""
        loaded = self._load_base()
        keys = [axis.key for axis in self.axes]
        if "cluster" not in keys:
            config.find("topologies", loaded.value.cluster, beside=loaded.path)
        if "profile" in keys and self.profiles:
            hint = "leave out --profile, or what is varied"
            raise InputError("profile is varied, but --profile takes its place", where="--vary", hint=hint)
        own = [] if loaded.value.profile is None or "profile" in keys else [loaded.path.parent / loaded.value.profile]
        for path in self.profiles or own:
            read_either(path)
        return loaded.value.name

    def _load_base(self) -> Loaded[Experiment]:
        """Load the experiment without what is varied or, if it needs some of that, with values that go together."""
        try:
            return load_experiment(self.experiment, self.overrides)
        except InputError as error:
            for changes in combinations(self.axes):
                try:
                    loaded = load_experiment(self.experiment, [*self.overrides, *changes])
                except InputError:
                    continue
                self._base = changes
                return loaded
            raise error from None

    def _try(self, changes: Sequence[str]) -> None:
        """Raise `InputError` for values that are wrong, also a cluster, a profile and a model that are not there."""
        loaded = load_experiment(self.experiment, [*self.overrides, *self._base, *changes])
        keys = {change.partition("=")[0].partition(".")[0].strip() for change in changes}
        if "cluster" in keys:
            config.find("topologies", loaded.value.cluster, beside=loaded.path)
        if "profile" in keys and loaded.value.profile is not None:
            read_either(loaded.path.parent / loaded.value.profile)
        if "models" in keys:
            for i in range(len(loaded.value.models)):
                model_of(loaded, i)

    def _inputs_of(self, point: Point) -> str:
        """What a point is predicted from, as it was when it was first asked for."""
        changes = [axis.override(value) for axis, value in zip(self.axes, point, strict=True)]
        mine = tuple(change for change in changes if change.partition("=")[0].partition(".")[0].strip() in KEYS)
        if mine not in self._inputs:
            base = [*self.overrides, *self._base]
            try:
                self._inputs[mine] = inputs_of(self.experiment, [*base, *mine], self.profiles)
            except InputError:  # these do not go together, so nothing is predicted from them
                self._inputs[mine] = inputs_of(self.experiment, base, self.profiles)
        return self._inputs[mine]

    def _drop_half_a_point(self) -> None:
        """Forget the last point of a file that was cut short within it."""
        last = self.table.last
        if last is None or last not in self.points:
            return
        try:
            experiment = load_experiment(self.experiment, self._request(last).overrides).value
        except InputError:  # its only line says so
            return
        if len(self.table.lines[last]) < len(experiment.models) * len(experiment.strategies):
            self.table.drop(last)
            self.table.rewrite()
