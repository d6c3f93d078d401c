"""Predictions and measurements side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.api._arguments import placed
from stanza_sim.api.clusters_models import keeping_console, printed
from stanza_sim.api.measuring import Measurement
from stanza_sim.api.predictions import Prediction
from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import Tabular, shortened
from stanza_sim.report.table import Column, fixed, low_high, print_basis, print_grid, tied_note
from stanza_sim.simulate.residual import tied


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(Tabular):
    """Predictions and measurements, one a row. It prints as a table, shows as HTML in a notebook, and `to_frame()` has
    all columns; times in seconds.

    `samples_per_s_low` and `samples_per_s_high` are with costs that are off as far as the prediction's `basis` says.
    Predictions for one model are `tied_with` each other where some such costs reverse their order; what they share, the
    devices or the network, is off alike. `speedup` is against the first row. `error_pct`, beside a prediction and a
    measurement of the same schedule, is what is predicted over what is measured, less one, in percent: negative where
    the prediction is too fast.
    """

    items: tuple[Prediction | Measurement, ...]

    def __iter__(self) -> Iterator[Prediction | Measurement]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        labels = ", ".join(shortened(one.label, 30) for one in self.items[:4])
        more = f" and {len(self.items) - 4} more" if len(self.items) > 4 else ""
        return f"<Comparison of {labels}{more}>"

    @property
    def errors_pct(self) -> tuple[float | None, ...]:
        """For each row the error of a prediction, in percent of what was measured; None where only one is there."""
        return tuple(self._error(one) for one in self.items)

    def _error(self, one: Prediction | Measurement) -> float | None:
        digest, is_measured = one.schedule.digest(), isinstance(one, Measurement)
        others = (o for o in self.items if isinstance(o, Measurement) is not is_measured)
        other = next((o for o in others if o.schedule.digest() == digest), None)
        if other is None:
            return None
        predicted, measured = (other, one) if isinstance(one, Measurement) else (one, other)
        return 100 * (predicted.iteration_s / measured.iteration_s - 1)

    @property
    def tied_with(self) -> tuple[tuple[str, ...], ...]:
        """For each row the labels of those that it cannot be told apart from; see `stanza_sim.simulate.residual`."""
        return tuple(
            tuple(other.label for j, other in enumerate(self.items) if j != i and _tied(one, other))
            for i, one in enumerate(self.items)
        )

    def _columns(self) -> Mapping[str, Sequence[object]]:
        items, first = self.items, self.items[0]
        predictions = [one if isinstance(one, Prediction) else None for one in items]
        return {
            "label": [one.label for one in items],
            "kind": ["predicted" if isinstance(one, Prediction) else "measured" for one in items],
            "model": [one.schedule.model for one in items],
            "ranks": [one.schedule.world_size for one in items],
            "iteration_s": [one.iteration_s for one in items],
            "samples_per_s": [one.samples_per_s for one in items],
            "samples_per_s_low": [None if one is None else one.samples_per_s_low for one in predictions],
            "samples_per_s_high": [None if one is None else one.samples_per_s_high for one in predictions],
            "tied_with": ["; ".join(tied) for tied in self.tied_with],
            "speedup": [one.samples_per_s / first.samples_per_s for one in items],
            "exposed_comm_s": [None if one is None else one.exposed_comm_s for one in predictions],
            "bound_s": [None if one is None else one.bound_s for one in predictions],
            "bottleneck": [None if one is None else one.bottleneck for one in predictions],
            "basis": [None if one is None else one.basis for one in predictions],
            "error_pct": list(self.errors_pct),
        }

    def __str__(self) -> str:
        items, first, errors = self.items, self.items[0], self.errors_pct
        predictions = [one if isinstance(one, Prediction) else None for one in items]
        console = keeping_console(80)

        def of_predictions(values: Sequence[float | None]) -> list[str]:
            shown = iter(fixed(v * 1e3 for v in values if v is not None))
            return ["-" if v is None else next(shown) for v in values]

        columns = [
            Column(heading="iteration", unit="ms", cells=fixed(one.iteration_s * 1e3 for one in items)),
            Column(heading="samples/s", unit="", cells=fixed(one.samples_per_s for one in items)),
            *low_high(predictions),
            Column(
                heading="speed-up", unit="", cells=[f"{one.samples_per_s / first.samples_per_s:.2f}x" for one in items]
            ),
            Column(
                heading="exposed",
                unit="ms",
                cells=of_predictions([None if one is None else one.exposed_comm_s for one in predictions]),
            ),
            Column(
                heading="bound",
                unit="ms",
                cells=of_predictions([None if one is None else one.bound_s for one in predictions]),
            ),
        ]
        if any(error is not None for error in errors):
            cells = ["" if error is None else f"{error:+.1f}" for error in errors]
            columns.append(Column(heading="error", unit="%", cells=cells))
        labels = [one.label if isinstance(one, Prediction) else f"{one.label}, measured" for one in items]
        notes = [[] if one is None else [f"bottleneck: {one.bottleneck}"] for one in predictions]
        notes = [note + tied_note(tied) for note, tied in zip(notes, self.tied_with, strict=True)]
        print_grid(console, labels, columns, notes)
        print_basis(console, (one.basis for one in predictions if one is not None))
        return printed(console).rstrip("\n")


def _tied(one: Prediction | Measurement, other: Prediction | Measurement) -> bool:
    """Whether two predictions for one model cannot be told apart."""
    if not isinstance(one, Prediction) or not isinstance(other, Prediction):
        return False
    a, b = one.with_spread(), other.with_spread()
    if a.spread is None or b.spread is None or a.schedule.profile != b.schedule.profile:
        return False
    if one.setup is None or other.setup is None:
        return tied(a.spread, b.spread)
    share_network = one.setup.cluster.name == other.setup.cluster.name  # also where one of them is changed
    share_devices = one.setup.devices == other.setup.devices
    return tied(a.spread, b.spread, share_computation=share_devices, share_network=share_network)


def compare(*items: Prediction | Measurement) -> Comparison:
    """Return predictions and measurements, as many as you like, as the rows of a table.

    Raises `InputError` for anything else, and for none.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
    >>> schedules = [ss.build_schedule(s, model, cluster, batch_per_worker=32) for s in ("all_reduce", "stanza")]
    >>> print(ss.compare(*(ss.predict(schedule, cluster) for schedule in schedules)))
    strategy    iteration  samples/s  low high  speed-up  exposed  bound
                       ms               %    %                 ms     ms
    all_reduce        727        176  -13  +15     1.00x    576.9    671
        bottleneck: node-0 receive side (worker, 3 more like it), 92% busy
    stanza            186        515   -9  +12     2.93x     47.7    141
        bottleneck: node-0 V100 (conv_worker, 2 more like it), 76% busy
    network: as the topology states, 10 Gbps, taken to be within 15%; computation:
      fitted, -8% to +11% of 3 published timings
    """
    with placed("compare"):
        hint = "should be what predict or measure returns"
        if not items:
            raise InputError("there is nothing to compare", where="compare", hint=hint)
        for i, one in enumerate(items):
            if not isinstance(one, Prediction | Measurement):
                raise InputError(f"is a {type(one).__name__}", where=f"compare: argument {i + 1}", hint=hint)
        return Comparison(items=items)
