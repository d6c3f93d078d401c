"""Which samples of the global batch each rank computes in each block: pure bookkeeping, shared by ranks and reference.

A sample is named by its position in the global batch: `schedule.data_ranks` in rank order, `batch_per_worker` each.
Where activations travel, the receiving rank computes the samples of all its sources, in rank order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stanza_sim.base.errors import ScheduleError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Compute, Op, Phase, Schedule, Transfer, Value, ValueKind, print_op

Place = tuple[int, str, int]
"""(rank, block, micro-batch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value at a rank comes from: computed there (no `transfer`), or brought by `transfer` from `ranks`."""

    transfer: str | None = None
    ranks: tuple[int, ...] = ()


HERE = Origin()


@dataclass(slots=True, kw_only=True)
class Samples:
    """What `follow` found. Positions are in the order in which the rank holds them.

    `rows[rank, block, m]`: positions whose forward pass through `block` the rank computes in micro-batch m.
    `inputs` says where that block's input comes from, `gradients` where the gradient of its output does.
    `labels[rank, m]` is where a rank that computes the loss finds the labels, `label_rows` their positions.
    """

    rows: dict[Place, tuple[int, ...]] = field(default_factory=dict)
    inputs: dict[Place, Origin] = field(default_factory=dict)
    gradients: dict[Place, Origin] = field(default_factory=dict)
    labels: dict[tuple[int, int], Origin] = field(default_factory=dict)
    label_rows: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)

    def of_block(self, block: str) -> list[tuple[int, ...]]:
        """The sub-batches in which `block` is computed, in order of their first sample.

        Together they are the global batch; batch norm has the statistics of each by itself. Ranks that each compute a
        slice of a block's features compute the same sub-batches.
        """
        return sorted({rows for (_, name, _), rows in self.rows.items() if name == block})


def own_rows(schedule: Schedule, rank: int, microbatch: int) -> tuple[int, ...]:
    """Positions of the samples that `rank` draws itself for one micro-batch; empty if it draws none."""
    if rank not in schedule.data_ranks:
        return ()
    size = schedule.batch_per_worker // schedule.microbatches
    first = schedule.data_ranks.index(rank) * schedule.batch_per_worker + microbatch * size
    return tuple(range(first, first + size))


def follow(schedule: Schedule, model: ModelProfile) -> Samples:
    """Follow the samples through `schedule`, which must be legal.

    Raises `ScheduleError` for what is legal to print but not synchronous SGD on the global batch: a block that does
    not compute every sample exactly once, or activations of one message that are not one worker's.
    """
    return _Follower(schedule, model).run()


class _Follower:
    def __init__(self, schedule: Schedule, model: ModelProfile) -> None:
        self.s, self.model = schedule, model
        self.names = [b.name for b in model.blocks]
        self.found = Samples()
        self.held: dict[Place, tuple[Origin, tuple[int, ...]]] = {}
        self.size = schedule.batch_per_worker // schedule.microbatches

    def run(self) -> Samples:
        for r in self.s.data_ranks:
            for m in range(self.s.microbatches):
                self.found.labels[r, m] = HERE
                self.found.label_rows[r, m] = own_rows(self.s, r, m)
        for op in self.s.ops:
            match op:
                case Compute():
                    for r in self.s.group(op.ranks):
                        self._compute(op, r)
                case Transfer():
                    self._transfer(op)
                case _:
                    pass
        self._complete()
        return self.found

    def _fail(self, op: Op, message: str) -> ScheduleError:
        return ScheduleError(f"{message}\n  in: {print_op(op)}", where=f"schedule {self.s.name}")

    def _compute(self, op: Compute, r: int) -> None:
        m = op.microbatch
        match op.phase:
            case Phase.FORWARD:
                k = self.names.index(op.target)
                origin, rows = self.held[r, self.names[k - 1], m] if k else (HERE, own_rows(self.s, r, m))
                place = r, op.target, m
                if place in self.found.rows:
                    raise self._fail(op, f"rank {r} computes this forward pass twice")
                self.found.rows[place], self.found.inputs[place] = rows, origin
                self.held[place] = HERE, rows
            case Phase.LOSS:
                self.found.gradients[r, op.target, m] = HERE
                if not set(self.found.rows[r, op.target, m]) <= set(self.found.label_rows.get((r, m), ())):
                    raise self._fail(op, f"rank {r} lacks the labels of some of its samples")
            case Phase.BACKWARD | Phase.BACKWARD_INPUT:
                k = self.names.index(op.target)
                if k:
                    self.found.gradients[r, self.names[k - 1], m] = HERE
            case _:
                pass

    def _transfer(self, op: Transfer) -> None:
        for value in op.values:
            if value.kind is ValueKind.ACTGRAD:
                self._gradients(op, value)
            elif value.kind in (ValueKind.ACT, ValueKind.LABELS):
                self._forward(op, value)

    def _forward(self, op: Transfer, value: Value) -> None:
        m, landing = op.microbatch, op.landing
        before = dict(self.held)
        label_rows = dict(self.found.label_rows)
        for d in self.s.group(op.dst):
            sources = tuple(self.s.sources(op, d))
            if not sources:
                continue
            gathered: list[int] = []
            for s in sources:
                rows = before[s, value.name, m][1] if value.kind is ValueKind.ACT else label_rows.get((s, m), ())
                if s != d and len(rows) != self.size:
                    raise self._fail(op, f"rank {s} would send {value} of {len(rows)} samples, not of {self.size}")
                gathered += rows
            origin = Origin(transfer=op.name, ranks=sources)
            if value.kind is ValueKind.ACT:
                self.held[d, value.name, landing] = origin, tuple(gathered)
            else:
                self.found.labels[d, landing], self.found.label_rows[d, landing] = origin, tuple(gathered)

    def _gradients(self, op: Transfer, value: Value) -> None:
        m, landing = op.microbatch, op.landing
        consumer = self.names[self.names.index(value.name) + 1]
        for d in self.s.group(op.dst):
            for s in self.s.sources(op, d):
                wanted = self.found.rows.get((d, value.name, landing), ())
                if not set(wanted) <= set(self.found.rows.get((s, consumer, m), ())):
                    raise self._fail(op, f"rank {s} does not have the gradients of all samples of rank {d}")
                if s != d and len(wanted) != self.size:
                    raise self._fail(op, f"rank {d} awaits {value} of {len(wanted)} samples, not of {self.size}")
                sources = tuple(self.s.sources(op, d)) if op.slices else (s,)
                self.found.gradients[d, value.name, landing] = Origin(transfer=op.name, ranks=sources)

    def _complete(self) -> None:
        everything = list(range(self.s.global_batch))
        for name in self.names:
            sub_batches = [rows for (_, block, _), rows in self.found.rows.items() if block == name]
            if self.s.cut(name) is not None:  # each rank has its slice of all samples
                sub_batches = self.found.of_block(name)
            got = sorted(p for rows in sub_batches for p in rows)
            if got != everything:
                raise ScheduleError(
                    f"block {name} computes {len(set(got))} of {len(everything)} samples"
                    + (", some of them twice" if len(set(got)) < len(got) else ""),
                    where=f"schedule {self.s.name}",
                    hint="synchronous SGD computes every sample of the global batch once in every block",
                )
