"""Reads the JSON form of a schedule, which `schedule.printing` writes: the facts of the printed form, for programs."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.schedule.ops import NO_PRIORITY, Bundle, Cut, Group, Op
from stanza_sim.schedule.printing import KINDS
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule


@cache
def _readers() -> tuple[TypeAdapter[Bundle], TypeAdapter[Cut], dict[str, TypeAdapter[Any]]]:
    """Readers of a bundle, a cut and each kind of op; pydantic takes longer to make one than to use it."""
    return TypeAdapter(Bundle), TypeAdapter(Cut), {kind: TypeAdapter(cls) for kind, cls in KINDS.items()}


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
