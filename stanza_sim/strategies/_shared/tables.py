"""Tables with sparse gradients (`nn.Embedding(sparse=True)`): exchanged as the rows that were looked up.

A strategy builds its schedule as if such a table were no parameter. Then, whatever the strategy, every worker sends the
numbers of its rows and their gradients to all other workers, each of which has the whole table, adds the gradients up
and updates it: for B samples of n lookups in a table of width w, B*n*(w + 1) elements to each. It is what DDP and
Horovod do with sparse gradients, which they gather. Servers have no part of the table: momentum and weight decay change
all of its rows, so that workers would have to pull all of it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, count

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule.factors import factors_of
from stanza_sim.schedule.ops import Bundle, Compute, Op, Pattern, Phase, Transfer, Value, ValueKind
from stanza_sim.schedule.schedule import Schedule


def without_tables(model: ModelProfile) -> ModelProfile:
    """Return `model` without the parameters of its sparse tables. Raises `InputError` for one that is not by itself."""
    return replace(model, blocks=tuple(replace(b, tensors=()) if _is_table(model, b) else b for b in model.blocks))


def _is_table(model: ModelProfile, block: Block) -> bool:
    tables = [t for t in block.tensors if t.lookups]
    if not tables:
        return False
    if factors_of(model, block.name) is None:
        name = tables[0].name
        why = f"block {block.name} has other parameters too, or is tied to another block"
        raise InputError(
            f"the sparse gradient of {name} cannot be exchanged as rows: {why}",
            where=f"model {model.name}",
            hint="set sparse=False, or let the table be looked up by itself",
        )
    return True


def with_tables(schedule: Schedule, model: ModelProfile) -> Schedule:
    """Return `schedule`, built without the sparse tables of `model`, with the exchange of their rows and updates."""
    for place, block in enumerate(model.blocks):
        if any(t.lookups for t in block.tensors):
            schedule = _with_table(schedule, model, block, place)
    return schedule


def _with_table(schedule: Schedule, model: ModelProfile, block: Block, place: int) -> Schedule:
    passes = [op for op in schedule.ops if isinstance(op, Compute) and op.target == block.name]
    groups = {op.ranks for op in passes}
    if len(groups) != 1 or schedule.group(min(groups)) != schedule.data_ranks:
        raise InputError(
            f"the sparse gradient of {block.tensors[0].name} is exchanged among the workers that draw samples",
            where=f"{schedule.name}",
            hint="cut the model behind the table, so that it is in the CONV part",
        )
    (workers,) = groups
    factors = factors_of(model, block.name)
    if factors is None:
        raise RuntimeError(f"{block.name} is no table")
    taken = {b.name for b in schedule.bundles}
    name = next(n for n in chain([block.name], (f"{block.name}-{i}" for i in count(2))) if n not in taken)
    bundle = Bundle(name=name, tensors=(block.tensors[0].name,), numel=block.numel, owners=workers)
    backward = [op.name for op in passes if op.phase in (Phase.BACKWARD, Phase.BACKWARD_INPUT)]
    moved = Transfer(
        name=f"rows.{name}",
        src=workers,
        dst=workers,
        pattern=Pattern.ALL_PAIRS,
        values=(Value(ValueKind.FACTORS, name),),
        nbytes=factors.numel(schedule.batch_per_worker) * schedule.itemsize,
        channel="rows",
        priority=place,
        after=tuple(backward),
    )
    summed = Compute(
        name=f"rec.{name}", phase=Phase.RECONSTRUCT, target=name, ranks=workers, lane="rows", after=(moved.name,)
    )
    update = Compute(
        name=f"upd.{name}", phase=Phase.UPDATE, target=name, ranks=workers, lane="rows", after=(summed.name,)
    )
    ops: list[Op] = []
    for op in schedule.ops:
        if isinstance(op, Compute) and op.target == block.name:
            if op.phase is Phase.FORWARD:
                op = replace(op, after_previous=(*op.after_previous, update.name))
            elif op.phase is Phase.BACKWARD:
                op = replace(op, phase=Phase.BACKWARD_INPUT)
        ops.append(op)
        if op.name == backward[-1]:
            ops += [moved, summed, update]
    return replace(schedule, bundles=(*schedule.bundles, bundle), ops=tuple(ops))
