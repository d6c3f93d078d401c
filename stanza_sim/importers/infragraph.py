"""Reads InfraGraph (Keysight/infragraph, OCP): devices of components and edges, instances of them, and edges between.

Both forms that are about are read: `edges` with `ep1`, `ep2` and a scheme, and, of earlier versions, `connections` such
as `server.0.nic.0.eth.leafsw.0.port.0`, where counts may be left out: then the largest index that is used tells them.
What the graph means for a cluster is said in `infragraph_cluster`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product

from stanza_sim.base.config import Key, Source, near, parse_yaml
from stanza_sim.base.errors import InputError
from stanza_sim.importers.infragraph_graph import Component, Device, Edge, Graph, Instance, Link, Node
from stanza_sim.importers.native import Note
from stanza_sim.importers.reading import ForeignFile

MOST_EDGES = 500_000
"""A graph with more edges is more than a topology file can list."""
MOST_COUNT = 100_000
MOST_YAML = 4 * 2**20
"""YAML beyond this takes more than a quarter of a minute to read; JSON does not."""

_UNITS = {
    "gigabitspersecond": 1e9 / 8,
    "gbitspersecond": 1e9 / 8,
    "gigabytespersecond": 1e9,
    "gbytespersecond": 1e9,
    "gigatransferspersecond": 16 * 128 / 130 * 1e9 / 8,
    "gtransferspersecond": 16 * 128 / 130 * 1e9 / 8,
}
"""Bytes per second by unit, without underscores; transfers are those of a lane of PCI Express, 16 are taken."""
_SECONDS = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def read_graph(file: ForeignFile) -> Graph:
    """Return the graph in a file; raise `InputError`, with the line, for what is none or contradicts itself."""
    return _Reader(file).graph()


class _Reader:
    """Reads one file. Keys are paths into its data, whose lines `source` knows."""

    def __init__(self, file: ForeignFile) -> None:
        self.file = file
        self.data, self.source = _parsed(file)
        inner = self.data.get("infrastructure")
        self.root: Key = ("infrastructure",) if isinstance(inner, dict) else ()
        self.held: dict[str, object] = inner if isinstance(inner, dict) else self.data
        self.notes: list[Note] = []
        self.devices: dict[str, Device] = {}
        self.instances: dict[str, Instance] = {}
        self.count_of_edges = 0

    def line(self, *key: str | int) -> int:
        return self.source.line(key) or 1

    def wrong(self, what: str, key: Key, hint: str | None = None) -> InputError:
        """An error that names the file and the line of a key."""
        return self.file.wrong(what, self.line(*key), hint)

    def graph(self) -> Graph:
        """Read all of it."""
        root = self.held
        lists = [key for key in ("devices", "device") if isinstance(root.get(key), list)]
        alone = "components" in root and not lists  # a device by itself
        if not lists and not alone and "instances" not in root:
            hint = "an InfraGraph file has `devices`, each with components, and `instances` of them"
            raise self.file.wrong("has no devices", self.line(*self.root), hint)
        for key in lists:
            for at, entry in self._entries(root, (*self.root,), key):
                self._device(entry, at)
        if alone:
            self._device({"name": self.file.name, **root}, self.root)
            return Graph(name=self.file.name, about="", devices=self.devices, instances={}, edges=(), notes=self.notes)
        for device in self.devices.values():
            self._check_nested(device, ())
        links = self._links(root, self.root)
        for at, entry in self._entries(root, self.root, "instances"):
            self._instance(entry, at)
        edges = self._edges_of(root, self.root, links, self._instance_end)
        return Graph(
            name=self._text(root, "name", self.root) or self.file.name,
            about=self._text(root, "description", self.root),
            devices=self.devices,
            instances=self.instances,
            edges=edges,
            notes=self.notes,
        )

    # ---- plain data -------------------------------------------------------------------------------------------------

    def _entries(self, data: Mapping[str, object], at: Key, name: str) -> Iterator[tuple[Key, dict[str, object]]]:
        """The mappings in a list, with their keys."""
        listed = data.get(name)
        if listed is None:
            return
        if not isinstance(listed, list):
            raise self.wrong(f"{name} is no list", (*at, name))
        for i, entry in enumerate(listed):
            if not isinstance(entry, dict):
                raise self.wrong(f"entry {i} of {name} is no mapping", (*at, name, i))
            yield (*at, name, i), entry

    def _text(self, data: Mapping[str, object], name: str, at: Key, *, needed: bool = False) -> str:
        value = data.get(name)
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or (needed and not value.strip()):
            raise self.wrong(f"{name} is missing" if value is None else f"{name} is no text", (*at, name))
        return str(value).strip()

    def _count(self, data: Mapping[str, object], at: Key) -> int | None:
        value = data.get("count")
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_COUNT:
            hint = f"a whole number up to {MOST_COUNT:,} is right"
            raise self.wrong(f"count is {str(value)[:40]}", (*at, "count"), hint)
        return value

    # ---- devices ----------------------------------------------------------------------------------------------------

    def _device(self, data: dict[str, object], at: Key) -> None:
        name = self._text(data, "name", at, needed=True)
        if name in self.devices:
            raise self.wrong(f"there are two devices {name!r}", (*at, "name"))
        device = Device(name=name, line=self.line(*at), about=self._text(data, "description", at))
        for key, entry in self._entries(data, at, "components"):
            self._component(device, entry, key)
        device.links = self._links(data, at)
        self.devices[name] = device
        device.edges = self._edges_of(data, at, device.links, lambda text, key, _: self._ends(device, text, key))

    def _component(self, device: Device, data: dict[str, object], at: Key) -> None:
        name = self._text(data, "name", at, needed=True)
        if name in device.components:
            raise self.wrong(f"{device.name} has two components {name!r}", (*at, "name"))
        if data.get("components") is not None:
            hint = "make the part a device of its own, and this component a `device`"
            raise self.wrong(f"{name} has components of its own, which is not read", (*at, "components"), hint)
        kind = self._text(data, "choice", at) or self._text(data, "type", at)
        if not kind:
            kinds = ("custom", "device", "cpu", "xpu", "npu", "nic", "port", "switch")
            kind = next((k for k in kinds if k in data), "")
        custom = data.get("custom")
        if kind == "custom" and isinstance(custom, dict):
            kind = self._text(custom, "type", (*at, "custom")) or kind
        kind = "xpu" if kind.lower() in ("npu", "gpu", "xpu") else kind
        about = self._text(data, "description", at)
        device.components[name] = Component(
            name=name, kind=kind, about=about, count=self._count(data, at), line=self.line(*at)
        )

    def _check_nested(self, device: Device, inside: tuple[str, ...]) -> None:
        """Refuse a device that contains itself; note one that is not described."""
        if device.name in inside:
            raise self.file.wrong(f"device {device.name!r} contains itself", device.line)
        for component in device.components.values():
            if component.kind != "device":
                continue
            if (nested := self.devices.get(component.name)) is not None:
                self._check_nested(nested, (*inside, device.name))
            else:
                self.notes.append(Note(what=f"device {component.name!r} is not described", lines=(component.line,)))

    def _links(self, data: Mapping[str, object], at: Key) -> dict[str, Link]:
        found = {}
        for key, entry in self._entries(data, at, "links"):
            name = self._text(entry, "name", key, needed=True)
            if name in found:
                raise self.wrong(f"there are two links {name!r}", (*key, "name"))
            physical = entry.get("physical")
            held = physical if isinstance(physical, dict) else entry
            below = (*key, "physical") if held is physical else key
            about = self._text(entry, "description", key)
            rate = self._quantity(held, "bandwidth", below, _UNITS)
            if rate is not None and not 1e-3 <= rate <= 1e18:
                raise self.wrong(f"the bandwidth of {name!r} is no rate of a link", (*below, "bandwidth"))
            late = self._quantity(held, "latency", below, _SECONDS)
            if late is not None and not 0 <= late <= 10:
                raise self.wrong(f"the latency of {name!r} is none of a link", (*below, "latency"))
            found[name] = Link(name=name, about=about, rate_Bps=rate, latency_s=late)
        return found

    def _quantity(self, data: Mapping[str, object], name: str, at: Key, units: Mapping[str, float]) -> float | None:
        held = data.get(name)
        if held is None:
            return None
        if not isinstance(held, dict):
            raise self.wrong(f"{name} is no mapping", (*at, name), f"such as {{{next(iter(units))}: 100}}")
        choice = held.get("choice")
        for unit, value in held.items():
            factor = units.get(str(unit).replace("_", ""))
            if factor is None or (choice is not None and unit != choice):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
                raise self.wrong(f"{unit} is {str(value)[:40]}", (*at, name, unit), "a number is expected")
            if "transfers" in str(unit):
                what = f"{unit}: 16 lanes of PCI Express are taken"
                self.notes.append(Note(what=what, lines=(self.line(*at, name),)))
            return float(value) * factor
        if held:
            raise self.wrong(f"{name} has no unit that is known", (*at, name), f"known: {', '.join(units)} (with _)")
        return None

    def _instance(self, data: dict[str, object], at: Key) -> None:
        name = self._text(data, "name", at, needed=True)
        of = self._text(data, "device", at) or name
        if name in self.instances:
            raise self.wrong(f"there are two instances {name!r}", (*at, "name"))
        device, line = self.devices.get(of), self.line(*at)
        if device is None:
            what = f"instance {name!r} is of device {of!r}, which is not described"
            self.notes.append(Note(what=what, lines=(line,)))
            device = Device(name=of, line=line, known=False)
        self.instances[name] = Instance(name=name, device=device, count=self._count(data, at), line=line)

    # ---- edges ------------------------------------------------------------------------------------------------------

    def _edges_of(
        self,
        data: Mapping[str, object],
        at: Key,
        links: Mapping[str, Link],
        end: Callable[[str, Key, Mapping[str, object]], list[Node]],
    ) -> list[Edge]:
        """The edges of a device or an infrastructure, expanded."""
        found: list[Edge] = []
        for key, entry in self._entries(data, at, "edges"):
            sides = []
            for side in ("ep1", "ep2"):
                held = entry.get(side)
                if not isinstance(held, dict):
                    raise self.wrong(f"{side} is missing", (*key, side))
                text = self._text(held, "component", (*key, side), needed=True)
                if (within := self._text(held, "device", (*key, side))) and "instance" not in held:
                    text = f"{within}.{text}"
                sides.append(end(text, (*key, side), held))
            link = self._link(self._text(entry, "link", key), links, key)
            for a, b in self._paired(entry, key, *sides):
                if a != b:
                    found.append(Edge(a=a, b=b, link=link, line=self.line(*key)))
        listed = data.get("connections") or []
        if not isinstance(listed, list):
            raise self.wrong("connections is no list", (*at, "connections"))
        for i, text in enumerate(listed):
            key = (*at, "connections", i)
            a_text, name, b_text = self._split(text, key)
            link = self._link(name, links, key)
            for a, b in product(end(a_text, key, {}), end(b_text, key, {})):
                found.append(Edge(a=a, b=b, link=link, line=self.line(*key)))
        return found

    def _paired(
        self, entry: Mapping[str, object], at: Key, a: list[Node], b: list[Node]
    ) -> Iterator[tuple[Node, Node]]:
        scheme = entry.get("scheme") or ("many2many" if entry.get("many2many") is True else "one2one")
        pairs = len(a) * len(b) if scheme == "many2many" else max(len(a), len(b))
        self.count_of_edges += pairs
        if self.count_of_edges > MOST_EDGES:
            raise self.wrong(f"stands for more than {MOST_EDGES:,} edges", at)
        match scheme:
            case "many2many":
                both = frozenset(a) == frozenset(b)  # each pair of a group with itself once
                yield from ((x, y) for i, x in enumerate(a) for y in (b[i + 1 :] if both else b))
            case "one2one":
                longer = entry.get("ep1" if len(a) > len(b) else "ep2")
                if len(a) != len(b) and "[" in str(longer.get("component") if isinstance(longer, dict) else ""):
                    what = f"{len(a)} and {len(b)} ends one to one: the first {min(len(a), len(b))} are joined"
                    self.notes.append(Note(what=what, lines=(self.line(*at),)))
                yield from zip(a, b, strict=False)
            case "ring":
                ring = a if a == b else [*a, *b]
                if len(ring) > 1:
                    yield from zip(ring, ring[1:] + (ring[:1] if len(ring) > 2 else []), strict=False)
            case _:
                hint = "known: one2one, many2many, ring"
                raise self.wrong(f"scheme is {str(scheme)[:40]!r}", (*at, "scheme"), hint)

    def _link(self, name: str, links: Mapping[str, Link], at: Key) -> Link:
        """A link by its name; one that is not described has no rate."""
        if name in links:
            return links[name]
        if links and name:
            raise self.wrong(f"there is no link {name!r}", at, near(name, links))
        return Link(name=name or "link")

    def _split(self, text: object, at: Key) -> tuple[str, str, str]:
        """A connection as end, link, end; ends are written as in `edges`: `server[0].nic[0]`."""
        parts = text.split(".") if isinstance(text, str) else []
        k = 0
        while k + 1 < len(parts) and parts[k + 1].isdigit():
            k += 2
        left, right = parts[:k], parts[k + 1 :]
        good = k and right and len(right) % 2 == 0 and all(word.isdigit() for word in right[1::2])
        if not good:
            hint = "a connection is written such as xpu.0.pcie.nic.0"
            raise self.wrong(f"{str(text)[:60]!r} is no connection", at, hint)
        self.count_of_edges += 1
        if self.count_of_edges > MOST_EDGES:
            raise self.wrong(f"there are more than {MOST_EDGES:,} connections", at)
        a, b = (".".join(f"{n}[{i}]" for n, i in zip(w[::2], w[1::2], strict=True)) for w in (left, right))
        return a, parts[k], b

    def _ends(self, device: Device, text: str, at: Key) -> list[Node]:
        """The components of a device that an end means: `xpu[0:2]`, `cx5[0].port[1]`, or all of `nic`."""
        nodes: list[Node] = [()]
        here: Device | None = device
        for word in text.split("."):
            name, indices = self._indices(here, word, at)
            nodes = [(*node, name, i) for node in nodes for i in indices]
            if len(nodes) > MOST_EDGES:
                raise self.wrong(f"{text[:40]!r} stands for more than {MOST_EDGES:,} components", at)
            here = self.devices.get(name) if here is not None else None
        return nodes

    def _indices(self, device: Device | None, word: str, at: Key) -> tuple[str, list[int]]:
        match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", word.strip())
        if match is None:
            raise self.wrong(f"{word[:40]!r} is no component", at, "such as xpu[0:4]")
        name, said = match[1].strip(), match[2]
        component = device.components.get(name) if device is not None and device.known else None
        if component is None and device is not None and device.known:
            raise self.wrong(f"{device.name} has no component {name[:40]!r}", at, near(name, device.components))
        indices, most = self._slice(said, component.count if component else None, word, at)
        if component is not None:
            component.seen = max(component.seen, most)
        return name, indices

    def _slice(self, said: str | None, count: int | None, word: str, at: Key) -> tuple[list[int], int]:
        """What stands between brackets: the indices, and how many components there are at least."""
        if said is None or said.strip() in ("", ":"):
            return list(range(1 if count is None else count)), count or 1
        parts = said.split(":")
        if len(parts) > 3 or not all(re.fullmatch(r"\s*-?[0-9]{0,9}\s*", part) for part in parts):
            raise self.wrong(f"{word[:40]!r} is no component", at, "such as xpu[0:4]")
        numbers = [int(part) if part.strip() not in ("", "-") else None for part in parts]
        if len(numbers) == 1:
            index = numbers[0] or 0
            index = index + count if index < 0 and count is not None else index
            if index < 0 or (count is not None and index >= count) or index >= MOST_COUNT:
                have = f"there are {count}, numbered from 0" if count is not None else "they are numbered from 0"
                raise self.wrong(f"there is no {word[:40]}", at, have)
            return [index], index + 1
        stop = numbers[1]
        most = count if count is not None else stop
        if most is None or most < 0 or most > MOST_COUNT or numbers[2:] == [0]:
            raise self.wrong(f"{word[:40]!r}: nothing says how many there are", at, "state its count")
        if stop is not None and stop > most:
            raise self.wrong(f"{word[:40]!r}: there are {most}", at, "they are numbered from 0")
        return list(range(*slice(*numbers).indices(most))), most

    def _instance_end(self, text: str, at: Key, side: Mapping[str, object]) -> list[Node]:
        """The components that an end of an infrastructure's edge means."""
        if side:
            head, rest = self._text(side, "instance", at, needed=True), text
        else:
            head, _, rest = text.partition(".")
        name = head.partition("[")[0].strip()
        instance = self.instances.get(name) or self._unnamed(name, at)
        indices, most = self._slice(head[len(name) + 1 : -1] if "[" in head else None, instance.count, head, at)
        instance.seen = max(instance.seen, most)
        below = self._ends(instance.device, rest, at) if rest else [()]
        return [(name, i, *node) for i in indices for node in below]

    def _unnamed(self, name: str, at: Key) -> Instance:
        """An instance that the file uses but does not list: of the device so called, or of the only one with XPUs."""
        used = {instance.device.name for instance in self.instances.values()}
        whole = [d for d in self.devices.values() if any(c.kind == "xpu" for c in d.components.values())]
        device = self.devices.get(name) or next((d for d in whole if len(whole) == 1 and d.name not in used), None)
        if device is None:
            raise self.wrong(f"there is no instance {name[:40]!r}", at, near(name, self.instances))
        what = f"{name!r} is not among the instances: taken to be of device {device.name!r}"
        self.notes.append(Note(what=what, lines=(self.line(*at),)))
        self.instances[name] = Instance(name=name, device=device, count=None, line=self.line(*at))
        return self.instances[name]


def _parsed(file: ForeignFile) -> tuple[dict[str, object], Source]:
    """The data of a file and the lines of its keys, which large JSON does without."""
    as_json = file.text.lstrip()[:1] == "{"
    if len(file.text) <= (MOST_YAML // 4 if as_json else MOST_YAML):
        return parse_yaml(file.text, file.path)
    if not as_json:
        hint = "write it as JSON, which is read faster"
        raise file.wrong(f"has more than {MOST_YAML // 2**20} MiB of YAML", None, hint)
    try:
        data = json.loads(file.text)
    except (ValueError, RecursionError) as error:
        raise file.wrong(f"is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise file.wrong("holds no mapping")
    return data, Source(file=file.path, lines={})
