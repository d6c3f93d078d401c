"""What a collective costs: as one activity over the links that its steps use, or message by message.

As one activity: every link is charged the bytes that all steps move over it, and the whole never goes faster than
the steps do alone, by the longest path through them: a rank begins a step when it is through with the one before, and
messages of one step share their links evenly. The latencies and overheads on that path come first. This is
exact where all ranks are in the same step at once (equal links, one rank per host) and nothing else moves; beside other
traffic it is an approximation, which the same collective step by step does not make.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from stanza_sim.cluster.cluster import Usage
from stanza_sim.schedule import Carrier, Collective, CollectiveKind
from stanza_sim.schedule.collectives import Step, has_closed_form, steps_of, traffic
from stanza_sim.simulate.fluid import usage_of
from stanza_sim.simulate.fold import ring_order
from stanza_sim.simulate.lower import LINK_PHI, Load, Ring, StepProgram, Turn

if TYPE_CHECKING:
    from stanza_sim.simulate.lower import Lowering

SLACK_S = 1e-15
"""What is left of a job when it has ended, but for rounding."""


def collective(work: Lowering, op: Collective) -> Ring:
    """What `op` costs: rings by their closed form, the rest from their steps; with the steps where those are to run."""
    found = ring(work, op) if has_closed_form(op) else priced(work, op)
    return stepped(work, op, found) if work.stepwise else found


def moved(work: Lowering, op: Collective) -> dict[int, tuple[int, int]]:
    """Bytes that each rank sends and receives in `op`; of a backend's collective by the closed form, in whole bytes."""
    if op.by is Carrier.STEPS:
        return traffic(op, work.s.group(op.ranks), work.s.itemsize)
    order = ring_order(work.s, op)
    n = len(order)
    if op.kind is CollectiveKind.BROADCAST:
        return {r: (op.nbytes * (r != order[-1]), op.nbytes * (r != order[0])) for r in order}
    each = round(op.nbytes * (n - 1) / n) * (2 if op.kind is CollectiveKind.ALL_REDUCE else 1)
    return dict.fromkeys(order, (each, each))


def ring(work: Lowering, op: Collective) -> Ring:
    """The ring algorithm as one activity over all the links that its steps use.

    Bytes that cross each edge of the ring, and steps: all-reduce 2(N-1)/N*n in 2(N-1); reduce-scatter and
    all-gather (N-1)/N*n in N-1; broadcast, as a pipelined chain, n in N-1 (Thakur et al. 2005).
    """
    members = ring_order(work.s, op)
    n = len(members)
    actors = tuple(sorted({work.folding.class_of[r] for r in members}))
    edges = list(pairwise(members))
    steps, edge_bytes = n - 1, float(op.nbytes)
    if op.kind is not CollectiveKind.BROADCAST:
        edges.append((members[-1], members[0]))
        edge_bytes *= (n - 1) / n
        if op.kind is CollectiveKind.ALL_REDUCE:
            steps, edge_bytes = 2 * steps, 2 * edge_bytes
    if n == 1 or edge_bytes == 0:
        return Ring(actors=actors, load=Load(work=0.0, usage=()))
    place, hosts = work.cluster.placement, work.cluster.hosts
    seen = {work.folding.host_class_of[place[rep].host]: place[rep].host for rep in reversed(work.reps)}
    standing = set(seen.values())
    crossing: dict[int, float] = defaultdict(float)
    inside: Counter[int] = Counter()
    latency = overhead = 0.0
    cap = inf
    folded = len(work.folding.classes) < work.cluster.world_size
    orbits = work.folding.orbits
    met: set[tuple[int, int]] = set()
    for a, b in edges:
        ha, hb = place[a].host, place[b].host
        path = None if ha != hb else work.path(a, b, op.ranks)
        if ha == hb and path is None:
            inside[ha] += 1
            latency = max(latency, hosts[ha].loopback.latency_s)
            cap = min(cap, hosts[ha].loopback.bandwidth_Bps)
            continue
        alike = (work.folding.host_class_of[ha], work.folding.host_class_of[hb])
        if folded and orbits is None and ha not in standing and hb not in standing and alike in met:
            continue
        met.add(alike)  # the slowest edge may be one that no standing host has
        path = path or work.path(a, b, op.ranks)
        latency = max(latency, path[1] if path else 0.0)
        overhead = max(overhead, hosts[ha].nic.overhead_s if ha != hb else 0.0)
        for q, share in path[0] if path else ():
            if orbits is not None:
                crossing[q] += share / work.link_sizes[orbits.link_class[q]]
            elif not folded or q // 2 in standing:
                crossing[q] += share
    usage = [(work.link(q), w) for q, w in crossing.items()]
    phi = LINK_PHI
    reducing = op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)
    for host in standing if folded else {p.host for p in place}:
        ranks = [r for r in work.on_host.get(host, ()) if r in work.s.group(op.ranks)]
        loop = hosts[host].loopback
        core_s = inside[host] * (loop.byte_core_s + loop.message_core_s * steps / edge_bytes)
        for r in ranks:
            if reducing and work.cluster.on_cores(r):
                core_s += work.cost_of(r).reduce_s(int(op.nbytes * (n - 1) / n), 2) / edge_bytes
        if core_s > 0 and ranks:
            usage.append((work.cores(ranks[0]), core_s))
            phi = min(phi, len(ranks) / core_s)
    load = Load(
        work=edge_bytes,
        usage=usage_of(usage),
        phi=phi,
        cap=cap,
        delay_s=steps * latency + (steps - 1) * overhead,
    )
    return Ring(actors=actors, load=load)


def priced(work: Lowering, op: Collective) -> Ring:
    """`op` as one activity, from its steps; every rank must be a class of its own."""
    ranks = work.s.group(op.ranks)
    made = steps_of(op, ranks, work.s.itemsize)
    if not made:
        return Ring(actors=tuple(ranks), load=Load(work=0.0, usage=()))
    return Ring(actors=tuple(ranks), load=_Price(work, op).load(made))


def stepped(work: Lowering, op: Collective, ring: Ring) -> Ring:
    """`ring` with the messages of `op`; every rank must be a class of its own."""
    ranks, size = work.s.group(op.ranks), work.s.itemsize
    made = steps_of(op, ranks, size)
    price = _Price(work, op)
    loads: dict[tuple[int, int, int, bool], Load] = {}
    messages: list[tuple[int, int, Load]] = []
    turns: dict[int, dict[int, Turn]] = {r: {} for r in ranks}
    nothing = Turn(post_s=0.0, sends=(), receives=())
    for m, s in enumerate(made):
        key = (s.src, s.dst, s.hi - s.lo, s.reduce)
        if key not in loads:
            loads[key] = price.message(s)
        messages.append((s.src, s.dst, loads[key]))
        there = turns[s.dst].get(s.step, nothing)
        turns[s.dst][s.step] = replace(there, receives=(*there.receives, m))
        here = turns[s.src].get(s.step, nothing)
        post_s = here.post_s + price.overhead_s(s)
        turns[s.src][s.step] = Turn(post_s=post_s, sends=(*here.sends, m), receives=here.receives)
    for r, mine in turns.items():
        if mine:  # the unit has paid for the first message
            first = min(mine)
            paid = work.cluster.host_of(r).nic.overhead_s
            mine[first] = replace(mine[first], post_s=max(0.0, mine[first].post_s - paid))
    in_order = {r: tuple(mine[k] for k in sorted(mine)) for r, mine in turns.items()}
    return replace(ring, program=StepProgram(actors=tuple(ranks), messages=tuple(messages), turns=in_order))


@dataclass(slots=True)
class _Taken:
    """What one step needs: bytes by link, core-seconds by host, and seconds of posting by rank."""

    links: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    cores: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    posts: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    messages: list[Step] = field(default_factory=list)


class _Price:
    """Looks up what the messages of one collective use."""

    def __init__(self, work: Lowering, op: Collective) -> None:
        self.work, self.op = work, op
        self._paths: dict[tuple[int, int], tuple[Usage, float] | None] = {}
        self._reduce: dict[int, float] = {}

    def path(self, s: Step) -> tuple[Usage, float] | None:
        """The links of a message and its latency; None over the loopback."""
        pair = (s.src, s.dst)
        if pair not in self._paths:
            self._paths[pair] = self.work.path(s.src, s.dst, self.op.ranks)
        return self._paths[pair]

    def overhead_s(self, s: Step) -> float:
        """What posting a message costs its sender."""
        cluster = self.work.cluster
        return 0.0 if cluster.same_host(s.src, s.dst) else cluster.host_of(s.src).nic.overhead_s

    def reduce_core_s(self, rank: int) -> float:
        """Core-seconds per byte that `rank` adds to its own; nothing where a device does it."""
        if rank not in self._reduce:
            cores = self.work.cluster.on_cores(rank)
            cost = self.work.cost_of(rank).reduce_s(self.op.nbytes, 2) if cores else 0.0
            self._reduce[rank] = cost / self.op.nbytes
        return self._reduce[rank]

    def message(self, s: Step) -> Load:
        """One message as a flow; what it costs the receiver's cores to add it goes along with it."""
        nbytes, path = self.nbytes(s), self.path(s)
        if path is None:
            load = self.work.near_load(s.src, nbytes, 1.0)
        else:
            load = self.work.link_load(path, float(nbytes), 1.0, 1.0)
        core_s = self.reduce_core_s(s.dst) if s.reduce else 0.0
        if core_s <= 0:
            return load
        usage = usage_of([*load.usage, (self.work.cores(s.dst), core_s)])
        return replace(load, usage=usage, phi=1.0 / (core_s + (1.0 / load.phi if load.phi < LINK_PHI else 0.0)))

    def taken(self, made: tuple[Step, ...]) -> list[_Taken]:
        """What each step needs."""
        place, hosts = self.work.cluster.placement, self.work.cluster.hosts
        found: dict[int, _Taken] = defaultdict(_Taken)
        for s in made:
            nbytes, step, host = self.nbytes(s), found[s.step], place[s.dst].host
            step.messages.append(s)
            if s.reduce and (core_s := self.reduce_core_s(s.dst)) > 0:
                step.cores[host] += core_s * nbytes
            path = self.path(s)
            if path is None:
                loop = hosts[host].loopback
                step.cores[host] += loop.byte_core_s * nbytes + loop.message_core_s
            else:
                for q, share in path[0]:
                    step.links[q] += share * nbytes
            step.posts[s.src] += self.overhead_s(s)
        return [found[k] for k in sorted(found)]

    def nbytes(self, s: Step) -> int:
        """Bytes of a message."""
        return (s.hi - s.lo) * self.work.s.itemsize

    def alone_s(self, steps: Sequence[_Taken], *, moving: bool) -> float:
        """When the last rank is through, if nothing else moves; without `moving`, latencies and overheads only.

        Messages of one step share its links evenly, each from when both its ends are in that step.
        """
        cluster = self.work.cluster
        through: dict[int, float] = defaultdict(float)
        if steps:  # each rank has paid for its first message when it joined
            through.update({r: -min(cluster.host_of(r).nic.overhead_s, p) for r, p in steps[0].posts.items()})
        for step in steps:
            begins: list[float] = []
            on_link: dict[int, list[tuple[int, float]]] = defaultdict(list)
            for m, s in enumerate(step.messages):
                path = self.path(s)
                latency_s = cluster.host_of(s.dst).loopback.latency_s if path is None else path[1]
                begins.append(max(through[s.src] + step.posts[s.src], through[s.dst]) + latency_s)
                for q, share in path[0] if path is not None and moving else ():
                    on_link[q].append((m, share * self.nbytes(s) / cluster.links[q].bandwidth_Bps))
            ends = list(begins)
            for there in on_link.values():
                for (m, _), end in zip(there, even_ends([(begins[m], took) for m, took in there]), strict=True):
                    ends[m] = max(ends[m], end)
            if moving:
                self._beside_links(step, begins, ends)
            for s, end in zip(step.messages, ends, strict=True):
                through[s.src], through[s.dst] = max(through[s.src], end), max(through[s.dst], end)
        return max(through.values(), default=0.0)

    def _beside_links(self, step: _Taken, begins: list[float], ends: list[float]) -> None:
        """Let messages end no sooner than loopbacks and cores allow; those that a host's cores share, together."""
        cluster = self.work.cluster
        for m, s in enumerate(step.messages):
            host = cluster.placement[s.dst].host
            took = step.cores.get(host, 0.0) / cluster.hosts[host].cores
            if self.path(s) is None:
                took = max(took, self.nbytes(s) / cluster.hosts[host].loopback.bandwidth_Bps)
            ends[m] = max(ends[m], begins[m] + took)

    def load(self, made: tuple[Step, ...]) -> Load:
        """All messages as one activity; see the module."""
        work = self.work
        total: Counter[int] = Counter()
        cores: Counter[int] = Counter()
        steps = self.taken(made)
        for step in steps:
            total.update(step.links)
            cores.update(step.cores)
        delay_s = self.alone_s(steps, moving=False)
        moving_s = self.alone_s(steps, moving=True) - delay_s
        amount = float(max(total.values(), default=0) or self.op.nbytes)  # one flow on its busiest link
        usage = [(work.link(q), b / amount) for q, b in total.items()]
        phi = LINK_PHI
        for host, core_s in cores.items():
            mine = [r for r in work.on_host[host] if r in work.s.group(self.op.ranks)]
            if core_s > 0:
                usage.append((work.cores(mine[0]), core_s / amount))
                phi = min(phi, len(mine) * amount / core_s)
        cap = amount / moving_s if moving_s > 0 else inf
        return Load(work=amount, usage=usage_of(usage), phi=phi, cap=cap, delay_s=delay_s)


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
