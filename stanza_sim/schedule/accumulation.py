"""Gradient accumulation, as a pass over a schedule that has been built: its steps, then one exchange and update.

An iteration of n steps consumes n times the samples. Each step is what the schedule does with the samples of a batch:
passes, and what moves activations, their gradients, labels and logsums, under micro-batch numbers of its own. What
works on a bundle (gradients that are pushed and reduced, updates, parameters that are pulled) happens once, behind the
last step. Factors of a gradient are those of all steps, and travel at the end. Parameters that are whole for a while
are gathered in every step, behind the last pass of the step before that reads them; gradients that are stay whole until
the last step.

So bytes of gradients and parameters stay, but for what is gathered; those of activations, labels and factors are n
times as many.
"""

from __future__ import annotations

from dataclasses import replace

from stanza_sim.schedule.ops import Collective, CollectiveKind, Compute, Keep, Op, Transfer, ValueKind, dependency
from stanza_sim.schedule.schedule import Schedule


def accumulated(schedule: Schedule, steps: int) -> Schedule:
    """Return `schedule` with the gradients of `steps` batches for every exchange and update.

    A data rank draws `steps` times as many samples, the first `batch_per_worker` of them for the first step. What comes
    before the first pass is done once, ahead of the first step. Raises `ScheduleError` for a dependency on no op.
    """
    if steps == 1:
        return schedule
    return _Steps(schedule, steps).schedule()


class _Steps:
    def __init__(self, schedule: Schedule, steps: int) -> None:
        self.s, self.steps, self.last = schedule, steps, steps - 1
        self.own, self.others = schedule.microbatches, len(schedule.microbatch_ids) - schedule.microbatches
        self.repeated = {op.name: op for op in schedule.ops if _of_samples(op) or self._gathers(op)}
        self.adding = {  # bundle -> the passes after which its gradients are there
            op.value.name: op.after
            for op in schedule.ops
            if isinstance(op, Collective) and op.kind is CollectiveKind.REDUCE_SCATTER
        }
        self.behind: set[str] = set()  # ops that depend on a pass, by name
        for op in schedule.ops:
            if op.name in self.repeated or any(dependency(name)[0] in self.behind for name in op.after):
                self.behind.add(op.name)

    def _gathers(self, op: Op) -> bool:
        """Whether `op` makes parameters whole for a while."""
        return (
            isinstance(op, Collective)
            and op.value.kind is ValueKind.PARAM
            and self.s.bundle(op.value.name).keep is Keep.SLICES
        )

    def schedule(self) -> Schedule:
        ops: list[Op] = []
        for step in range(self.steps):
            for op in self.s.ops:
                if op.name in self.repeated:
                    ops.append(self._in_step(op, step))
                elif step == (self.last if op.name in self.behind else 0):
                    ops.append(self._once(op))
        return replace(
            self.s,
            batch_per_worker=self.s.batch_per_worker * self.steps,
            microbatches=self.own * self.steps,
            ops=tuple(ops),
        )

    def _number(self, microbatch: int, step: int) -> int:
        """Own micro-batches of all steps come first, then those as which others' samples arrive."""
        if microbatch < self.own:
            return step * self.own + microbatch
        return self.own * self.steps + step * self.others + microbatch - self.own

    def _name(self, op: Op, step: int) -> str:
        """A name ends in the number of its micro-batch, as those of passes do where there are several."""
        landing = op.landing if isinstance(op, Transfer) else op.microbatch
        for number in (landing, op.microbatch):
            if op.name.endswith(suffix := f"/{number}"):
                return f"{op.name.removesuffix(suffix)}/{self._number(number, step)}"
        return f"{op.name}/{self._number(landing, step)}"

    def _names(self, names: tuple[str, ...], step: int) -> tuple[str, ...]:
        """What an op of `step` waits for; it cannot wait for what only the last step has before it."""
        found: list[str] = []
        for text in names:
            name, side = dependency(text)
            if name in self.repeated:
                found.append(self._name(self.repeated[name], step) + (f".{side}" if side else ""))
            elif step == self.last or name not in self.behind:
                found.append(text)
        return tuple(found)

    def _in_step(self, op: Op, step: int) -> Op:
        name, number = self._name(op, step), self._number(op.microbatch, step)
        after, before = self._names(op.after, step), self._names(op.after_previous, self.last)
        if isinstance(op, Collective) and self._gathers(op):
            if step and before:
                after, before = (*after, *self._names(self.adding[op.value.name], step - 1)), ()
            return replace(op, name=name, after=after, after_previous=before)
        if isinstance(op, Transfer) and op.arrives_as is not None:
            landing = self._number(op.arrives_as, step)
            return replace(op, name=name, microbatch=number, arrives_as=landing, after=after, after_previous=before)
        return replace(op, name=name, microbatch=number, after=after, after_previous=before)

    def _once(self, op: Op) -> Op:
        made = replace(
            op, after=self._names(op.after, self.last), after_previous=self._names(op.after_previous, self.last)
        )
        if isinstance(made, Transfer) and any(v.kind is ValueKind.FACTORS for v in made.values):
            return replace(made, nbytes=made.nbytes * self.steps)
        return made


def _of_samples(op: Op) -> bool:
    """Whether `op` works on the samples of a micro-batch: a pass, or what moves values of samples."""
    match op:
        case Compute():
            return not op.phase.on_bundle
        case Transfer():
            return not any(v.kind.on_bundle or v.kind is ValueKind.FACTORS for v in op.values)
        case Collective():
            return not op.value.kind.on_bundle
