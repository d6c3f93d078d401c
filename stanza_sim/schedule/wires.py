"""The types in which a schedule's values travel, as a pass over a schedule that has been built: sizes follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stanza_sim.base.precision import Precision
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.legality import value_bytes
from stanza_sim.schedule.ops import Collective, Op, Transfer, ValueKind, Wire
from stanza_sim.schedule.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """The types in which activations with their gradients, and gradients of parameters, travel unless an op says so."""

    activations: Wire = Wire.NATIVE
    gradients: Wire = Wire.NATIVE


def with_labels(schedule: Schedule, before: ModelProfile, after: ModelProfile) -> Schedule:
    """Return `schedule`, built for `before`, with the sizes of labels that `after` has: it differs in these only."""
    itemsize = schedule.itemsize
    more = after.labels.nbytes(itemsize) - before.labels.nbytes(itemsize)
    more *= schedule.batch_per_worker // schedule.microbatches
    if not more:
        return schedule

    def resized(op: Op) -> Op:
        if not isinstance(op, Transfer):
            return op
        carried = sum(v.kind is ValueKind.LABELS for v in op.values)
        return replace(op, nbytes=op.nbytes + carried * more) if carried else op

    return replace(schedule, ops=tuple(map(resized, schedule.ops)))


def computed_in(precision: Precision) -> Wire:
    """The type of the activations that blocks put out at a precision: under autocast one of 2 bytes."""
    match precision:
        case Precision.BF16:
            return Wire.BF16
        case Precision.FP16:
            return Wire.FP16
        case Precision.FP32 | Precision.TF32:
            return Wire.NATIVE


def with_wires(schedule: Schedule, model: ModelProfile, wires: Wires) -> Schedule:
    """Return `schedule` with the types of `wires` where its ops state none, and with the sizes that follow.

    Parameters, labels and logsums travel as they are.
    """
    if wires == Wires():
        return schedule
    return replace(schedule, ops=tuple(_with_wire(schedule, model, op, wires) for op in schedule.ops))


def _with_wire(schedule: Schedule, model: ModelProfile, op: Op, wires: Wires) -> Op:
    if not isinstance(op, Transfer | Collective) or op.wire is not Wire.NATIVE:
        return op
    kinds = [v.kind for v in (op.values if isinstance(op, Transfer) else (op.value,))]
    if any(kind.is_activation for kind in kinds):
        wire = wires.activations
    elif any(kind.is_gradient for kind in kinds):
        wire = wires.gradients
    else:
        return op
    if isinstance(op, Collective):
        return replace(op, wire=wire, nbytes=op.nbytes // schedule.itemsize * wire.itemsize(schedule.itemsize))
    labels = sum(
        value_bytes(schedule, model, v, schedule.microbatches) for v in op.values if v.kind is ValueKind.LABELS
    )
    numel = (op.nbytes - labels) // schedule.itemsize
    return replace(op, wire=wire, nbytes=labels + numel * wire.itemsize(schedule.itemsize))
