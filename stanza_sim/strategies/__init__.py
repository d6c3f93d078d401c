"""Strategies: how a model is distributed. Each file in this folder that has `Settings`, `build` and `space` is one.

A new strategy is a new file; it needs no entry anywhere. What several share is in `_shared`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from typing import Protocol, cast

from pydantic import BaseModel

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule, Wire
from stanza_sim.schedule.accumulation import accumulated
from stanza_sim.schedule.clipping import with_clipping
from stanza_sim.schedule.wires import Wires, computed_in, with_wires
from stanza_sim.strategies._shared.cutting import PassTimes
from stanza_sim.strategies._shared.tables import with_tables, without_tables


class Strategy(Protocol):
    """What a strategy's file offers: its settings and a function that builds the schedule from them."""

    Settings: type[BaseModel]

    def build(self, model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: BaseModel) -> Schedule:
        """The schedule of `model` on `world_size` ranks; raises `InputError` for settings that do not fit.

        It may take more keywords, which have defaults: the `cluster` whose places a setting `on` names, the `precision`
        at which its devices compute, and `accumulation`, the steps that will be made of what it returns.
        """

    def space(
        self, model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int
    ) -> Iterator[BaseModel]:
        """Every setting worth trying there, the default first; `local_size` is the number of ranks on each host."""


def names() -> list[str]:
    """Names of all strategies, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Strategy:
    """The strategy called `name`; raises `InputError` with the names that there are."""
    if name not in names():
        raise InputError(f"there is no strategy {name!r}", hint=f"the strategies are: {', '.join(names())}")
    return cast(Strategy, importlib.import_module(f"{__name__}.{name}"))


def build(
    name: str,
    model: ModelProfile,
    *,
    world_size: int,
    batch_per_worker: int,
    settings: BaseModel,
    precision: Precision = Precision.FP32,
    gradients: Wire = Wire.NATIVE,
    cluster: Cluster | None = None,
    accumulation: int = 1,
    moments: int = 1,
    clipped: bool = False,
    times: PassTimes | None = None,
) -> Schedule:
    """The schedule of the strategy called `name`, with the types in which values travel.

    `cluster` has the places that a setting `on` names, and `times` say how long its devices take (`balance: time`).
    With `accumulation` n an iteration is n steps of `batch_per_worker` samples each, and one exchange of their
    gradients (`schedule.accumulation`). The optimiser keeps `moments` vectors, and where gradients are `clipped` it
    waits for the norm of all of them (`schedule.clipping`).

    Activations and their gradients travel as the `precision` computes them, unless a setting `activations` says
    otherwise; gradients of parameters as `gradients` says, and those of sparse tables as the rows that were looked up.
    Raises `InputError` as the strategy does.
    """
    dense = without_tables(model)
    strategy = cast(Callable[..., Schedule], get(name).build)
    offered = {"cluster": cluster, "precision": precision, "accumulation": accumulation, "times": times}
    wanted = {key: value for key, value in offered.items() if key in signature(strategy).parameters}
    made = strategy(dense, world_size=world_size, batch_per_worker=batch_per_worker, settings=settings, **wanted)
    stated = getattr(settings, "activations", None)
    activations = Wire.NATIVE if stated == "fp32" else computed_in(precision)
    wired = with_wires(made, dense, Wires(activations=activations, gradients=gradients))
    made = replace(with_tables(accumulated(wired, accumulation), model), moments=moments)
    return with_clipping(made) if clipped else made
