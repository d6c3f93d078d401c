"""Schedules: what every rank of a training job does in one iteration."""

from stanza_sim.schedule.json_form import from_json
from stanza_sim.schedule.legality import check
from stanza_sim.schedule.ops import (
    Algorithm,
    Axis,
    Bundle,
    Carrier,
    Collective,
    CollectiveKind,
    Compute,
    Cut,
    Group,
    Keep,
    Layout,
    Op,
    Pattern,
    Phase,
    Transfer,
    Value,
    ValueKind,
    Wire,
    slice_bounds,
)
from stanza_sim.schedule.printing import print_op, to_json
from stanza_sim.schedule.program import RankProgram, Unit, UnitKind, project
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule
from stanza_sim.schedule.text import parse, parse_op

__all__ = [
    "Algorithm",
    "Axis",
    "Bundle",
    "Carrier",
    "Collective",
    "CollectiveKind",
    "Compute",
    "Cut",
    "Group",
    "Keep",
    "Layout",
    "Op",
    "Pattern",
    "Phase",
    "RankProgram",
    "Ranks",
    "Schedule",
    "Transfer",
    "Unit",
    "UnitKind",
    "Value",
    "ValueKind",
    "Wire",
    "check",
    "from_json",
    "parse",
    "parse_op",
    "print_op",
    "project",
    "slice_bounds",
    "to_json",
]
