"""A collective from its steps: message by message, or as one activity that takes as long as they do.

The activity charges every link the bytes that all steps move over it, and takes as long as the steps do with nothing
beside them. Where all ranks are in the same step at once (equal links, equal messages), that is the longest path
through the steps: a rank begins a step when it is through with the one before, and messages of one step share their
links evenly. Elsewhere the steps are carried out once on idle links; not so for a group of more than `MOST_RANKS` or
more messages than `MOST_MESSAGES`, whose longest path is an approximation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from weakref import WeakKeyDictionary

from stanza_sim.cluster.cluster import Usage
from stanza_sim.schedule import Algorithm, Collective, CollectiveKind
from stanza_sim.schedule.collectives import Step, has_closed_form, steps_of
from stanza_sim.simulate.loads import LINK_PHI, Load, Ring, StepProgram, Turn
from stanza_sim.simulate.lowering.lower import Lowering
from stanza_sim.simulate.plain.collective_sim import SETTLED, back_to_back_s
from stanza_sim.simulate.plain.fluid import usage_of

SLACK_S = 1e-15
"""What is left of a job when it has ended, but for rounding."""
MOST_RANKS = 128
"""In larger groups steps are not carried out to find how long they take."""
MOST_MESSAGES = 60_000
"""So many are carried out at most, which takes about two seconds."""
LONG, SHORT = 48, 24
"""Chunks of a pipeline that are carried out for one that has more."""

Shape = tuple[object, ...]
"""What tells apart collectives of one schedule whose steps take different times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """How long the longest path of a collective takes, and its busiest resource.

    `in_step` says that the path says all: every rank is in the same step, doing alike.
    """

    seconds: float
    in_step: bool
    busiest_s: float


@dataclass(slots=True)
class _Known:
    """What has been found about the collectives of one schedule: their longest paths, and their times alone."""

    paths: dict[Shape, _Path] = field(default_factory=dict)
    alone_s: dict[Shape, float] = field(default_factory=dict)


_known: WeakKeyDictionary[Lowering, _Known] = WeakKeyDictionary()


def priced(work: Lowering, op: Collective) -> Ring:
    """`op` as one activity, from its steps; every rank must be a class of its own."""
    ranks = work.s.group(op.ranks)
    price = _Price(work, op)
    if not price.made:
        return Ring(actors=tuple(ranks), load=Load(work=0.0, usage=()))
    load = price.load()
    if not work.stepwise:  # there the steps take the time
        load = taking(work, load, alone_s(work, op), price.path(moving=False)[0])
    return Ring(actors=tuple(ranks), load=load)


def stepped(work: Lowering, op: Collective, ring: Ring) -> Ring:
    """`ring` with the messages of `op`; every rank must be a class of its own."""
    return replace(ring, program=_program(work, op))


def _program(work: Lowering, op: Collective) -> StepProgram:
    """The messages of `op` one by one, and what each rank does with them."""
    ranks = work.s.group(op.ranks)
    price = _Price(work, op)
    loads: dict[tuple[int, int, int, bool], Load] = {}
    messages: list[tuple[int, int, Load]] = []
    sends: dict[int, dict[int, list[int]]] = {r: {} for r in ranks}
    receives: dict[int, dict[int, list[int]]] = {r: {} for r in ranks}
    for m, s in enumerate(price.made):
        key = (s.src, s.dst, s.hi - s.lo, s.reduce)
        if key not in loads:
            loads[key] = price.message(s)
        messages.append((s.src, s.dst, loads[key]))
        sends[s.src].setdefault(s.step, []).append(m)
        receives[s.dst].setdefault(s.step, []).append(m)
    turns: dict[int, tuple[Turn, ...]] = {}
    for r in ranks:
        paid = work.cluster.host_of(r).nic.overhead_s  # the unit has paid for the first message
        mine: list[Turn] = []
        for step in sorted({*sends[r], *receives[r]}):
            out = sends[r].get(step, [])
            post_s = sum(price.overhead_s(messages[m][0], messages[m][1]) for m in out) - (0.0 if mine else paid)
            mine.append(Turn(post_s=max(0.0, post_s), sends=tuple(out), receives=tuple(receives[r].get(step, []))))
        turns[r] = tuple(mine)
    return StepProgram(actors=tuple(ranks), messages=tuple(messages), turns=turns)


# ---- how long the steps take with nothing beside them ---------------------------------------------------------------


def alone_s(work: Lowering, op: Collective) -> float:
    """What `op` adds to an iteration, carried out step by step on idle links.

    Broadcasts begin when their root has something to give, so each is by itself; the others of the group go in program
    order over and over. Of pipelines with more than `LONG` chunks `LONG` and `SHORT` are carried out: every further
    chunk adds as much.
    """
    known = _known.setdefault(work, _Known())
    what = _shape(op)
    if what in known.alone_s:
        return known.alone_s[what]
    if len(work.s.group(op.ranks)) > MOST_RANKS or _path(work, _cut(work, op, SHORT)).in_step:
        known.alone_s[what] = _path(work, op).seconds
        return known.alone_s[what]
    beside = [op] if op.kind is CollectiveKind.BROADCAST else _beside(work, op)
    long = _carried_out(work, beside, LONG)
    short = _carried_out(work, beside, SHORT) if any(_cut(work, o, LONG) is not o for o in beside) else long
    for o in beside:
        most, least = long[_shape(_cut(work, o, LONG))], short[_shape(_cut(work, o, SHORT))]
        if most is None or least is None:
            most = _path(work, o).seconds
        elif _cut(work, o, LONG) is not o:
            most += (o.nbytes / _chunk_bytes(work, o) - LONG) * (most - least) / (LONG - SHORT)
        known.alone_s[_shape(o)] = most
    return known.alone_s[what]


def _path(work: Lowering, op: Collective) -> _Path:
    """The longest path through the steps of `op`."""
    paths = _known.setdefault(work, _Known()).paths
    if (what := _shape(op)) not in paths:
        price = _Price(work, op)
        seconds, in_step = price.path(moving=True)
        paths[what] = _Path(seconds=seconds, in_step=in_step, busiest_s=busiest_s(work, price.load()))
    return paths[what]


def _shape(op: Collective) -> Shape:
    return op.kind, op.ranks, op.nbytes, op.algorithm, op.local, op.chunk, op.root


def _beside(work: Lowering, op: Collective) -> list[Collective]:
    """The collectives of the group of `op`, itself included, whose ranks leave one after another; one of each shape."""
    group = work.s.group(op.ranks)
    found: dict[Shape, Collective] = {}
    for o in work.s.ops:
        if not isinstance(o, Collective) or has_closed_form(o) or o.kind is CollectiveKind.BROADCAST:
            continue
        if work.s.group(o.ranks) != group or not steps_of(o, group, work.s.itemsize):
            continue
        if _shape(o) not in found and not _path(work, _cut(work, o, SHORT)).in_step:
            found[_shape(o)] = o
    return list(found.values())


def _chunk_bytes(work: Lowering, op: Collective) -> int:
    return max(1, op.chunk // work.s.itemsize) * work.s.itemsize


def _cut(work: Lowering, op: Collective, chunks: int) -> Collective:
    """`op` with so many chunks, if it has more than `LONG` and every further chunk adds as much as the one before."""
    piped = op.algorithm is not Algorithm.HALVING_DOUBLING
    whole = op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST)
    chunk = _chunk_bytes(work, op)
    return replace(op, nbytes=chunks * chunk) if piped and whole and op.nbytes > LONG * chunk else op


def _carried_out(work: Lowering, ops: Sequence[Collective], chunks: int) -> dict[Shape, float | None]:
    """What each of `ops`, cut to so many chunks, adds to a round of them; None for those of too many messages.

    An op that begins at some ranks before the last one is through elsewhere has no time of its own: of a round each
    gets what its busiest resource needs, and of the rest as it takes longer than that alone.
    """
    cut = {_shape(o): o for o in (_cut(work, o, chunks) for o in ops)}
    group = work.s.group(ops[0].ranks)
    post_s = {r: work.cluster.host_of(r).nic.overhead_s for r in group}
    counts = {what: len(steps_of(o, group, work.s.itemsize)) for what, o in cut.items()}
    programs = {what: _program(work, o) for what, o in cut.items() if counts[what] <= MOST_MESSAGES}
    rounds = MOST_MESSAGES // sum(counts.values()) if ops[0].kind is not CollectiveKind.BROADCAST else 1
    if rounds > 1 and len(cut) == 1:
        return {what: back_to_back_s(work.resources, [p], post_s, rounds=rounds) for what, p in programs.items()}
    alone = {what: back_to_back_s(work.resources, [p], post_s, rounds=1) for what, p in programs.items()}
    if rounds < 2:
        return {what: alone.get(what) for what in cut}
    busiest = {what: _path(work, o).busiest_s for what, o in cut.items()}
    together_s = back_to_back_s(work.resources, [*programs.values()], post_s, rounds=rounds)
    rest_s = sum(alone.values()) - sum(busiest.values())
    part = (together_s - sum(busiest.values())) / rest_s if rest_s > 0 else 0.0
    return {what: busiest[what] + part * (seconds - busiest[what]) for what, seconds in alone.items()}


@dataclass(slots=True)
class _Taken:
    """What one step needs: bytes by link, core-seconds by host, and seconds of posting by rank."""

    links: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    cores: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    posts: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    messages: list[Step] = field(default_factory=list)


class _Price:
    """Looks up what the messages of one collective use; `made` are its steps."""

    def __init__(self, work: Lowering, op: Collective) -> None:
        self.work, self.op = work, op
        self.made = steps_of(op, work.s.group(op.ranks), work.s.itemsize)
        self._taken: list[_Taken] = []
        self._paths: dict[tuple[int, int], tuple[Usage, float] | None] = {}
        self._reduce: dict[int, float] = {}

    def way(self, s: Step) -> tuple[Usage, float] | None:
        """The links of a message and its latency; None over the loopback."""
        pair = (s.src, s.dst)
        if pair not in self._paths:
            self._paths[pair] = self.work.path(s.src, s.dst, self.op.ranks)
        return self._paths[pair]

    def overhead_s(self, src: int, dst: int) -> float:
        """What posting a message costs its sender."""
        cluster = self.work.cluster
        return 0.0 if cluster.same_host(src, dst) else cluster.host_of(src).nic.overhead_s

    def reduce_core_s(self, rank: int) -> float:
        """Core-seconds per byte that `rank` adds to its own; nothing where a device does it."""
        if rank not in self._reduce:
            cores = self.work.cluster.on_cores(rank)
            cost = self.work.cost_of(rank).reduce_s(self.op.nbytes, 2) if cores else 0.0
            self._reduce[rank] = cost / self.op.nbytes
        return self._reduce[rank]

    def message(self, s: Step) -> Load:
        """One message as a flow; what it costs the receiver's cores to add it goes along with it."""
        nbytes, path = self.nbytes(s), self.way(s)
        if path is None:
            load = self.work.near_load(s.src, nbytes, 1.0)
        else:
            load = self.work.link_load(path, float(nbytes), 1.0, 1.0)
        core_s = self.reduce_core_s(s.dst) if s.reduce else 0.0
        if core_s <= 0:
            return load
        usage = usage_of([*load.usage, (self.work.cores(s.dst), core_s)])
        return replace(load, usage=usage, phi=1.0 / (core_s + (1.0 / load.phi if load.phi < LINK_PHI else 0.0)))

    def taken(self) -> list[_Taken]:
        """What each step needs."""
        if self._taken:
            return self._taken
        place, hosts = self.work.cluster.placement, self.work.cluster.hosts
        found: dict[int, _Taken] = defaultdict(_Taken)
        for s in self.made:
            nbytes, step, host = self.nbytes(s), found[s.step], place[s.dst].host
            step.messages.append(s)
            if s.reduce and (core_s := self.reduce_core_s(s.dst)) > 0:
                step.cores[host] += core_s * nbytes
            path = self.way(s)
            if path is None:
                loop = hosts[host].loopback
                step.cores[host] += loop.byte_core_s * nbytes + loop.message_core_s
            else:
                for q, share in path[0]:
                    step.links[q] += share * nbytes
            step.posts[s.src] += self.overhead_s(s.src, s.dst)
        self._taken = [found[k] for k in sorted(found)]
        return self._taken

    def nbytes(self, s: Step) -> int:
        """Bytes of a message."""
        return (s.hi - s.lo) * self.work.s.itemsize

    def path(self, *, moving: bool) -> tuple[float, bool]:
        """When the last rank is through, if nothing else moves; without `moving`, latencies and overheads only.

        Messages of one step share its links evenly, each from when both its ends are in that step. Also returns whether
        all ranks are in the same step at once, doing alike.
        """
        cluster, steps = self.work.cluster, self.taken()
        through: dict[int, float] = defaultdict(float)
        in_step = True
        if steps:  # each rank has paid for its first message when it joined
            through.update({r: -min(cluster.host_of(r).nic.overhead_s, p) for r, p in steps[0].posts.items()})
        for step in steps:
            begins: list[float] = []
            on_link: dict[int, list[tuple[int, float]]] = defaultdict(list)
            for m, s in enumerate(step.messages):
                way = self.way(s)
                latency_s = cluster.host_of(s.dst).loopback.latency_s if way is None else way[1]
                begins.append(max(through[s.src] + step.posts[s.src], through[s.dst]) + latency_s)
                for q, share in way[0] if way is not None and moving else ():
                    on_link[q].append((m, share * self.nbytes(s) / cluster.links[q].bandwidth_Bps))
            ends = list(begins)
            for there in on_link.values():
                for (m, _), end in zip(there, even_ends([(begins[m], took) for m, took in there]), strict=True):
                    ends[m] = max(ends[m], end)
            if moving:
                self._beside_links(step, begins, ends)
            sizes = [float(self.nbytes(s)) for s in step.messages]
            slack_s = SETTLED * (max(ends) - min(begins))
            apart = max(begins) - min(begins) > slack_s or max(ends) - min(ends) > slack_s
            in_step = in_step and not apart and max(sizes) - min(sizes) <= SETTLED * max(sizes)
            for s, end in zip(step.messages, ends, strict=True):
                through[s.src], through[s.dst] = max(through[s.src], end), max(through[s.dst], end)
        last = max(through.values(), default=0.0)
        if self.op.kind is not CollectiveKind.BROADCAST:  # those who leave first would be first in the next one
            in_step = in_step and last - min(through.values(), default=0.0) <= SETTLED * last
        return last, in_step

    def _beside_links(self, step: _Taken, begins: list[float], ends: list[float]) -> None:
        """Let messages end no sooner than loopbacks and cores allow; those that a host's cores share, together."""
        cluster = self.work.cluster
        for m, s in enumerate(step.messages):
            host = cluster.placement[s.dst].host
            took = step.cores.get(host, 0.0) / cluster.hosts[host].cores
            if self.way(s) is None:
                took = max(took, self.nbytes(s) / cluster.hosts[host].loopback.bandwidth_Bps)
            ends[m] = max(ends[m], begins[m] + took)

    def load(self) -> Load:
        """All messages as one activity, which nothing but the resources limits."""
        work = self.work
        total: Counter[int] = Counter()
        cores: Counter[int] = Counter()
        for step in self.taken():
            total.update(step.links)
            cores.update(step.cores)
        amount = float(max(total.values(), default=0) or self.op.nbytes)  # one flow on its busiest link
        usage = [(work.link(q), b / amount) for q, b in total.items()]
        phi = LINK_PHI
        for host, core_s in cores.items():
            mine = [r for r in work.on_host[host] if r in work.s.group(self.op.ranks)]
            if core_s > 0:
                usage.append((work.cores(mine[0]), core_s / amount))
                phi = min(phi, len(mine) * amount / core_s)
        return Load(work=amount, usage=usage_of(usage), phi=phi)


def taking(work: Lowering, load: Load, seconds: float, delay_s: float) -> Load:
    """`load` such that it takes `seconds` alone, of which nothing moves in the first `delay_s`.

    Where latencies pass while others send over the same link, less than their sum is left beside what moves.
    """
    delay_s = max(0.0, min(delay_s, seconds - busiest_s(work, load)))
    return replace(load, delay_s=delay_s, cap=load.work / (seconds - delay_s) if seconds > delay_s else inf)


def busiest_s(work: Lowering, load: Load) -> float:
    """How long the resource takes that `load` uses most."""
    return max((load.work * demand / work.resources[q].capacity for q, demand in load.usage), default=0.0)


def even_ends(jobs: Sequence[tuple[float, float]]) -> list[float]:
    """When each of `jobs`, (begin, seconds that it takes alone), ends where all that have begun share evenly."""
    ends = [begin for begin, _ in jobs]
    waiting = sorted(range(len(jobs)), key=lambda j: jobs[j][0], reverse=True)
    left: dict[int, float] = {}
    now = 0.0
    while waiting or left:
        if not left:
            now = jobs[waiting[-1]][0]
        while waiting and jobs[waiting[-1]][0] <= now:
            j = waiting.pop()
            left[j] = jobs[j][1]
        least = min(left.values())
        until = now + least * len(left)
        if waiting and jobs[waiting[-1]][0] < until:
            until = jobs[waiting[-1]][0]
            least = (until - now) / len(left)
        left = {j: rest - least for j, rest in left.items()}
        for j in [j for j, rest in left.items() if rest <= SLACK_S]:
            ends[j] = until
            del left[j]
        now = until
    return ends
