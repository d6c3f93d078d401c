"""The JSON form of a schedule: the same facts as the printed form, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.schedule.ops import NO_PRIORITY, Bundle, Collective, Compute, Cut, Group, Op, Transfer
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

_KINDS: dict[str, type[Compute] | type[Transfer] | type[Collective]] = {
    "compute": Compute,
    "transfer": Transfer,
    "collective": Collective,
}

_RARE = ("start", "credit", "slices")
"""Fields that are 0 or empty in most schedules, and are then left out."""


@cache
def _readers() -> tuple[TypeAdapter[Bundle], TypeAdapter[Cut], dict[str, TypeAdapter[Any]]]:
    """Readers of a bundle, a cut and each kind of op; pydantic takes longer to make one than to use it."""
    return TypeAdapter(Bundle), TypeAdapter(Cut), {kind: TypeAdapter(cls) for kind, cls in _KINDS.items()}


def to_json(schedule: Schedule) -> str:
    """Return the schedule as one JSON object (ranks as `0-8,10`, ops in program order under their kind)."""
    s = schedule
    names = {cls: kind for kind, cls in _KINDS.items()}
    return json.dumps(
        {
            "name": s.name,
            "model": s.model,
            "world_size": s.world_size,
            "batch_per_worker": s.batch_per_worker,
            "microbatches": s.microbatches,
            "itemsize": s.itemsize,
            "groups": {g.name: str(g.ranks) for g in s.groups},
            **({"cuts": [asdict(c) for c in s.cuts]} if s.cuts else {}),
            "bundles": [_plain(b) for b in s.bundles],
            "ops": [{"op": names[type(op)], **_plain(op)} for op in s.ops],
        },
        indent=1,
    )


def _plain(what: Bundle | Op) -> dict[str, Any]:
    """The fields of `what`, but for those of `_RARE` that have their defaults."""
    return {key: value for key, value in asdict(what).items() if value or key not in _RARE}


def from_json(text: str) -> Schedule:
    """Read a schedule back from its JSON form; raises `ScheduleError`."""
    try:
        data: dict[str, Any] = json.loads(text)
        groups = tuple(Group(name=k, ranks=Ranks.parse(v)) for k, v in data.pop("groups").items())
        bundle_reader, cut_reader, op_readers = _readers()
        cuts = tuple(cut_reader.validate_python(c) for c in data.pop("cuts", []))
        bundles = tuple(bundle_reader.validate_python(b) for b in data.pop("bundles"))
        ops: list[Op] = []
        for item in data.pop("ops"):
            kind = item.pop("op")
            if kind == "collective" and "priority" in item:
                raise TypeError(f"{item.get('name')}: a collective has no priority: {NO_PRIORITY}")
            ops.append(op_readers[kind].validate_python(item))
        for key, value in data.items():
            if type(value) is not (str if key in ("name", "model") else int):
                raise TypeError(f"{key} cannot be {value!r}")
        return Schedule(groups=groups, cuts=cuts, bundles=bundles, ops=tuple(ops), **data)
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ScheduleError(f"not the JSON form of a schedule: {e}") from None
