"""A row of a report: a strategy for a model on a cluster, its prediction and, where it ran, its measurement."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from stanza_sim.base.tables import shortened
from stanza_sim.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.report.explanation import Explanation
from stanza_sim.report.inputs import RunInputs
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.lowering.link_seconds import LinkSeconds
from stanza_sim.simulate.residual import ties
from stanza_sim.timeline.critical_path import CriticalPath

if TYPE_CHECKING:  # the executor needs torch, a report of predictions does not
    from stanza_sim.execute.rank.job import Measurement
    from stanza_sim.simulate import Prediction

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

LOSS_WINDOW = 10
"""`loss_first` and `loss_last` are means over this many iterations (fewer if the run is shorter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How a machine moved while a row was measured, by the time that the row's blocks take in sum; positive: slower.

    `change` is the time right after the row over that right before it, less one; `against_profile` the mean of both
    over what the profile says from which the row is predicted, less one (None where it is that mean).
    """

    change: float
    against_profile: float | None = None


class RowDetails(Protocol):
    """What is worked out of a row's prediction only when it is asked for."""

    @property
    def critical_path(self) -> CriticalPath:
        """What sets the time of an iteration."""
        ...

    @property
    def explanation(self) -> Explanation:
        """Why it takes so long, which is simulated."""
        ...

    @property
    def representative(self) -> Callable[[int], int]:
        """Which rank's spans stand for those of each, where identical ranks were folded."""
        ...

    def place_of(self, rank: int) -> str:
        """The host, and device, of a rank."""
        ...

    def link_seconds(self, labels: Collection[str]) -> LinkSeconds:
        """What each op takes of these links."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Row:
    """One strategy on one model: the schedule, the prediction and the measurement (None if it was not executed).

    `drift` is there where blocks were timed before and after it was measured. Where a dilated run was measured,
    `prediction` is of that, and `undilated` of the cluster as its topology states it. An iteration has `accumulation`
    steps of `batch_per_worker` samples. `notes` say what is odd about it, such as a slow host that serves. `mfu` is the
    share of the devices' peak that the model's FLOPs are, `price_per_hour` what the hosts cost in dollars,
    `training_samples` those of the whole training; None: not known. Of `hardware`, the cluster, and `profile`, the
    model, the folder of a result says more; `details` is there where the prediction can be looked into.
    `sample_tokens` are the tokens of a sample, of a model of tokens.
    """

    label: str
    model: str
    strategy: str
    settings: Mapping[str, Json]
    cluster: str
    nodes: int
    batch_per_worker: int
    precision: str
    seed: int
    schedule: Schedule
    prediction: Prediction
    measurement: Measurement | None = None
    drift: Drift | None = None
    undilated: Prediction | None = None
    accumulation: int = 1
    notes: tuple[str, ...] = ()
    mfu: float | None = None
    price_per_hour: float | None = None
    training_samples: float | None = None
    sample_tokens: int | None = None
    hardware: Cluster | None = None
    profile: ModelProfile | None = None
    details: RowDetails | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        where = f"{shortened(self.model, 30)} on {self.nodes:,} nodes of {shortened(self.cluster, 30)}"
        return f"<Row {shortened(self.label)}: {where}, {self.prediction.samples_per_s:,.4g} samples/s>"

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second, as predicted; None where samples are no tokens."""
        return None if self.sample_tokens is None else self.prediction.samples_per_s * self.sample_tokens

    @property
    def samples_per_dollar(self) -> float | None:
        """Samples that a dollar trains, as predicted; None where no price is known, or nothing is paid."""
        return self.prediction.samples_per_s * 3600 / self.price_per_hour if self.price_per_hour else None

    @property
    def time_to_train_s(self) -> float | None:
        """Seconds that the whole training takes, as predicted; None where its length is not stated."""
        if self.training_samples is None or not self.prediction.samples_per_s:
            return None
        return self.training_samples / self.prediction.samples_per_s

    @property
    def cost_to_train(self) -> float | None:
        """Dollars that the whole training costs."""
        took_s, price = self.time_to_train_s, self.price_per_hour
        return None if took_s is None or price is None else took_s / 3600 * price

    @property
    def error_pct(self) -> float | None:
        """Prediction against measured median, in percent of the measured: negative where the prediction is too fast."""
        return self._error_pct(self.prediction)

    @property
    def undilated_error_pct(self) -> float | None:
        """As `error_pct`, of the prediction for the cluster as its topology states it; None unless time was dilated."""
        return self._error_pct(self.undilated)

    def _error_pct(self, prediction: Prediction | None) -> float | None:
        if self.measurement is None or prediction is None:
            return None
        return 100 * (prediction.iteration_s / self.measurement.iteration_s - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """A row of an experiment that is not possible on its cluster, and why: what, where, and what would be right."""

    label: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything that one `stanza-sim run` found out, rows in the order of the experiment file.

    `infeasible` are the rows that are not possible; they are not among `rows`. `settings` are the keys of the
    experiment as it was read, defaults included; None where that is not known.
    """

    experiment: str
    rows: tuple[Row, ...]
    infeasible: tuple[Infeasible, ...] = ()
    settings: Mapping[str, Json] | None = None
    inputs: RunInputs | None = None

    def by_model(self) -> dict[str, list[Row]]:
        """The rows of each model, in order."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.model, []).append(row)
        return groups

    def tied_with(self) -> list[tuple[str, ...]]:
        """For each row the labels of those of its model that it is tied with; see `stanza_sim.simulate.residual`."""
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for model, rows in self.by_model().items():
            labels = [row.label for row in rows]
            for label, others in zip(labels, ties([row.prediction.spread for row in rows]), strict=True):
                found[model, label] = tuple(labels[i] for i in others)
        return [found[row.model, row.label] for row in self.rows]


def loss_ends(losses: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last `LOSS_WINDOW` losses; raises `ValueError` if there are none."""
    if not losses:
        raise ValueError("no losses")
    first, last = losses[:LOSS_WINDOW], losses[-LOSS_WINDOW:]
    return math.fsum(first) / len(first), math.fsum(last) / len(last)


def _measured(row: Row) -> dict[str, Json] | None:
    m = row.measurement
    if m is None:
        return None
    first, last = loss_ends(m.losses) if m.losses else (None, None)
    return {
        "compute": m.compute.value,
        "dilate": m.dilation,
        "iteration_s": m.iteration_s,
        "iteration_s_min": m.iteration_s_min,
        "iteration_s_max": m.iteration_s_max,
        "samples_per_s": m.samples_per_s,
        "tokens_per_s": None if row.sample_tokens is None else m.samples_per_s * row.sample_tokens,
        "loss_first": _finite(first),
        "loss_last": _finite(last),
        "iterations": len(m.losses) or None,
        "accuracy": m.accuracy,
        "perplexity": _finite(m.perplexity),
        "evaluations": [
            {
                "iteration": s.iteration,
                "loss": _finite(s.loss),
                "accuracy": s.accuracy,
                "perplexity": _finite(s.perplexity),
            }
            for s in m.scores
        ],
    }


def _undilated(row: Row) -> dict[str, Json]:
    """What the cluster as its topology states it would take, where time was dilated; nothing elsewhere."""
    if row.undilated is None:
        return {}
    return {"undilated": {"iteration_s": row.undilated.iteration_s, "error_pct": row.undilated_error_pct}}


def _machine(row: Row) -> dict[str, Json] | None:
    """What the machine did while the row was measured; shares are of its cores."""
    m, drift = row.measurement, row.drift
    if m is None:
        return None
    return {
        "change_pct": None if drift is None else 100 * drift.change,
        "against_profile_pct": None if drift is None or drift.against_profile is None else 100 * drift.against_profile,
        "others_pct": 100 * m.others,
        "stolen_pct": 100 * m.stolen,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: a loss that diverged is null."""
    return value if value is not None and math.isfinite(value) else None


def _explanation(row: Row) -> dict[str, Json]:
    """Why a row takes as long as it does, if that can be looked into; `times` is null for what takes no time."""
    if row.details is None:
        return {}
    one = row.details.explanation
    effects: list[Json] = [
        {"what": e.what, "times": _finite(e.times), "place": e.place, "iteration_s": e.iteration_s} for e in one.effects
    ]
    found = {"cause": one.cause, "place": one.place, "path_s": one.path, "effects": effects, "text": str(one)}
    return {"explanation": found}


def _repeats(row: Row) -> dict[str, Json]:
    """What repeats of a random simulation add to a prediction; nothing where there was one only."""
    repeats = row.prediction.repeats
    if repeats is None:
        return {}
    return {
        "repeats": repeats.count,
        "iteration_s_p5": repeats.p5_s,
        "iteration_s_median": repeats.median_s,
        "iteration_s_p95": repeats.p95_s,
    }


def run_object(row: Row, tied_with: Sequence[str] = (), *, explained: bool = False) -> dict[str, Json]:
    """One row as plain JSON values; times in seconds, `error_pct` as `Row.error_pct`.

    `tied_with` are the labels of rows beside it from which it cannot be told apart. Where it is to be `explained`, that
    is simulated.
    """
    return {
        "label": row.label,
        "model": row.model,
        "strategy": row.strategy,
        "settings": dict(row.settings),
        "cluster": row.cluster,
        "nodes": row.nodes,
        "batch_per_worker": row.batch_per_worker,
        "accumulation": row.accumulation,
        "precision": row.precision,
        "seed": row.seed,
        "schedule_hash": row.schedule.digest(),
        "predicted": {
            "iteration_s": row.prediction.iteration_s,
            "samples_per_s": row.prediction.samples_per_s,
            "samples_per_s_low": _finite(row.prediction.samples_per_s_low),
            "samples_per_s_high": _finite(row.prediction.samples_per_s_high),
            "tokens_per_s": _finite(row.tokens_per_s),
            "mfu": row.mfu,
            "samples_per_dollar": _finite(row.samples_per_dollar),
            "time_to_train_s": _finite(row.time_to_train_s),
            "cost_to_train": _finite(row.cost_to_train),
            "exposed_comm_s": row.prediction.exposed_comm_s,
            "bound_s": row.prediction.bound_s,
            "bottleneck": row.prediction.bottleneck,
            "cost_source": row.prediction.cost_source,
            "basis": row.prediction.basis,
            **_repeats(row),
        },
        "tied_with": list(tied_with),
        "notes": list(row.notes),
        "measured": _measured(row),
        "error_pct": row.error_pct,
        "machine": _machine(row),
        **_undilated(row),
        **(_explanation(row) if explained else {}),
    }


def result_object(result: Result, *, explained: bool = False) -> dict[str, Json]:
    """The result as plain JSON values; see `run_object`."""
    tied = zip(result.rows, result.tied_with(), strict=True)
    return {
        "experiment": result.experiment,
        "runs": [run_object(row, others, explained=explained) for row, others in tied],
        "infeasible": [{"label": i.label, "model": i.model, "reason": i.reason} for i in result.infeasible],
    }


def result_json(result: Result, *, explained: bool = False) -> str:
    """The result as one JSON object, equal bytes for equal results."""
    return json.dumps(result_object(result, explained=explained), indent=1, allow_nan=False) + "\n"
