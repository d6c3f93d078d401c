"""The messages of one collective: what each uses, what each step needs, and the longest path through the steps.

Contract: `Steps` looks at one collective by itself, on links that nothing else uses; every rank must be a class of its
own. How long collectives take that follow one another is `collective_cost`'s question. `CollectiveInputs` is what every
module of collectives reads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.schedule import Collective, CollectiveKind, Ranks, Schedule
from stanza_sim.schedule.collectives import Step, steps_of
from stanza_sim.simulate.lowered import Activity, StepProgram, Turn
from stanza_sim.simulate.lowering.endpoints import Ends
from stanza_sim.simulate.lowering.messages import MessageActivities, Path
from stanza_sim.simulate.lowering.resources import Resources
from stanza_sim.simulate.plain.collective_sim import SETTLED
from stanza_sim.simulate.plain.fluid import usage_of

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel

SLACK_S = 1e-15
"""What is left of a job when it has ended, but for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveInputs:
    """What collectives are priced from: the schedule that has them, loads of messages, and costs of additions."""

    schedule: Schedule
    activities: MessageActivities
    cost_of: Callable[[int], CostModel]

    @property
    def resources(self) -> Resources:
        """What messages and additions share."""
        return self.activities.resources

    @property
    def cluster(self) -> Cluster:
        """Where the ranks are."""
        return self.activities.cluster

    def group(self, op: Collective) -> Ranks:
        """The members of `op`."""
        return self.schedule.group(op.ranks)

    def adding_core_s(self, rank: int, nbytes: int) -> float:
        """Core-seconds in which `rank` adds `nbytes` to its own; nothing where a device does it."""
        return self.cost_of(rank).reduce_s(nbytes, 2) if self.cluster.on_cores(rank) else 0.0


@dataclass(slots=True)
class _Taken:
    """What one step needs: bytes by link and process, core-seconds by host, and seconds of posting by rank."""

    links: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    processes: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    cores: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    posts: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    messages: list[Step] = field(default_factory=list)


class Steps:
    """The steps of `op`; `made` are its messages, none of which is there where nothing has to move."""

    def __init__(self, inputs: CollectiveInputs, op: Collective) -> None:
        self.inputs, self.op = inputs, op
        self.made = steps_of(op, inputs.group(op), inputs.schedule.itemsize_of(op))
        self._taken: list[_Taken] = []
        self._paths: dict[tuple[int, int], Path | None] = {}
        self._adding: dict[int, float] = {}

    # ---- messages --------------------------------------------------------------------------------------------------

    def program(self) -> StepProgram:
        """The messages one by one, and what each rank does with them."""
        activities: dict[tuple[int, int, int, bool], Activity] = {}
        messages: list[tuple[int, int, Activity]] = []
        ranks = self.inputs.group(self.op)
        sends: dict[int, dict[int, list[int]]] = {r: {} for r in ranks}
        receives: dict[int, dict[int, list[int]]] = {r: {} for r in ranks}
        for m, s in enumerate(self.made):
            key = (s.src, s.dst, s.hi - s.lo, s.reduce)
            if key not in activities:
                activities[key] = self._message(s)
            messages.append((s.src, s.dst, activities[key]))
            sends[s.src].setdefault(s.step, []).append(m)
            receives[s.dst].setdefault(s.step, []).append(m)
        turns = {r: self._turns(r, sends[r], receives[r]) for r in ranks}
        return StepProgram(rank_classes=tuple(ranks), messages=tuple(messages), turns=turns)

    def _turns(self, rank: int, sends: dict[int, list[int]], receives: dict[int, list[int]]) -> tuple[Turn, ...]:
        """What `rank` does in each of its steps; `sends` and `receives` are its messages by step."""
        paid = self.inputs.cluster.host_of(rank).nic.overhead_s  # the unit has paid for the first message
        mine: list[Turn] = []
        for step in sorted({*sends, *receives}):
            out = sends.get(step, [])
            post_s = sum(self._overhead_s(self.made[m]) for m in out) - (0.0 if mine else paid)
            mine.append(Turn(post_s=max(0.0, post_s), sends=tuple(out), receives=tuple(receives.get(step, []))))
        return tuple(mine)

    def _message(self, s: Step) -> Activity:
        """One message as a flow; what it costs the receiver's cores to add it goes along with it."""
        nbytes, path = self._nbytes(s), self._way(s)
        if path is None:
            activity = self.inputs.activities.over_loopback(s.src, nbytes, 1.0)
        else:
            activity = self.inputs.activities.over_links(path, float(nbytes), 1.0, 1.0)
        activity = self.inputs.activities.endpoints.added(activity, Ends(src=s.src, dst=s.dst), nbytes)
        core_s = self._adding_core_s(s)
        if core_s <= 0:
            return activity
        cores = self.inputs.resources.cores(s.dst)
        usage = usage_of([*activity.usage, (cores, core_s)])
        return replace(activity, usage=usage, weight=min(activity.weight, 1.0 / dict(usage)[cores]))

    def _way(self, s: Step) -> Path | None:
        """The links of a message and its latency; None over the loopback."""
        pair = (s.src, s.dst)
        if pair not in self._paths:
            self._paths[pair] = self.inputs.activities.path(s.src, s.dst, self.op.ranks)
        return self._paths[pair]

    def _nbytes(self, s: Step) -> int:
        """Bytes of a message."""
        return (s.hi - s.lo) * self.inputs.schedule.itemsize_of(self.op)

    def _overhead_s(self, s: Step) -> float:
        """What posting a message costs its sender."""
        cluster = self.inputs.cluster
        return 0.0 if cluster.same_host(s.src, s.dst) else cluster.host_of(s.src).nic.overhead_s

    def _adding_core_s(self, s: Step) -> float:
        """Core-seconds that the receiver spends for each byte of a message that it adds to its own."""
        if not s.reduce:
            return 0.0
        if s.dst not in self._adding:
            self._adding[s.dst] = self.inputs.adding_core_s(s.dst, self.op.nbytes) / self.op.nbytes
        return self._adding[s.dst]

    # ---- steps -----------------------------------------------------------------------------------------------------

    def taken(self) -> list[_Taken]:
        """What each step needs."""
        if self._taken:
            return self._taken
        place, hosts = self.inputs.cluster.placement, self.inputs.cluster.hosts
        endpoints = self.inputs.activities.endpoints
        found: dict[int, _Taken] = defaultdict(_Taken)
        for s in self.made:
            nbytes, step, host = self._nbytes(s), found[s.step], place[s.dst].host
            step.messages.append(s)
            if (core_s := self._adding_core_s(s)) > 0:
                step.cores[host] += core_s * nbytes
            path = self._way(s)
            if path is None:
                loop = hosts[host].loopback
                step.cores[host] += loop.byte_core_s * nbytes + loop.message_core_s
            else:
                for q, share in path[0]:
                    step.links[q] += share * nbytes
            if endpoints.matter:
                for rank in (s.src, s.dst) if path is not None and place[s.src].host != host else ():
                    step.cores[place[rank].host] += endpoints.byte_core_s(rank, nbytes) * nbytes
                for q, _ in endpoints.through_processes(Ends(src=s.src, dst=s.dst)):
                    step.processes[q] += nbytes
            step.posts[s.src] += self._overhead_s(s)
        self._taken = [found[k] for k in sorted(found)]
        return self._taken

    def activity(self) -> Activity:
        """All messages as one activity, which nothing but the resources limits."""
        resources = self.inputs.resources
        total: Counter[int] = Counter()
        processes: Counter[int] = Counter()
        cores: Counter[int] = Counter()
        for step in self.taken():
            total.update(step.links)
            processes.update(step.processes)
            cores.update(step.cores)
        amount = float(max(total.values(), default=0) or self.op.nbytes)  # one flow on its busiest link
        usage = [(resources.link(q), b / amount) for q, b in total.items()]
        usage += [(q, b / amount) for q, b in processes.items()]
        weight = resources.link_weight
        for host, core_s in cores.items():
            mine = [r for r in resources.on_host[host] if r in self.inputs.group(self.op)]
            if core_s > 0:
                usage.append((resources.cores(mine[0]), core_s / amount))
                weight = min(weight, len(mine) * amount / core_s)
        return Activity(work=amount, usage=usage_of(usage), weight=weight)

    # ---- the longest path ------------------------------------------------------------------------------------------

    def path(self, *, moving: bool) -> tuple[float, bool]:
        """When the last rank is through, if nothing else moves; without `moving`, latencies and overheads only.

        Messages of one step share its links evenly, each from when both its ends are in that step. Also returns whether
        all ranks are in the same step at once, doing alike.

        Example: two ranks all-reduce 2 MB by halving and doubling, over links of 1 GB/s with a latency of 20 us from
        one to the other; posting costs 5 us. Both have paid for the first message when they joined, so they begin at
        -5 us. Step 1: posted at 0, the halves of 1 MB move from 20 us on and are there at 1,020 us. Step 2: posted at
        1,025 us, moving from 1,045 us on, there at 2,045 us. The path is (2.045e-3, True), and (45e-6, True) without
        `moving`.
        """
        through, in_step = self._joined_s(), True
        for step in self.taken():
            begins = self._begins(step, through)
            ends = self._ends(step, begins) if moving else begins
            in_step = in_step and self._all_alike(step, begins, ends)
            for s, end in zip(step.messages, ends, strict=True):
                through[s.src], through[s.dst] = max(through[s.src], end), max(through[s.dst], end)
        last = max(through.values(), default=0.0)
        if self.op.kind is not CollectiveKind.BROADCAST:  # those who leave first would be first in the next one
            in_step = in_step and last - min(through.values(), default=0.0) <= SETTLED * last
        return last, in_step

    def _joined_s(self) -> dict[int, float]:
        """When each rank may post its first message: it has paid for that when it joined."""
        through: dict[int, float] = defaultdict(float)
        for step in self.taken()[:1]:
            for r, post_s in step.posts.items():
                through[r] = -min(self.inputs.cluster.host_of(r).nic.overhead_s, post_s)
        return through

    def _begins(self, step: _Taken, through: dict[int, float]) -> list[float]:
        """When each message of `step` begins to move; its ends are `through` with the step before."""
        begins = []
        for s in step.messages:
            way = self._way(s)
            latency_s = self.inputs.cluster.host_of(s.dst).loopback.latency_s if way is None else way[1]
            begins.append(max(through[s.src] + step.posts[s.src], through[s.dst]) + latency_s)
        return begins

    def _ends(self, step: _Taken, begins: list[float]) -> list[float]:
        """When each message of `step` has arrived: no sooner than links, loopbacks and cores allow.

        Links are shared by the messages that are there; what a host's cores do, its messages wait for together.
        """
        cluster, endpoints = self.inputs.cluster, self.inputs.activities.endpoints
        on_link: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
        for m, s in enumerate(step.messages):
            for q, share in (self._way(s) or ((), 0.0))[0]:
                on_link["link", q].append((m, share * self._nbytes(s) / cluster.links[q].bandwidth_Bps))
            for q, _ in endpoints.through_processes(Ends(src=s.src, dst=s.dst)) if endpoints.matter else ():
                on_link["process", q].append((m, self._nbytes(s) / self.inputs.resources.made[q].capacity))
        ends = list(begins)
        for there in on_link.values():
            for (m, _), end in zip(there, even_ends([(begins[m], took) for m, took in there]), strict=True):
                ends[m] = max(ends[m], end)
        for m, s in enumerate(step.messages):
            host = cluster.placement[s.dst].host
            took = step.cores.get(host, 0.0) / cluster.hosts[host].cores
            if self._way(s) is None:
                took = max(took, self._nbytes(s) / cluster.hosts[host].loopback.bandwidth_Bps)
            elif endpoints.matter:
                took = max(took, self._nbytes(s) / endpoints.cap_Bps(s.src, s.dst, self._nbytes(s)))
            ends[m] = max(ends[m], begins[m] + took)
        return ends

    def _all_alike(self, step: _Taken, begins: list[float], ends: list[float]) -> bool:
        """Whether the messages of `step` have one size, begin together and end together."""
        sizes = [float(self._nbytes(s)) for s in step.messages]
        slack_s = SETTLED * (max(ends) - min(begins))
        apart = max(begins) - min(begins) > slack_s or max(ends) - min(ends) > slack_s
        return not apart and max(sizes) - min(sizes) <= SETTLED * max(sizes)


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
