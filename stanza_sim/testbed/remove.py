"""Takes testbeds down: on purpose, when their process leaves them, and when it is found to be gone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from stanza_sim.base.errors import InputError
from stanza_sim.testbed.processes import end_processes, processes_inside, this_process
from stanza_sim.testbed.registry import Record, Registry
from stanza_sim.testbed.shell import Tools, delete_namespaces


def remove(record: Record, registry: Registry, tools: Tools) -> None:
    """End what runs inside a testbed, delete its namespaces, and forget it. The registry is locked.

    If this is cut short, the testbed counts as left behind by this process. Raises `InputError` if this process is
    inside itself, and `RunError` if something does not go away.
    """
    own = record.own()
    end_processes(own)
    marked = replace(record, owner=this_process(), kept=False, complete=False)
    if marked != record:
        with suppress(InputError):  # a full disk is no reason to leave namespaces behind
            registry.put(marked)
    delete_namespaces(tools, own.values())
    for path in record.stale():
        path.unlink(missing_ok=True)
    registry.forget(record.prefix)


def release(record: Record, registry: Registry, tools: Tools) -> None:
    """Give up a testbed: remove it or, if it was there before its owner, only end what runs inside."""
    if record.kept and record.intact():
        end_processes(record.own())
        registry.put(replace(record, owner=None))
    else:
        remove(record, registry, tools)


def collect(registry: Registry, tools: Tools) -> list[str]:
    """Give up every testbed whose process is gone, and return a line about each. The registry is locked."""
    lines = []
    for record in registry.records():
        if record.abandoned():
            release(record, registry, tools)
            left = "by a restart" if record.owner is None else f"by process {record.owner.pid}"
            lines.append(f"cleaned up testbed {record.name} ({record.prefix}), left behind {left}")
    return lines


def check_empty(record: Record) -> None:
    """Raise `InputError` if processes run inside a testbed that somebody wants to change or to use."""
    if inside := processes_inside(record.own()):
        raise InputError(
            f"{len(inside)} processes run inside this testbed, such as {min(inside)}",
            where=record.name,
            hint="end them, or take the testbed down: stanza-sim testbed down",
        )
