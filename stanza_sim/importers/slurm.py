"""Makes a network of Slurm's topology.conf (topology/tree). It holds no rates and nothing of hosts: both are asked for.

Levels are counted from the hosts: those on which hosts are have level 1, and `--rate level1=RATE` is all that joins
one of them to the switch above.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_TEXT
from stanza_sim.importers.asked import Asked, said_rate
from stanza_sim.importers.fabric_file import HOST_LEVELS, Attached, Switch, Trunk, fabric_file, inside
from stanza_sim.importers.hostlist import MOST_HOSTS, MOST_LETTERS, HostlistError, expand, fold, without_prefix
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.native import Imported, Note
from stanza_sim.importers.reading import ForeignFile, read_foreign

KEYS = ("SwitchName", "Switches", "Nodes", "LinkSpeed")
MOST_INCLUDES = 100
TOP = "top"


@dataclass(slots=True, eq=False)
class Named:
    """A line `SwitchName=...`: where it stands, its hosts, the names of the switches below, and what follows."""

    name: str
    file: ForeignFile
    where: str
    line: int
    nodes: list[str]
    switches: list[str]
    level: int = 0
    parent: Named | None = None


@dataclass(slots=True)
class _Reading:
    """What has been read so far, of a file and those that it includes."""

    switches: dict[str, Named] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    files: int = 0
    names: dict[str, int] = field(default_factory=lambda: {"nodes": 0, "switches": 0})
    """How many hosts, and switches below others, there are so far."""


def import_slurm(file: ForeignFile, asked: Asked) -> Imported:
    """Return the native file of a network. Raises `InputError` for what is wrong, and for what has to be asked for."""
    reading = _Reading()
    _read(file, reading, ())
    if not reading.switches:
        raise file.wrong("has no line SwitchName=...", hint="such as SwitchName=s0 Nodes=tux[0-15]")
    switches = list(reading.switches.values())
    _check_names(switches)
    tops = _tree(file, switches)
    notes = list(reading.notes)
    levels = _levels(tops, switches)
    asked.check_levels((*HOST_LEVELS, *levels), file.path)
    _check_rates(file, asked, tops, levels)
    if len(tops) > 1:
        _join(tops, switches, notes)
    of_hosts = inside(file, asked)
    notes += of_hosts.notes
    nics = asked.nics or 1
    if asked.nics is None:
        notes.append(Note(what="each host is taken to have one NIC; --nics states more, all of them on its switch"))
    hosts = [
        Attached(name=node, lines=(switch.line,), nics=((switch.name, asked.rates["nic"]),) * nics)
        for switch in switches
        for node in switch.nodes
    ]
    trunks = [
        Trunk(
            lower=switch.name,
            upper=switch.parent.name,
            rate_Bps=asked.rates[f"level{switch.level}"],
            comment="",
        )
        for switch in switches
        if switch.parent is not None
    ]
    text = fabric_file(
        hosts=hosts,
        switches=[
            Switch(name=s.name, level=s.level, comment=f"line {s.where}" if s.line else "assumed: joins the others")
            for s in switches
        ],
        trunks=trunks,
        inside=of_hosts,
        name=asked.name or file.name,
        source=file.path,
        program="Slurm's topology.conf",
        notes=notes,
        levels={
            int(level.removeprefix("level")): f"level {level.removeprefix('level')} and up: "
            + said_rate(level, asked.rates[level])
            for level in levels
        },
    )
    return Imported(text=text, notes=tuple(notes))


def _levels(tops: Sequence[Named], switches: Sequence[Named]) -> list[str]:
    """The levels from which links lead up, that of the topmost switches too if a switch is to join them."""
    up = {switch.level for switch in switches if switch.parent is not None}
    up |= {top.level for top in tops} if len(tops) > 1 else set()
    return [f"level{level}" for level in sorted(up)]


def _check_rates(file: ForeignFile, asked: Asked, tops: Sequence[Named], levels: Sequence[str]) -> None:
    """Ask for the rates that are missing; those of the topmost switches are the answer to what joins them."""
    joining = {f"level{top.level}" for top in tops} if len(tops) > 1 else set()
    missing = [level for level in ("nic", *levels) if level not in asked.rates]
    if not missing:
        return
    hint = f"state {' '.join(f'--rate {level}=RATE' for level in missing)}, such as 200Gbps"
    if joining - set(asked.rates):
        names = fold(top.name for top in tops)
        what = f"no switch joins {names if len(names) < 60 else f'{len(tops)} switches'}"
        raise tops[1].file.wrong(what, tops[1].line, f"{hint}; then one more switch joins them")
    said = [
        "a host's NIC" if level == "nic" else f"what a switch of level {level.removeprefix('level')} has up"
        for level in missing
    ]
    raise file.wrong(f"does not say how fast {' and '.join(said)} is", hint=hint)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(file: ForeignFile, reading: _Reading, above: tuple[str, ...]) -> None:
    """Read a file, and those that it includes."""
    reading.files += 1
    speeds = []
    for line, text in _logical(file):
        if included := re.match(r"\s*include\s+(\S+)\s*$", text, re.IGNORECASE):
            _include(file, line, included[1], reading, above)
            continue
        values = _values(file, line, text)
        if not values:
            continue
        if "linkspeed" in values:
            speeds.append(line)
        _add(file, line, values, reading)
    if speeds:
        notes = Note(what="LinkSpeed is not used: Slurm itself ignores it, and it has no unit", lines=tuple(speeds))
        reading.notes.append(notes)


def _logical(file: ForeignFile) -> Sequence[tuple[int, str]]:
    """Lines with the numbers of their beginnings, without comments; a backslash at the end continues one."""
    found: list[tuple[int, str]] = []
    begun, text = 0, ""
    for i, raw in enumerate(file.lines):
        bare = re.sub(r"(?<!\\)#.*", "", raw).rstrip()
        if not text:
            begun = i + 1
        if bare.endswith("\\"):
            text += bare[:-1]
            continue
        text += bare
        if text.strip():
            found.append((begun, text))
        text = ""
    if text.strip():
        raise file.wrong("is cut short: the last line is to be continued", begun)
    return found


def _values(file: ForeignFile, line: int, text: str) -> dict[str, str]:
    """The `Key=value` of a line, by the key in lower case."""
    values: dict[str, str] = {}
    known = {key.lower(): key for key in KEYS}
    for word in re.findall(r'(?:"[^"]*"|\S)+', text):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise file.wrong(f"{word[:60]!r} is not Key=value", line, "such as SwitchName=s0 Nodes=tux[0-15]")
        if key.lower().startswith("block"):
            what = f"{key} is of topology/block, which says what is in a block, and not what joins blocks"
            raise file.wrong(what, line, "a topology.conf of topology/tree is expected, with SwitchName=...")
        if key.lower() not in known:
            near = difflib.get_close_matches(key.lower(), known, n=1)
            hint = f"did you mean {known[near[0]]}?" if near else f"known: {', '.join(KEYS)}"
            raise file.wrong(f"{key[:40]!r} is not known", line, hint)
        if key.lower() in values:
            raise file.wrong(f"{key} is stated twice", line)
        values[key.lower()] = value.strip('"')
    return values


def _include(file: ForeignFile, line: int, name: str, reading: _Reading, above: tuple[str, ...]) -> None:
    path = Path(file.path).parent / name
    if str(path) in above or str(path) == file.path or reading.files > MOST_INCLUDES:
        raise file.wrong(f"includes {name}, and that goes on without end", line)
    try:
        other = read_foreign(path, Foreign.SLURM, most=LARGEST_TEXT)
    except InputError as error:
        raise file.wrong(f"includes {name}: {error.message}", line, error.hint) from None
    _read(other, reading, (*above, file.path))


def _add(file: ForeignFile, line: int, values: dict[str, str], reading: _Reading) -> None:
    name = values.get("switchname", "")
    if not name:
        raise file.wrong("a line without SwitchName=...", line, "such as SwitchName=s0 Nodes=tux[0-15]")
    if re.search(r"[\[\],]", name) or len(name) > MOST_LETTERS:
        raise file.wrong(f"{name!r} is not the name of one switch", line, "write a line for each switch")
    where = str(line) if reading.files == 1 else f"{line} of {Path(file.path).name}"
    if (other := reading.switches.get(name)) is not None:
        raise file.wrong(f"the switch {name} is stated twice, also on line {other.where}", line)
    lists: dict[str, list[str]] = {}
    for key in ("nodes", "switches"):
        try:
            lists[key] = expand(values[key]) if key in values else []
        except HostlistError as error:
            raise file.wrong(f"{key.capitalize()}: {error}", line, error.hint) from None
        reading.names[key] += len(lists[key])
        if reading.names[key] > MOST_HOSTS:
            what = f"{'hosts' if key == 'nodes' else 'switches'} up to here are more than {MOST_HOSTS:,}"
            raise file.wrong(what, line, "that is the most")
        if any(item.upper() == "ALL" for item in lists[key]):
            raise file.wrong(f"{key.capitalize()}=ALL: what these are is not in the file", line, "write their names")
        if twice := _twice(lists[key]):
            raise file.wrong(f"{twice} is twice under {name}", line)
    if not lists["nodes"] and not lists["switches"]:
        raise file.wrong(f"nothing is under the switch {name}", line, "state Nodes= or Switches=")
    reading.switches[name] = Named(
        name=name, file=file, where=where, line=line, nodes=lists["nodes"], switches=lists["switches"]
    )


def _twice(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


# ---- the tree --------------------------------------------------------------------------------------------------------


def _check_names(switches: Sequence[Named]) -> None:
    """Refuse a host whose prefix is missing, and one under two switches."""
    cut = without_prefix(list(dict.fromkeys(node for switch in switches for node in switch.nodes)))
    for switch in switches:
        if short := next((node for node in switch.nodes if node in cut), None):
            what = f"the host {short} seems to lack its prefix: {cut[short]}?"
            hint = "in Nodes=a[1-3],a[5-6] both parts have it; a host that is really called so needs another name here"
            raise switch.file.wrong(what, switch.line, hint)
    of: dict[str, Named] = {}
    for switch in switches:
        for node in switch.nodes:
            if (other := of.setdefault(node, switch)) is not switch:
                what = f"the host {node} is under {switch.name} and under {other.name} (line {other.where})"
                raise switch.file.wrong(what, switch.line, "a host is under one switch")


def _tree(file: ForeignFile, switches: Sequence[Named]) -> list[Named]:
    """Set the parents and levels of switches; return those at the top."""
    by_name = {switch.name: switch for switch in switches}
    for switch in switches:
        for name in switch.switches:
            child = by_name.get(name)
            if child is None:
                near = difflib.get_close_matches(name, by_name, n=1)
                hint = f"did you mean {near[0]}?" if near else "each switch needs a line SwitchName=..."
                raise switch.file.wrong(
                    f"there is no switch {name}, which {switch.name} has below it", switch.line, hint
                )
            if child.parent is not None:
                what = f"the switch {name} is under {switch.name} and under {child.parent.name}"
                raise switch.file.wrong(
                    f"{what} (line {child.parent.where})", switch.line, "a tree has one switch above each"
                )
            child.parent = switch
    waiting = {switch.name: len(switch.switches) for switch in switches}
    ready = [switch for switch in switches if not switch.switches]
    done = 0
    for switch in ready:  # it grows meanwhile
        done += 1
        switch.level = 1 + max((by_name[name].level for name in switch.switches), default=0)
        if switch.parent is not None:
            waiting[switch.parent.name] -= 1
            if not waiting[switch.parent.name]:
                ready.append(switch.parent)
    if done < len(switches):
        around = next(switch for switch in switches if waiting[switch.name])
        raise around.file.wrong(f"the switch {around.name} is above itself", around.line, "a tree has no circles")
    return [switch for switch in switches if switch.parent is None]


def _join(tops: Sequence[Named], switches: list[Named], notes: list[Note]) -> None:
    """Put a switch above those that have none."""
    names = fold(top.name for top in tops)
    taken = {switch.name for switch in switches}
    name = next(name for name in (TOP, *(f"{TOP}{i}" for i in range(len(taken) + 1))) if name not in taken)
    above = Named(
        name=name, file=tops[0].file, where="", line=0, nodes=[], switches=[], level=1 + max(top.level for top in tops)
    )
    for top in tops:
        top.parent = above
    switches.append(above)
    notes.append(Note(what=f"no switch joins {names}: {name} is added above them", lines=tuple(t.line for t in tops)))
