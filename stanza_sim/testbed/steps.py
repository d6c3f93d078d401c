"""The form of commands: lines for a tool, in a namespace."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CONGESTION_CONTROL = "reno"
"""Loss-based and always built in. It is set by route, since a namespace may not choose others by sysctl."""


class Tool(StrEnum):
    """What reads the lines of a step."""

    IP = "ip"
    TC = "tc"
    SYSCTL = "sysctl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Lines for one tool, in one namespace (None: the machine's own; nothing but namespaces is made there)."""

    tool: Tool
    namespace: str | None
    lines: tuple[str, ...]
