"""A whole sweep: the points that are not in the file yet, then the crossovers between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from stanza_sim import config
from stanza_sim.errors import InputError
from stanza_sim.experiment import load_experiment
from stanza_sim.plan import model_of
from stanza_sim.sweeps.crossover import Ask, Crossover, bisections, in_step
from stanza_sim.sweeps.points import Request
from stanza_sim.sweeps.table import Table, digest_of
from stanza_sim.sweeps.vary import Axis, Point, check_keys, points, read_axes
from stanza_sim.sweeps.workers import Workers, dask_workers, local_workers

Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep found: the table of all points, and the crossovers. `computed` points were not in its file."""

    experiment: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    table: Table
    computed: int
    crossovers: tuple[Crossover, ...]


class Sweep:
    """A sweep of an experiment, checked: `axes`, `points`, and the `table` with what its file holds already.

    Raises `InputError` for keys and values that the experiment does not have, each by itself; whether they go together
    is found out at each point. Raises it also for a file that is of another sweep or cannot be written.
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
        loaded = load_experiment(experiment, overrides)
        self.name = loaded.value.name
        check_keys(self.axes, self._try_key)
        self.table = Table(digest_of(loaded, overrides, self.axes, profiles), self.axes, output)
        self.table.open()
        self._drop_half_a_point()

    def run(self, *, jobs: int, scheduler: str | None = None, tell: Tell = lambda what, done, total: None) -> Swept:
        """Predict what is not known yet and look for crossovers.

        Every point is in the file as soon as it and those before it are known. Raises `InputError` and `RunError`.
        """
        left = [point for point in self.points if point not in self.table.lines]
        who: AbstractContextManager[Workers]
        who = local_workers(jobs, len(left)) if scheduler is None else dask_workers(scheduler)
        with who as workers:
            self.table.begin()
            tell("points", 0, len(left))
            found = workers.each([self._request(point) for point in left])
            for done, (point, lines) in enumerate(zip(left, found, strict=True), 1):
                self.table.add(point, lines)
                tell("points", done, len(left))
            self.table.finish(self.points)
            crossovers = self._crossovers(workers, tell)
        return Swept(
            experiment=self.name,
            axes=self.axes,
            points=tuple(self.points),
            table=self.table,
            computed=len(left),
            crossovers=tuple(crossovers),
        )

    def _crossovers(self, workers: Workers, tell: Tell) -> list[Crossover]:
        started = bisections(self.axes, {point: self.table.lines[point] for point in self.points})
        driver = in_step(started)
        tell("crossovers", 0, len(started))
        try:
            asked = next(driver)
            while True:
                answers = list(workers.each([self._question(ask) for ask in asked]))
                asked = driver.send(answers)
                tell("crossovers", len(started) - len(asked), len(started))
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
        )

    def _try_key(self, override: str) -> None:
        """Raise `InputError` for a value that is wrong by itself, also a cluster and a model that are not there."""
        loaded = load_experiment(self.experiment, [*self.overrides, override])
        key = override.partition("=")[0]
        if key == "cluster":
            config.find("topologies", loaded.value.cluster, beside=loaded.path)
        if key.partition(".")[0] == "models":
            for i in range(len(loaded.value.models)):
                model_of(loaded, i)

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
