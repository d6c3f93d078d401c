"""The fitted part of a device file: launch costs, constants by kind of op with residuals, and factors of models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import PRODUCTS, OpKind
from stanza_sim.cluster.device import DeviceSpec, ModelFactor, PublishedTiming
from stanza_sim.model import zoo
from stanza_sim.model.module_work import ModuleWork
from stanza_sim.simulate.fit.rows import PRECISIONS, Row, works_of
from stanza_sim.simulate.fit.solve import Array, Group, LeftOut, Problem, Step, groups_of, left_out, step_of

MARKER = "# Written by `python -m stanza_sim.simulate.fit`: everything from here on is replaced."


def group_of(row: Row, devices: Iterable[DeviceSpec]) -> tuple[DeviceSpec, Group] | None:
    """Return the device whose file takes rows of this GPU, and the precision; None if there is none."""
    for device in devices:
        if device.published and any(name in row.gpu for name in device.published):
            return device, Group(device.name, PRECISIONS.get(row.precision, device.published_fp32))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The fit of all rows: the numbers, and what they make of every step, `others` compared but not fitted."""

    problem: Problem
    x: Array
    steps: Sequence[Step]
    others: Sequence[Step]
    left_out: LeftOut

    def factors(self, group: Group) -> dict[str, ModelFactor]:
        """What the sum is multiplied by for each shipped model that a group has rows of: their geometric mean.

        The optimiser's part of a step is left as it is.
        """
        found: dict[str, ModelFactor] = {}
        everything = [*self.steps, *self.others]
        for name in dict.fromkeys(step.row.model for step in everything if step.group == group):
            if name not in zoo.SOURCES:
                continue
            ours = [step for step in everything if step.group == group and step.row.model == name]
            fitted = [step for step in ours if step in self.steps] or ours
            value = float(f"{exp(sum(self._needed(step) for step in fitted) / len(fitted)):.4g}")
            timings = tuple(
                PublishedTiming(
                    gpu=step.row.gpu,
                    batch=step.row.batch,
                    batch_assumed=step.row.batch_assumed,
                    images_per_s=step.row.samples_per_s,
                    kind=step.row.kind,
                    source=step.row.source,
                    fitted=step in fitted,
                    ratio=round((self._passes_s(step) * value + step.update_s) / step.row.step_s, 3),
                )
                for step in ours
            )
            found[name] = ModelFactor(value=value, timings=timings)
        return found

    def _passes_s(self, step: Step) -> float:
        return float(self.problem.predict(self.x, [step])[0]) - step.update_s

    def _needed(self, step: Step) -> float:
        return log(max(step.row.step_s - step.update_s, 1e-9) / self._passes_s(step))


def fit_all(rows: tuple[Row, ...], devices: Sequence[DeviceSpec], works: dict[str, ModuleWork] | None = None) -> Fitted:
    """Fit all rows of the devices.

    Rows of an unstated precision, and rows whose batch is assumed where a device has others, are compared, not fitted.
    """
    works = works or works_of(rows)
    steps: list[Step] = []
    others: list[Step] = []
    for row in rows:
        if (found := group_of(row, devices)) is None:
            continue
        device, group = found
        step = step_of(row, group, device, works[row.key])
        (others if row.precision not in PRECISIONS or row.batch_assumed else steps).append(step)
    measured = {step.group for step in steps}
    alone = [step for step in others if step.group not in measured and step.row.precision in PRECISIONS]
    steps, others = [*steps, *alone], [step for step in others if step not in alone]
    problem = Problem(groups=groups_of(steps))
    x = problem.solve(steps)
    return Fitted(problem=problem, x=x, steps=steps, others=others, left_out=left_out(problem, steps, x))


def fitted_text(fitted: Fitted, device: DeviceSpec) -> str:
    """Return the fitted part of a device file."""
    problem, x = fitted.problem, fitted.x
    forward_us = problem.launch_s(x, device.name) * 1e6
    backward_us = forward_us * problem.backward_share
    launch = f"{{forward: {forward_us:.4g}us, backward: {backward_us:.4g}us, overlap: {problem.overlap:g}}}"
    eager = sum(s.group.device == device.name and s.row.launch.value == "eager" for s in fitted.steps)
    lines = [
        MARKER,
        "# What a kernel costs the host of an eager framework (see stanza_sim/simulate/sum_costs.py);"
        + (f" {eager} timings of this GPU tell." if eager else " as on other GPUs."),
        f"launch: {launch}",
        "# flops, bytes: the time of a FLOP times the peak, and of a byte times the memory bandwidth, by kind of op.",
        "# residuals: of models left out of the fit, in samples/s; ratio: predicted over published time of a step.",
        "constants:",
    ]
    for precision in device.precisions:
        group = Group(device.name, precision)
        if precision == "bf16" and group not in problem.groups:  # the same tensor cores, and as many bytes
            group = Group(device.name, "fp16")
        flops = dict(zip(PRODUCTS, problem.flops(x, group), strict=True))
        nbytes = dict(zip(OpKind, problem.nbytes(x, group), strict=True))
        ours = [step for step in fitted.steps if step.group == group]
        measured = group.precision == precision
        lines += [f"  {precision}:", f"    source: {json.dumps(_source(fitted, ours, device, group, precision))}"]
        if measured and (known := fitted.left_out.residuals(group)) is not None:
            lines += [
                f"    residuals: {{models: {known.models}, median: {known.median:g}, p90: {known.p90:g},"
                f" family_median: {known.family_median:g}, family_p90: {known.family_p90:g}}}"
            ]
        lines += [f"    flops: {_mapping(flops)}", f"    bytes: {_mapping(nbytes)}"]
        factors = fitted.factors(group) if measured else {}
        lines += ["    models:"] if factors else []
        for name, factor in factors.items():
            lines += [f"      {name}:", f"        factor: {factor.value:.4g}", "        timings:"]
            for timing in factor.timings:
                lines += _timing(timing)
    return "\n".join(lines) + "\n"


def _source(fitted: Fitted, ours: Sequence[Step], device: DeviceSpec, group: Group, precision: str) -> str:
    everything = f"one fit over {len(fitted.steps)} timings of {len(fitted.problem.devices)} GPUs"
    if not ours:
        return f"as on other GPUs ({everything}); {device.name} was not measured at {precision}"
    if group.precision != precision:
        return f"as at {group.precision}; {device.name} was not measured at {precision}"
    models = len({step.row.model for step in ours})
    timings = f"{len(ours)} timing{'s' * (len(ours) != 1)} of {models} model{'s' * (models != 1)}"
    return f"{everything}; {timings} at this precision"


def _mapping(constants: dict[OpKind, np.float64]) -> str:
    items = [f"{kind.value}: {value:.4g}" for kind, value in constants.items()]
    return "{" + ", ".join(items) + "}"


def _timing(row: PublishedTiming) -> list[str]:
    assumed = ", batch_assumed: true" if row.batch_assumed else ""
    left = "" if row.fitted else ", fitted: false"
    return [
        f"          - {{gpu: {json.dumps(row.gpu)}, kind: {json.dumps(row.kind)},",
        f"             batch: {row.batch}{assumed}, images_per_s: {row.images_per_s:g},",
        f"             ratio: {row.ratio:g}{left},",
        f"             source: {json.dumps(row.source)}}}",
    ]


def refit(text: str, device: DeviceSpec, fitted: Fitted) -> str:
    """Return a device file's `text` with a fresh fitted part below its marker line."""
    stated, marker, _ = text.partition(MARKER)
    if not marker:
        raise InputError("has no line that says where the fitted part begins", where=device.name, hint=MARKER)
    return stated + fitted_text(fitted, device)
