"""Writes the two forms of a schedule: the printed one, for people and logs, and JSON, for programs.

The forms are described where they are read back, in `schedule.text` and `schedule.json_form`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Protocol

from stanza_sim.schedule.ops import (
    CHUNK_BYTES,
    Bundle,
    Carrier,
    Collective,
    Compute,
    Cut,
    Group,
    Keep,
    Op,
    Transfer,
    Wire,
)

KINDS: dict[str, type[Compute] | type[Transfer] | type[Collective]] = {
    "compute": Compute,
    "transfer": Transfer,
    "collective": Collective,
}

_RARE: dict[str, object] = {"start": 0, "credit": 0, "slices": "", "replicas": 1, "keep": Keep.ALL}
"""Fields that have these values in most schedules, and are then left out."""


class Facts(Protocol):
    """What a schedule is made of; `schedule.Schedule` has these."""

    @property
    def name(self) -> str:
        """Of the schedule."""
        ...

    @property
    def model(self) -> str:
        """Name of the model that it is for."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def batch_per_worker(self) -> int:
        """Samples of one data rank in an iteration."""
        ...

    @property
    def microbatches(self) -> int:
        """Equal parts of such a batch."""
        ...

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        ...

    @property
    def moments(self) -> int:
        """Vectors of optimiser state for each parameter."""
        ...

    @property
    def groups(self) -> tuple[Group, ...]:
        """In the order in which they are printed."""
        ...

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """How blocks are cut over groups."""
        ...

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """Of the model's tensors."""
        ...

    @property
    def ops(self) -> tuple[Op, ...]:
        """In program order."""
        ...


def print_op(op: Op) -> str:
    """One line that says everything about `op`; `parse_op` reads it back to an equal op."""
    match op:
        case Compute():
            words = [op.phase, op.target, f"@{op.ranks}"]
            options = {"microbatch": op.microbatch or None, "lane": None if op.lane == "main" else op.lane}
        case Transfer():
            words = ["transfer", "+".join(map(str, op.values)), f"{op.src}->{op.dst}", op.pattern]
            options = {
                "nbytes": op.nbytes,
                "channel": None if op.channel == "p2p" else op.channel,
                "priority": op.priority or None,
                "credit": op.credit or None,
                "microbatch": op.microbatch or None,
                "arrives_as": op.arrives_as,
                "wire": None if op.wire is Wire.NATIVE else op.wire,
                "pairs": ",".join(f"{a}>{b}" for a, b in op.pairs) or None,
                "slices": op.slices or None,
            }
        case Collective():
            words = [op.kind, str(op.value), f"@{op.ranks}"]
            options = {
                "nbytes": op.nbytes,
                "algorithm": op.algorithm,
                "by": None if op.by is Carrier.BACKEND else op.by,
                "local": op.local or None,
                "chunk": None if op.chunk == CHUNK_BYTES else op.chunk,
                "microbatch": op.microbatch or None,
                "root": op.root,
                "wire": None if op.wire is Wire.NATIVE else op.wire,
            }
    options["after"] = ",".join(op.after) or None
    options["after_previous"] = ",".join(op.after_previous) or None
    return " ".join([f"{op.name}:", *words, *(f"{k}={v}" for k, v in options.items() if v is not None)])


def print_schedule(schedule: Facts) -> str:
    """The whole schedule as text, one line each for the header, every group, bundle and op."""
    s = schedule
    lines = [
        f"schedule {s.name} model={s.model} world={s.world_size} batch={s.batch_per_worker} "
        f"microbatches={s.microbatches} itemsize={s.itemsize}{f' moments={s.moments}' if s.moments != 1 else ''}"
    ]
    lines += [f"group {g.name} {g.ranks}" for g in s.groups]
    lines += [
        f"cut {c.block} @{c.ranks} {c.axis} inputs={c.inputs} outputs={c.outputs}"
        f"{f' positions={c.positions}' if c.positions != 1 else ''}"
        for c in s.cuts
    ]
    lines += [
        f"bundle {b.name} numel={b.numel} owners={b.owners} layout={b.layout} "
        f"{f'start={b.start} ' if b.start else ''}{f'replicas={b.replicas} ' if b.replicas != 1 else ''}"
        f"{f'keep={b.keep} ' if b.keep is not Keep.ALL else ''}tensors={','.join(b.tensors)}"
        for b in s.bundles
    ]
    lines += [print_op(op) for op in s.ops]
    return "\n".join(lines) + "\n"


def _without_one(cut: dict[str, object]) -> dict[str, object]:
    """A cut without its positions where there is one, as most have."""
    return {key: value for key, value in cut.items() if (key, value) != ("positions", 1)}


def to_json(schedule: Facts) -> str:
    """Return the schedule as one JSON object (ranks as `0-8,10`, ops in program order under their kind)."""
    s = schedule
    names = {cls: kind for kind, cls in KINDS.items()}
    return json.dumps(
        {
            "name": s.name,
            "model": s.model,
            "world_size": s.world_size,
            "batch_per_worker": s.batch_per_worker,
            "microbatches": s.microbatches,
            "itemsize": s.itemsize,
            **({"moments": s.moments} if s.moments != 1 else {}),
            "groups": {g.name: str(g.ranks) for g in s.groups},
            **({"cuts": [_without_one(asdict(c)) for c in s.cuts]} if s.cuts else {}),
            "bundles": [_plain(b) for b in s.bundles],
            "ops": [{"op": names[type(op)], **_plain(op)} for op in s.ops],
        },
        indent=1,
    )


def _plain(what: Bundle | Op) -> dict[str, Any]:
    """The fields of `what`, but for those of `_RARE` that have their usual values."""
    return {key: value for key, value in asdict(what).items() if key not in _RARE or value != _RARE[key]}
