"""The table and the JSON that `stanza-sim flows` prints, laid out for 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path

from stanza_sim.base.files import write_whole
from stanza_sim.base.units import format_time
from stanza_sim.simulate.prediction import FlowResult

WIDTH = 80
MOST_LINKS = 40
"""Of more links than this, only the busiest are listed; `--json` has all of them."""
_GAP = "  "


def flows_json(result: FlowResult) -> str:
    """The answer as one JSON object; times in seconds, a bottleneck of null for a flow that used no link."""
    data = {
        "completion_s": result.completion_s,
        "utilisation": result.utilisation,
        "bottleneck": result.bottleneck,
        "makespan_s": result.makespan_s,
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def flows_table(result: FlowResult) -> Iterator[str]:
    """Yield the lines: every flow in the order of the case, then the links from the busiest on."""
    flows = result.completion_s
    yield f"{_flows(len(flows))}, the last complete after {format_time(result.makespan_s, digits=6)}"
    yield ""
    rows = [(name, f"{time_s:.9f}", result.bottleneck[name] or "none") for name, time_s in flows.items()]
    yield from _columns(("flow", "completion, s", "bottleneck"), rows)
    yield ""
    yield from _links(result.utilisation, result.bottleneck)


def _links(utilisation: Mapping[str, float], bottleneck: Mapping[str, str | None]) -> Iterator[str]:
    """Yield each link with its utilisation and the number of flows that it limited, the busiest first."""
    limits: dict[str, int] = {}
    for link in bottleneck.values():
        if link is not None:
            limits[link] = limits.get(link, 0) + 1
    busiest = nsmallest(MOST_LINKS, utilisation.items(), key=lambda item: -item[1])  # ties in the order of the case
    rows = [(name, f"{share:.1%}", _flows(limits.get(name, 0))) for name, share in busiest]
    yield from _columns(("link", "utilisation", "limits"), rows)
    if (more := len(utilisation) - len(busiest)) > 0:
        yield f"and {more} links that are no busier"


def _flows(count: int) -> str:
    return "1 flow" if count == 1 else f"{count or 'no'} flows"


def _columns(heading: tuple[str, str, str], rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield rows of a name, a number and a name; long names share what 80 columns leave, and keep their ends."""
    table = [heading, *rows]
    first, number, last = (max(len(row[i]) for row in table) for i in range(3))
    room = WIDTH - number - 2 * len(_GAP)
    if first + last > room:
        first = min(first, max(room - last, room // 2))
        last = min(last, room - first)
    for a, value, b in table:
        yield _GAP.join((_cut(a, first).ljust(first), value.rjust(number), _cut(b, last))).rstrip()


def _cut(name: str, width: int) -> str:
    """Return a name in at most `width` characters, without its middle where it is longer, on one line."""
    name = name if name.isprintable() else repr(name)[1:-1]
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def write_json(result: FlowResult, path: Path) -> None:
    """Write the JSON to a file. Raises `InputError` where that fails."""
    write_whole(flows_json(result), path)
