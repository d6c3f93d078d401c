"""A case of bare flows as its file states it, and with its names resolved."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    with_config,
)
from typing_extensions import TypedDict

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import read_json

_Name = Annotated[str, Field(min_length=1)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class _Link(_Entry):
    name: _Name
    bandwidth: _Positive
    latency: _NonNegative = 0.0


class _Route(_Entry):
    src: _Name
    dst: _Name
    links: list[_Name]


def _once(value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
    """Check lists of equal names once, and keep one list of them; `info.context` holds those that are known."""
    known = cast(dict[tuple[object, ...], object], info.context)
    try:
        names = tuple(value) if type(value) is list else ()
        if not names or names not in known:
            known[names] = check(value)
        return known[names]
    except TypeError:  # not all can be hashed, so not all are names
        return check(value)


@with_config(ConfigDict(extra="forbid", strict=True))
class _Flow(TypedDict):
    id: _Name
    src: _Name
    dst: _Name
    bytes: _NonNegative
    start: NotRequired[_NonNegative]
    deps: NotRequired[Annotated[list[_Name], WrapValidator(_once)]]
    delay: NotRequired[_NonNegative]


class _Case(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, defer_build=True)

    hosts: list[_Name]
    links: list[_Link]
    routes: list[_Route]
    flows: list[_Flow]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowCase:
    """A case with names resolved: per flow its links, bytes, earliest start, total delay and what it waits for.

    `sets` are the different sets of flows that flows wait for, and `waits` is the set of each flow: of very many flows
    many wait for the same ones.
    """

    names: list[str]
    links: list[str]
    capacity: list[float]
    route: list[tuple[int, ...]]
    nbytes: list[float]
    start: list[float]
    delay: list[float]
    waits: list[int]
    sets: list[tuple[int, ...]]

    def waiting(self) -> list[list[int]]:
        """Of each set, the flows that wait for it."""
        found: list[list[int]] = [[] for _ in self.sets]
        for i, s in enumerate(self.waits):
            found[s].append(i)
        return found

    def holding(self) -> list[list[int]]:
        """Of each flow, the sets that it is in."""
        found: list[list[int]] = [[] for _ in self.names]
        for s, flows in enumerate(self.sets):
            for i in flows:
                found[i].append(s)
        return found


def read_case(path: Path) -> dict[str, Any]:
    """Read a case from a JSON file; raises `InputError` for a file that is no JSON object."""
    data = read_json(path, expected="an object with hosts, links, routes and flows")
    if not isinstance(data, dict):
        raise InputError("should be an object with hosts, links, routes and flows", where=str(path))
    return data


def check_case(case: Mapping[str, Any]) -> FlowCase:
    """Resolve the names of a case. Raises `InputError` for what `simulate_flows` refuses."""
    try:
        c = _Case.model_validate(dict(case), context={})
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(first["msg"], where=where) from None
    except RecursionError:
        raise InputError("is nested too deeply") from None
    hosts = _unique(c.hosts, "hosts")
    links = _unique([x.name for x in c.links], "links")
    routes = _routes(c, hosts, links)
    flows = _unique([f["id"] for f in c.flows], "flows")
    ends: dict[tuple[str, str], tuple[int, ...]] = {}
    latency_s = {indices: sum(c.links[q].latency for q in indices) for indices in {(), *routes.values()}}
    route: list[tuple[int, ...]] = []
    known: dict[int, int] = {}  # lists of equal names are one object
    waits: list[int] = []
    sets: list[tuple[int, ...]] = []
    nothing: list[str] = []
    for i, f in enumerate(c.flows):  # the first flow that is wrong is named
        between = f["src"], f["dst"]
        if between not in ends:
            ends[between] = _route_of(f, hosts, routes, _place(i, f))
        route.append(ends[between])
        names = f.get("deps", nothing)
        if id(names) not in known:
            known[id(names)] = len(sets)
            sets.append(_dependencies(names, flows, _place(i, f)))
        waits.append(known[id(names)])
    checked = FlowCase(
        names=list(flows),
        links=[x.name for x in c.links],
        capacity=[x.bandwidth for x in c.links],
        route=route,
        nbytes=[f["bytes"] if f["src"] != f["dst"] else 0.0 for f in c.flows],
        start=[f.get("start", 0.0) for f in c.flows],
        delay=[f.get("delay", 0.0) + latency_s[own] for f, own in zip(c.flows, route, strict=True)],
        waits=waits,
        sets=sets,
    )
    _acyclic(checked)
    return checked


def _routes(c: _Case, hosts: Container[str], links: Mapping[str, int]) -> dict[tuple[str, str], tuple[int, ...]]:
    """The links of each route, by its two ends."""
    routes: dict[tuple[str, str], tuple[int, ...]] = {}
    ends: dict[int, tuple[str | None, str | None]] = {}
    for i, r in enumerate(c.routes):
        where = f"routes.{i}"
        _are_hosts(r.src, r.dst, hosts, where)
        if (r.src, r.dst) in routes:
            raise InputError(f"a second route from {r.src} to {r.dst}", where=where)
        indices = routes[r.src, r.dst] = _links_of(r, links, where)
        if r.src != r.dst and len(indices) > 1:  # a single link may be a medium that several hosts share
            _connects(ends, indices, r, c.links, where)
    return routes


def _are_hosts(src: str, dst: str, hosts: Container[str], where: str) -> None:
    for end in (src, dst):
        if end not in hosts:
            raise InputError(f"there is no host {end!r}", where=where)


def _links_of(r: _Route, links: Mapping[str, int], where: str) -> tuple[int, ...]:
    for name in r.links:
        if name not in links:
            raise InputError(f"there is no link {name!r}", where=where)
    indices = tuple(links[name] for name in r.links)
    if r.src != r.dst and not indices:
        raise InputError(f"the route from {r.src} to {r.dst} has no links", where=where)
    if len(set(indices)) != len(indices):
        raise InputError(f"the route from {r.src} to {r.dst} uses a link twice", where=where)
    return indices


def _route_of(
    f: _Flow, hosts: Container[str], routes: Mapping[tuple[str, str], tuple[int, ...]], where: str
) -> tuple[int, ...]:
    """The links that a flow uses; none from a host to itself."""
    src, dst = f["src"], f["dst"]
    _are_hosts(src, dst, hosts, where)
    if src == dst:
        return ()
    if (src, dst) not in routes:
        raise InputError(f"no route connects {src} to {dst}", where=where, hint="add it to routes")
    return routes[src, dst]


def _place(i: int, f: _Flow) -> str:
    return f"flows.{i} ({f['id']})"


def _dependencies(names: list[str], flows: Mapping[str, int], where: str) -> tuple[int, ...]:
    """The numbers of the flows called `names`, which a flow waits for."""
    for d in names:
        if d not in flows:
            raise InputError(f"depends on {d!r}, and there is no such flow", where=where)
    return tuple(sorted({flows[d] for d in names}))


def _unique(names: list[str], what: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in found:
            raise InputError(f"{name!r} is there twice", where=f"{what}.{i}")
        found[name] = i
    return found


def _connects(
    ends: dict[int, tuple[str | None, str | None]],
    indices: tuple[int, ...],
    route: _Route,
    links: list[_Link],
    where: str,
) -> None:
    """A link that leaves one host in one route cannot leave another in another: such routes do not connect."""
    first, last = indices[0], indices[-1]
    for q, side, host in ((first, 0, route.src), (last, 1, route.dst)):
        known = ends.get(q, (None, None))
        if known[side] not in (None, host):
            verb = "leaves" if side == 0 else "enters"
            said = f"link {links[q].name} {verb} {known[side]}"
            raise InputError(f"the route from {route.src} to {route.dst} does not connect: {said}", where=where)
        ends[q] = (host, known[1]) if side == 0 else (known[0], host)


def _acyclic(c: FlowCase) -> None:
    missing, waiting, holding = [len(flows) for flows in c.sets], c.waiting(), c.holding()
    ready = [i for i, s in enumerate(c.waits) if not missing[s]]
    seen = 0
    while ready:
        seen += 1
        for s in holding[ready.pop()]:
            missing[s] -= 1
            if not missing[s]:
                ready += waiting[s]
    if seen < len(c.names):
        path = [next(i for i, s in enumerate(c.waits) if missing[s])]
        while True:  # walk back along unmet dependencies until one repeats
            nxt = next(j for j in c.sets[c.waits[path[-1]]] if missing[c.waits[j]])
            if nxt in path:
                cycle = [c.names[i] for i in path[path.index(nxt) :]]
                raise InputError(
                    f"flows depend on each other in a circle: {' <- '.join([*cycle, cycle[0]])}", where="flows"
                )
            path.append(nxt)
