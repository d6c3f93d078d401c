"""What an InfraGraph is made of: devices with components, instances of devices, links, and edges between components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.importers.native import Note

Node = tuple[str | int, ...]
"""A component, by name and index from the outermost: ("xpu", 3), or in an infrastructure ("server", 0, "xpu", 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A kind of link: bytes per second each way, and seconds; None where the file does not say."""

    name: str
    about: str = ""
    rate_Bps: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Two components and the link between them."""

    a: Node
    b: Node
    link: Link
    line: int


@dataclass(slots=True, kw_only=True)
class Component:
    """A component: `kind` is `xpu`, `nic`, `switch`, `device` and so on, or the type of a custom one.

    `count` is None where the file leaves it out; then there are as many as are `seen` in edges.
    """

    name: str
    kind: str
    about: str
    count: int | None
    line: int
    seen: int = 1

    @property
    def total(self) -> int:
        """How many there are."""
        return self.seen if self.count is None else self.count


@dataclass(slots=True, kw_only=True)
class Device:
    """A device: its components by name, and the edges between them. `known` is false where the file only names it."""

    name: str
    line: int
    about: str = ""
    known: bool = True
    components: dict[str, Component] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Instance:
    """So many copies of a device, called `name`; see `Component`."""

    name: str
    device: Device
    count: int | None
    line: int
    seen: int = 1

    @property
    def total(self) -> int:
        """How many there are."""
        return self.seen if self.count is None else self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """All that a file says."""

    name: str
    about: str
    devices: Mapping[str, Device]
    instances: Mapping[str, Instance]
    edges: Sequence[Edge]
    notes: Sequence[Note]
