"""One fit over all published timings, of constants that devices share as far as the rows allow.

The step of row i on device d at precision q is predicted as `sum_costs` says, with

    flops[kind] = exp(A + u[kind] + da[d, q]),   bytes[kind] = exp(B + v[kind] + db[d, q]),   launch = exp(C + dc[d])

where 3x3 convolutions in plain fp32 have a term of their own (Winograd's algorithm saves products there; tensor cores
compute all). Twenty rows of a device cannot tell twenty constants: u, v, da, db and dc are drawn to zero, so that kinds
and devices differ only where the rows say so. The sum of squares of log(predicted / published) / `NOISE`, its large
terms made softer, and of each number over its `SPREADS`, is least (Levenberg and Marquardt's method).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stanza_sim.base.op_kinds import PRODUCTS, OpKind
from stanza_sim.base.precision import HALF
from stanza_sim.cluster.device import DeviceSpec, Residuals
from stanza_sim.model.module_work import ModuleWork
from stanza_sim.simulate.cost_model import SGD_PASSES
from stanza_sim.simulate.fit.rows import Row, family_of
from stanza_sim.simulate.roofline import LOSS_KERNELS, LOSS_PASSES
from stanza_sim.simulate.sum_costs import CAST_NBYTES, LOSS_ITEMSIZE, Launch

Array = NDArray[np.float64]

NOISE = 0.1
"""How far rows are from any smooth model, relative: about what two sources of one figure differ."""
OVERLAP = 1.25
"""How much of the host's work hides behind the device's: 1 none, infinity all. Chosen by the families left out."""
BACKWARD_SHARE = 0.25
"""What a kernel of backward costs the host, over one of forward: autograd runs it from C++. Chosen likewise."""
FIRST = {"A": np.log(1.2), "B": np.log(2.0), "C": np.log(100e-6), "winograd": np.log(0.7)}
SPREADS = {"A": 1.0, "B": 1.0, "C": 0.5, "winograd": 0.4, "u": 0.15, "v": 0.15, "da": 0.2, "db": 0.2, "dc": 0.3}
LOOSE = {OpKind.GROUPED: 0.4, OpKind.DEPTHWISE: 0.4, OpKind.CONV: 0.3}
"""Spreads of `u` for products that libraries have no uniform kernels for: they may be far from the others."""
SOFT = 2.0
"""Residuals beyond so many `NOISE` count less than their squares."""


class Group(NamedTuple):
    """A device at a precision."""

    device: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a row's step needs, in the seconds that the data sheet says: by kind of op, and the host's kernels."""

    row: Row
    group: Group
    flops_s: Array
    bytes_s: Array
    forward_kernels: float
    backward_kernels: float
    launch_s: float
    update_s: float


def step_of(row: Row, group: Group, device: DeviceSpec, known: ModuleWork) -> Step:
    """Return what the step that `row` timed needs; as `sum_costs.module_step_s` adds it up."""
    peak, rate = device.precision(group.precision).peak_flops, device.memory_bandwidth_Bps
    half = group.precision in HALF
    width, n = (0.5 if half else 1.0), row.batch
    flops, nbytes = dict.fromkeys(OpKind, 0.0), dict.fromkeys(OpKind, 0.0)
    for one in known.work:
        for amount in one.passes:
            flops[one.kind] += amount.flops * n
            nbytes[one.kind] += width * (amount.sample_nbytes * n + amount.fixed_nbytes)
    nbytes[OpKind.ELEMENTWISE] += LOSS_PASSES * LOSS_ITEMSIZE * known.output_numel * n
    nbytes[OpKind.ELEMENTWISE] += 2 * CAST_NBYTES * known.numel if half else 0.0
    return Step(
        row=row,
        group=group,
        flops_s=np.array([flops[kind] / peak for kind in PRODUCTS]),
        bytes_s=np.array([nbytes[kind] / rate for kind in OpKind]),
        forward_kernels=sum(one.forward.kernels for one in known.work) + LOSS_KERNELS,
        backward_kernels=sum(one.backward_input.kernels + one.backward_weight.kernels for one in known.work),
        launch_s=device.launch_overhead_s,
        update_s=SGD_PASSES * 4 * known.numel / rate if row.with_update else 0.0,
    )


@dataclass(slots=True, kw_only=True)
class Problem:
    """The numbers that are sought, and what a vector of them predicts. `groups` and `devices` are those of all rows."""

    groups: Sequence[Group]
    overlap: float = OVERLAP
    backward_share: float = BACKWARD_SHARE
    spreads: Mapping[str, float] = field(default_factory=lambda: SPREADS)
    devices: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.devices = list(dict.fromkeys(group.device for group in self.groups))

    @property
    def _sizes(self) -> dict[str, int]:
        groups, devices = len(self.groups), len(self.devices)
        return {
            "A": 1, "B": 1, "C": 1, "winograd": 1, "u": len(PRODUCTS), "v": len(OpKind),
            "da": groups, "db": groups, "dc": devices,
        }  # fmt: skip

    def first(self) -> Array:
        """What is known before any row."""
        return np.concatenate([np.full(n, FIRST.get(name, 0.0)) for name, n in self._sizes.items()])

    def spread(self) -> Array:
        """How far each number may be from what is known before."""
        each = {name: np.full(n, self.spreads[name]) for name, n in self._sizes.items()}
        each["u"] = np.array([LOOSE.get(kind, self.spreads["u"]) for kind in PRODUCTS])
        return np.concatenate(list(each.values()))

    def parts(self, x: Array) -> dict[str, Array]:
        """The numbers by name."""
        ends = np.cumsum(list(self._sizes.values()))
        return dict(zip(self._sizes, np.split(x, ends[:-1]), strict=True))

    def flops(self, x: Array, group: Group) -> Array:
        """The constants of products, by kind, of a group; of one without rows the shared ones."""
        p = self.parts(x)
        known = p["da"][self.groups.index(group)] if group in self.groups else 0.0
        winograd = np.array([kind is OpKind.CONV_3X3 and group.precision == "fp32" for kind in PRODUCTS])
        constants: Array = np.exp(p["A"] + p["u"] + p["winograd"] * winograd + known)
        return constants

    def nbytes(self, x: Array, group: Group) -> Array:
        """The constants of memory, by kind, of a group; of one without rows the shared ones."""
        p = self.parts(x)
        known = p["db"][self.groups.index(group)] if group in self.groups else 0.0
        constants: Array = np.exp(p["B"] + p["v"] + known)
        return constants

    def launch_s(self, x: Array, device: str) -> float:
        """Seconds of the host for a kernel of forward."""
        p = self.parts(x)
        return float(np.exp(p["C"][0] + (p["dc"][self.devices.index(device)] if device in self.devices else 0.0)))

    def predict(self, x: Array, steps: Sequence[Step]) -> Array:
        """Seconds of each step."""
        return self._predict(x, _Table.of(steps, self))

    def _predict(self, x: Array, table: _Table) -> Array:
        return self._with_slopes(x, table)[0]

    def _with_slopes(self, x: Array, table: _Table) -> tuple[Array, Array]:
        """Seconds of each step, and how their logarithms change with each number."""
        each_flops = table.flops_s * np.stack([self.flops(x, group) for group in self.groups])[table.group]
        each_bytes = table.bytes_s * np.stack([self.nbytes(x, group) for group in self.groups])[table.group]
        eager = np.array([self.launch_s(x, group.device) for group in self.groups])[table.group]
        device_s = each_flops.sum(axis=1) + each_bytes.sum(axis=1)
        launched = table.graphs_s > 0
        host_s = np.where(launched, table.graphs_s, table.kernels * eager)
        p = self.overlap
        passes_s = (device_s**p + host_s**p) ** (1 / p)
        step_s = passes_s + table.update_s
        by_device = ((device_s / passes_s) ** (p - 1) / step_s)[:, None]
        by_host = np.where(launched, 0.0, (host_s / passes_s) ** (p - 1) * host_s / step_s)[:, None]
        u, v = by_device * each_flops, by_device * each_bytes
        a, b = u.sum(axis=1, keepdims=True), v.sum(axis=1, keepdims=True)
        group = np.eye(len(self.groups))[table.group]
        device = np.array([[g.device == name for name in self.devices] for g in self.groups], float)[table.group]
        plain = np.array([[g.precision == "fp32"] for g in self.groups], float)[table.group]
        winograd = plain * u[:, [PRODUCTS.index(OpKind.CONV_3X3)]]
        slopes = [a, b, by_host, winograd, u, v, group * a, group * b, device * by_host]
        return step_s, np.concatenate(slopes, axis=1)

    def solve(self, steps: Sequence[Step], start: Array | None = None) -> Array:
        """Return the numbers at the least sum of squares for the rows of `steps`."""
        first, spread = self.first(), self.spread()
        measured = np.log([step.row.step_s for step in steps])
        table = _Table.of(steps, self)

        def residuals(x: Array) -> tuple[Array, Array]:
            step_s, slopes = self._with_slopes(x, table)
            r = np.concatenate([(np.log(step_s) - measured) / NOISE, (x - first) / spread])
            return r, np.concatenate([slopes / NOISE, np.diag(1 / spread)])

        def softened(r: Array) -> Array:
            weights = np.ones_like(r)
            rows = r[: len(steps)]
            weights[: len(steps)] = (1 + (rows / SOFT) ** 2) ** -0.5
            return weights

        def cost(r: Array) -> float:
            rows, rest = r[: len(steps)], r[len(steps) :]
            return float((2 * SOFT**2 * ((1 + (rows / SOFT) ** 2) ** 0.5 - 1)).sum() + (rest**2).sum())

        x = first if start is None else start.copy()
        (r, jacobian), damping = residuals(x), 1e-3
        for _ in range(100):
            weights = softened(r)
            gradient = jacobian.T @ (weights * r)
            curvature = jacobian.T @ (weights[:, None] * jacobian)
            while True:
                change = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), -gradient)
                moved, slopes = residuals(x + change)
                if cost(moved) <= cost(r) or damping > 1e6:
                    break
                damping *= 10
            x, r, jacobian, damping = x + change, moved, slopes, max(damping / 10, 1e-9)
            if np.abs(change).max() < 1e-7:
                break
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Steps as arrays, a row each. `graphs_s` is the host's time of those launched by graphs, 0 of the others."""

    group: NDArray[np.int64]
    flops_s: Array
    bytes_s: Array
    kernels: Array
    graphs_s: Array
    update_s: Array

    @classmethod
    def of(cls, steps: Sequence[Step], problem: Problem) -> _Table:
        share = problem.backward_share
        graphs = [s.launch_s * (s.forward_kernels + s.backward_kernels) for s in steps]
        return cls(
            group=np.array([problem.groups.index(s.group) for s in steps]),
            flops_s=np.stack([s.flops_s for s in steps]),
            bytes_s=np.stack([s.bytes_s for s in steps]),
            kernels=np.array([s.forward_kernels + share * s.backward_kernels for s in steps]),
            graphs_s=np.array([g * (s.row.launch is Launch.GRAPHS) for g, s in zip(graphs, steps, strict=True)]),
            update_s=np.array([s.update_s for s in steps]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Predictions, over what was published, of each step in fits without its model, and without its family."""

    steps: Sequence[Step]
    by_model: Array
    by_family: Array

    def residuals(self, group: Group) -> Residuals | None:
        """The errors in samples/s of a group's rows, each model once; None for a group without fitted rows."""
        ours = [i for i, step in enumerate(self.steps) if step.group == group]
        if not ours:
            return None
        names = [self.steps[i].row.model for i in ours]
        model, family = (
            np.array([np.median([e for e, n in zip(errors, names, strict=True) if n == name]) for name in set(names)])
            for errors in (np.abs(1 / ratio[ours] - 1) for ratio in (self.by_model, self.by_family))
        )
        return Residuals(
            models=len(model),
            median=_rounded(np.median(model)),
            p90=_rounded(np.quantile(model, 0.9)),
            family_median=_rounded(np.median(family)),
            family_p90=_rounded(np.quantile(family, 0.9)),
        )


def _rounded(value: float | np.floating) -> float:
    return float(f"{value:.3g}")


def left_out(problem: Problem, steps: Sequence[Step], x: Array) -> LeftOut:
    """Fit again without each model, on any device, and without each family; start from `x`."""
    measured = np.array([step.row.step_s for step in steps])
    ratios = []
    for names in ([step.row.model for step in steps], [family_of(step.row.model) for step in steps]):
        ratio = np.empty(len(steps))
        for name in dict.fromkeys(names):
            out = [i for i, other in enumerate(names) if other == name]
            kept = [step for step, other in zip(steps, names, strict=True) if other != name]
            ratio[out] = problem.predict(problem.solve(kept, x), [steps[i] for i in out]) / measured[out]
        ratios.append(ratio)
    return LeftOut(steps=steps, by_model=ratios[0], by_family=ratios[1])


def groups_of(steps: Iterable[Step]) -> tuple[Group, ...]:
    """The devices and precisions of steps, each once."""
    return tuple(dict.fromkeys(step.group for step in steps))
