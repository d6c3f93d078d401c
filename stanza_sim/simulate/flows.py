"""Bare flow-level cases: flows with dependencies over routes of one-direction links, shared max-min fairly.

A flow is released at max(start, completion of every dependency) + delay; its transfer begins after the sum of its
route's latencies; its rate is its max-min fair share, anew whenever a transfer begins or ends; it completes when its
last byte has moved. A flow of 0 bytes, or from a host to itself, completes when its transfer would begin.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stanza_sim.base.errors import InputError, RunError, at
from stanza_sim.simulate.engines import EngineChoice, engine_of, require_numba
from stanza_sim.simulate.plain.fluid import TIE, FluidShare, RunningActivity
from stanza_sim.simulate.prediction import FlowResult

COMPILED_FROM = 20_000
"""From so many flows on, the compiled solver is worth its start-up time."""

_Name = Annotated[str, Field(min_length=1)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Link(_Entry):
    name: _Name
    bandwidth: _Positive
    latency: _NonNegative = 0.0


class _Route(_Entry):
    src: _Name
    dst: _Name
    links: list[_Name]


class _Flow(_Entry):
    id: _Name
    src: _Name
    dst: _Name
    bytes: _NonNegative
    start: _NonNegative = 0.0
    deps: list[_Name] = []
    delay: _NonNegative = 0.0


class _FlowCase(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    hosts: list[_Name]
    links: list[_Link]
    routes: list[_Route]
    flows: list[_Flow]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
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
    try:
        with at(str(path)):
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except OSError as e:
        raise InputError(f"cannot be read: {e.strerror}", where=str(path)) from None
    except (UnicodeDecodeError, RecursionError):
        raise InputError("is not JSON text", where=str(path)) from None
    except json.JSONDecodeError as e:
        raise InputError(f"is not JSON: {e.msg} (line {e.lineno}, column {e.colno})", where=str(path)) from None
    except ValueError:
        raise InputError("has a number that is too long to read", where=str(path)) from None
    if not isinstance(data, dict):
        raise InputError("should be an object with hosts, links, routes and flows", where=str(path))
    return data


def _no_constant(name: str) -> float:
    raise InputError(f"{name} is not a number that JSON has")


def simulate_flows(case: Mapping[str, Any], *, engine: EngineChoice | str = EngineChoice.AUTO) -> FlowResult:
    """Run a case: a mapping with `hosts`, `links`, `routes` and `flows`; other keys are ignored.

    Bandwidths are bytes per second, latencies, starts and delays seconds; every link is one direction. `engine` is
    `plain`, `compiled` (with numba) or `auto`, which takes the quicker one; they agree. Raises `InputError` for names
    that do not resolve, routes that do not connect, cyclic dependencies, and numbers that are negative, zero where a
    rate is, or not finite.

    >>> import stanza_sim as ss
    >>> case = {
    ...     "hosts": ["a", "b"],
    ...     "links": [{"name": "ab", "bandwidth": 1e9, "latency": 1e-5}],
    ...     "routes": [{"src": "a", "dst": "b", "links": ["ab"]}],
    ...     "flows": [{"id": "f", "src": "a", "dst": "b", "bytes": 1e6}],
    ... }
    >>> ss.simulate_flows(case).completion_s
    {'f': 0.00101}
    """
    checked = _check(case)
    chosen = engine_of(engine)
    if chosen is EngineChoice.COMPILED:
        require_numba()
    run = _run_compiled if chosen is EngineChoice.COMPILED else _run
    if chosen is EngineChoice.AUTO and len(checked.names) >= COMPILED_FROM:
        from stanza_sim.simulate.compiled import kernel

        run = _run_compiled if kernel.COMPILED else _run
    try:
        done, limit = run(checked)
    except RunError:  # a rate that is no number above zero any more
        raise InputError("a link's bandwidth is too small to be shared", where="links") from None
    for i, time_s in enumerate(done):
        if not isfinite(time_s):
            hint = "its bytes, bandwidths or times are beyond what can be computed"
            raise InputError("does not complete in finite time", where=f"flows.{i} ({checked.names[i]})", hint=hint)
    return _result(checked, done, limit)


# ---- checking -------------------------------------------------------------------------------------------------------


def _check(case: Mapping[str, Any]) -> _Checked:
    try:
        c = _FlowCase.model_validate(dict(case))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(first["msg"], where=where) from None
    except RecursionError:
        raise InputError("is nested too deeply") from None
    hosts = _unique(c.hosts, "hosts")
    links = _unique([x.name for x in c.links], "links")
    routes = _routes(c, hosts, links)
    flows = _unique([f.id for f in c.flows], "flows")
    route: list[tuple[int, ...]] = []
    known: dict[tuple[str, ...], int] = {}
    waits: list[int] = []
    sets: list[tuple[int, ...]] = []
    for i, f in enumerate(c.flows):  # the first flow that is wrong is named
        own = routes.get((f.src, f.dst))
        if own is None or f.src == f.dst:
            own = _route_of(f, hosts, routes, f"flows.{i} ({f.id})")
        route.append(own)
        names = tuple(f.deps)
        if names not in known:
            known[names] = len(sets)
            sets.append(_dependencies(f, flows, f"flows.{i} ({f.id})"))
        waits.append(known[names])
    checked = _Checked(
        names=[f.id for f in c.flows],
        links=[x.name for x in c.links],
        capacity=[x.bandwidth for x in c.links],
        route=route,
        nbytes=[f.bytes if f.src != f.dst else 0.0 for f in c.flows],
        start=[f.start for f in c.flows],
        delay=[f.delay + sum(c.links[q].latency for q in own) for f, own in zip(c.flows, route, strict=True)],
        waits=waits,
        sets=sets,
    )
    _acyclic(checked)
    return checked


def _routes(c: _FlowCase, hosts: Container[str], links: Mapping[str, int]) -> dict[tuple[str, str], tuple[int, ...]]:
    """The links of each route, by its two ends."""
    routes: dict[tuple[str, str], tuple[int, ...]] = {}
    ends: dict[int, tuple[str | None, str | None]] = {}
    for i, r in enumerate(c.routes):
        where = f"routes.{i}"
        _are_hosts(r, hosts, where)
        if (r.src, r.dst) in routes:
            raise InputError(f"a second route from {r.src} to {r.dst}", where=where)
        indices = routes[r.src, r.dst] = _links_of(r, links, where)
        if r.src != r.dst and len(indices) > 1:  # a single link may be a medium that several hosts share
            _connects(ends, indices, r, c.links, where)
    return routes


def _are_hosts(between: _Route | _Flow, hosts: Container[str], where: str) -> None:
    for end in (between.src, between.dst):
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
    _are_hosts(f, hosts, where)
    if f.src == f.dst:
        return ()
    if (f.src, f.dst) not in routes:
        raise InputError(f"no route connects {f.src} to {f.dst}", where=where, hint="add it to routes")
    return routes[f.src, f.dst]


def _dependencies(f: _Flow, flows: Mapping[str, int], where: str) -> tuple[int, ...]:
    """The numbers of the flows that a flow waits for."""
    for d in f.deps:
        if d not in flows:
            raise InputError(f"depends on {d!r}, and there is no such flow", where=where)
    return tuple(sorted({flows[d] for d in f.deps}))


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


def _acyclic(c: _Checked) -> None:
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


# ---- running --------------------------------------------------------------------------------------------------------


def _run(c: _Checked) -> tuple[list[float], list[int]]:
    """Completion times and last bottleneck (a link, or -1) of each flow, in plain Python."""
    n = len(c.names)
    share = FluidShare(c.capacity)
    missing, waiting, holding = [len(flows) for flows in c.sets], c.waiting(), c.holding()
    done = [inf] * n
    limit = [-1] * n
    starts: list[tuple[float, int]] = []
    for i, s in enumerate(c.waits):
        if not missing[s]:
            heappush(starts, (c.start[i] + c.delay[i], i))

    def complete(i: int, now: float) -> None:
        done[i] = now
        for s in holding[i]:
            missing[s] -= 1
            if not missing[s]:
                for j in waiting[s]:
                    heappush(starts, (max(c.start[j], now) + c.delay[j], j))

    while True:
        now = min(share.next_finish_s(), starts[0][0] if starts else float("inf"))
        if not isfinite(now):
            return done, limit
        for activity in share.finish(now):
            if isinstance(activity.tag, int):
                limit[activity.tag] = activity.limit
                complete(activity.tag, now)
        while starts and starts[0][0] <= now + TIE * now:
            i = heappop(starts)[1]
            if c.nbytes[i] > 0:
                share.start(RunningActivity(work=c.nbytes[i], usage=tuple((q, 1.0) for q in c.route[i]), tag=i), now)
            else:
                complete(i, now)
        if share.dirty:
            share.solve(now)


def _run_compiled(c: _Checked) -> tuple[list[float], list[int]]:
    """As `_run`, on arrays."""
    import numpy as np

    from stanza_sim.simulate.compiled import kernel

    n = len(c.names)
    classes: dict[tuple[int, ...], int] = {}
    cls = np.full(2 * n + len(c.sets), -1, dtype=np.int32)
    for i, route in enumerate(c.route):
        if c.nbytes[i] > 0:
            cls[i] = classes.setdefault(route, len(classes))
    # After the flows comes a node for each set of flows that others wait for, and then one for each flow that waits
    # for others, to hold it back until its earliest start.
    waits = np.array(c.waits, dtype=np.int64)
    start, delay = np.array(c.start), np.array(c.delay)
    counts = np.array([len(flows) for flows in c.sets], dtype=np.int64)
    waiting = counts[waits] > 0
    held = np.nonzero(waiting & (start > 0))[0]
    total = n + len(c.sets) + len(held)
    members = np.array([i for flows in c.sets for i in flows], dtype=np.int64)
    source = np.concatenate([members, n + waits[waiting], n + len(c.sets) + np.arange(len(held))])
    target = np.concatenate([n + np.repeat(np.arange(len(c.sets)), counts), np.nonzero(waiting)[0], held])
    missing = np.bincount(target, minlength=total).astype(np.int32)
    missing[n : n + len(c.sets)][counts == 0] = 1  # nobody waits for nothing
    order = np.argsort(source, kind="stable")
    ptr = np.zeros(total + 1, dtype=np.int64)
    ptr[1:] = np.cumsum(np.bincount(source, minlength=total))
    net = kernel.make_net(
        np.array(c.capacity),
        [tuple((q, 1.0) for q in route) for route in classes],
        np.ones(len(classes)),
        np.full(len(classes), np.inf),
    )
    nodes = kernel.make_nodes(
        cls=cls[:total],
        work=np.concatenate([np.array(c.nbytes), np.zeros(total - n)]),
        delay=np.concatenate([np.where(waiting, delay, delay + start), np.zeros(len(c.sets)), start[held]]),
        missing=missing,
        successor_ptr=ptr,
        successor=target[order].astype(np.int32),
    )
    state = kernel.make_state(net, nodes)
    kernel.start(nodes, state)
    kernel.run(net, nodes, state, 1 << 62)
    return nodes.done_s[:n].tolist(), state.limited_by[:n].tolist()


def _result(c: _Checked, done: list[float], limit: list[int]) -> FlowResult:
    makespan = max(done, default=0.0)
    busy_s = [0.0] * len(c.links)
    for route, nbytes in zip(c.route, c.nbytes, strict=True):
        for q in route:
            busy_s[q] += nbytes / c.capacity[q]
    return FlowResult(
        completion_s=dict(zip(c.names, done, strict=True)),
        utilisation={name: busy_s[q] / makespan if makespan > 0 else 0.0 for q, name in enumerate(c.links)},
        bottleneck={name: c.links[q] if q >= 0 else None for name, q in zip(c.names, limit, strict=True)},
        makespan_s=makespan,
    )
