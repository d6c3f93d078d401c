"""From ops to activities: what each class of ranks computes, sends and joins, and which resources that takes.

Costs are looked up once here; the engine only decides when things happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster, RoutingKind, Usage, flow_key
from stanza_sim.cluster.parts import Bucket
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import (
    Axis,
    Carrier,
    Collective,
    CollectiveKind,
    Compute,
    Layout,
    Pattern,
    Phase,
    Ranks,
    Schedule,
    Transfer,
    UnitKind,
    ValueKind,
    project,
    slice_bounds,
)
from stanza_sim.schedule.cuts import slice_block, slice_numel
from stanza_sim.schedule.factors import joined_samples, require_factors
from stanza_sim.schedule.samples import data_rank_counts
from stanza_sim.simulate.background import BackgroundFlow
from stanza_sim.simulate.loads import LINK_PHI, Actor, Copies, Load, Lowered, Message, Resource, Ring
from stanza_sim.simulate.lowering.fold import Folding
from stanza_sim.simulate.plain.fluid import usage_of

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel


NEAR, FAR = 0, 1
"""Kinds of pairs of ranks: on one host, across a switch."""

_COMPLETE = (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)


class Lowering:
    """Looks up what every op costs and uses, for the rank that stands for each class."""

    def __init__(
        self,
        schedule: Schedule,
        model: ModelProfile,
        cluster: Cluster,
        folding: Folding,
        cost_of: Callable[[int], CostModel],
        *,
        stepwise: bool = False,
    ) -> None:
        self.stepwise = stepwise
        self._moved: dict[str, dict[int, tuple[int, int]]] = {}
        self.s, self.model, self.cluster, self.folding = schedule, model, cluster, folding
        self.cost_of = cost_of
        self.resources: list[Resource] = []
        self.keys: dict[tuple[object, ...], int] = {}
        self._slices: dict[tuple[str, int], Block] = {}
        self.samples = data_rank_counts(schedule)
        self.reps = [c[0] for c in folding.classes]
        self.near: list[Counter[int]] = []  # per class: how many ranks of each class are on its host
        on_host: dict[int, list[int]] = {}
        for r, p in enumerate(cluster.placement):
            on_host.setdefault(p.host, []).append(r)
        self.on_host = on_host
        self._kinds: dict[tuple[int, str, bool], dict[tuple[int, int], int]] = {}
        orbits = folding.orbits
        self.link_sizes = Counter(orbits.link_class) if orbits is not None else Counter[int]()
        self.one_switch = cluster.hosts_on_one_switch
        self.hashed = cluster.fabric.routing.kind is RoutingKind.ECMP
        for rep in self.reps:
            self.near.append(Counter(folding.class_of[r] for r in on_host[cluster.placement[rep].host]))
        self._routes: dict[tuple[int, int, bool, int], tuple[tuple[tuple[int, float], ...], float]] = {}

    # ---- resources -----------------------------------------------------------------------------------------

    def resource(self, key: tuple[object, ...], label: str, capacity: float, kind: str) -> int:
        """The index of the resource `key`, made when it is first asked for."""
        if key not in self.keys:
            self.keys[key] = len(self.resources)
            self.resources.append(Resource(label=label, capacity=capacity, kind=kind))
        return self.keys[key]

    def link(self, link: int) -> int:
        """The resource of a directed link; the NICs of hosts of one class are one."""
        made = self.cluster.links[link]
        return self.resource(self.link_key(link), made.label, made.bandwidth_Bps, "link")

    def link_key(self, link: int) -> tuple[object, ...]:
        """What links that share a resource (those that folding makes one) have in common."""
        if self.one_switch and link < 2 * len(self.cluster.hosts):
            return "nic", self.folding.host_class_of[link // 2], link % 2
        if self.folding.orbits is not None:
            return "class", self.folding.orbits.link_class[link]
        return "link", link

    def used_links(self) -> dict[int, int]:
        """The resource of every link of the cluster that has one by now."""
        found = ((q, self.keys.get(self.link_key(q))) for q in range(len(self.cluster.links)))
        return {q: resource for q, resource in found if resource is not None}

    def background(self) -> tuple[BackgroundFlow, ...]:
        """The traffic of others on every resource that is a link: on one of those that folding made one."""
        found: dict[int, BackgroundFlow] = {}
        for q, resource in self.used_links().items():
            link = self.cluster.links[q]
            if link.background is not None and resource not in found:
                found[resource] = BackgroundFlow(resource=resource, name=link.name, traffic=link.background)
        return tuple(found.values())

    def buckets(self) -> tuple[tuple[int, Bucket], ...]:
        """The token bucket of every resource that is a shaped link."""
        links = self.cluster.links
        found = {r: bucket for q, r in self.used_links().items() if (bucket := links[q].bucket) is not None}
        return tuple(found.items())

    def cores(self, rank: int) -> int:
        """The resource of the cores of the host of `rank`."""
        host = self.cluster.placement[rank].host
        h = self.cluster.hosts[host]
        return self.resource(("cores", self.folding.host_class_of[host]), f"{h.name} cores", h.cores, "cores")

    def device(self, rank: int) -> tuple[int, float]:
        """The device of `rank`, and how many ranks of its class compute on that one device."""
        place = self.cluster.placement[rank]
        sharing = [r for r in self.on_host[place.host] if self.cluster.placement[r].device == place.device]
        mix = tuple(sorted(self.folding.class_of[r] for r in sharing))
        mine = mix.count(self.folding.class_of[rank])
        key = ("device", self.folding.host_class_of[place.host], mix)
        label = f"{self.cluster.hosts[place.host].name} {self.cluster.device_of(rank)}"
        return self.resource(key, label, 1.0, "device"), float(mine)

    # ---- computations ----------------------------------------------------------------------------------------

    def compute_s(self, op: Compute, rank: int) -> float:
        """Seconds of `op` at `rank` on an idle device."""
        costs = self.cost_of(rank)
        if op.phase is Phase.RECONSTRUCT:  # as much as one weight gradient of all the samples
            block, _ = require_factors(self.s, self.model, op.target)
            return costs.backward_weight_s(block, joined_samples(self.s, op.target, rank))
        if op.phase.on_bundle:
            bundle = self.s.bundle(op.target)
            numel = bundle.numel
            if bundle.layout is Layout.CUT and op.phase is not Phase.PARTIAL:
                owners = self.s.owners(bundle)
                lo, hi = slice_bounds(numel, len(owners), owners.index(rank))
                numel = hi - lo
            elif bundle.layout is Layout.FEATURES:
                numel = slice_numel(self.s, self.model, bundle.name, rank)
            nbytes = numel * self.s.itemsize
            if op.phase is Phase.UPDATE:
                return costs.update_s(nbytes)
            if op.phase is Phase.PARTIAL:  # of the whole bundle, whoever owns it
                return costs.reduce_s(bundle.numel * self.s.itemsize, self.contributions(op.target, rank, partial=True))
            return costs.reduce_s(nbytes, self.contributions(op.target, rank))
        cut = self.s.cut(op.target)
        whole = op.phase is Phase.LOSS and cut is not None and cut.axis is Axis.ROWS  # the output has been summed
        block = self.model.block(op.target) if whole else self.block(op.target, rank)
        share = int(self.samples[op.target, op.microbatch][rank])
        samples = share * self.s.batch_per_worker // self.s.microbatches
        match op.phase:
            case Phase.FORWARD:
                return costs.forward_s(block, samples)
            case Phase.BACKWARD:
                return costs.backward_s(block, samples)
            case Phase.BACKWARD_INPUT:
                return costs.backward_input_s(block, samples)
            case Phase.BACKWARD_WEIGHT:
                return costs.backward_weight_s(block, samples)
            case _:
                return costs.loss_s(block, samples)

    def block(self, name: str, rank: int) -> Block:
        """The block called `name`, or the slice of it that `rank` has where it is cut."""
        cut = self.s.cut(name)
        if cut is None:
            return self.model.block(name)
        lo, hi = self.s.features(cut, rank)
        if (name, hi - lo) not in self._slices:
            self._slices[name, hi - lo] = slice_block(self.model.block(name), cut, hi - lo)
        return self._slices[name, hi - lo]

    def contributions(self, bundle: str, rank: int, *, partial: bool = False) -> int:
        """How many gradients or sums of `bundle` arrive at `rank`, its own too; `partial`: for a partial sum."""
        kinds = (ValueKind.PART,) if partial else (ValueKind.GRAD, ValueKind.SUM)
        return sum(len(self.s.sources(op, rank)) for kind in kinds for op in self._pushes.get((kind, bundle), ()))

    @cached_property
    def _pushes(self) -> dict[tuple[ValueKind, str], list[Transfer]]:
        """The transfers of each kind of value of each bundle."""
        found: dict[tuple[ValueKind, str], list[Transfer]] = {}
        for op in self.s.ops:
            if isinstance(op, Transfer):
                for value in dict.fromkeys(op.values):
                    found.setdefault((value.kind, value.name), []).append(op)
        return found

    def compute(self, op: Compute, rank: int) -> Load:
        """The activity of a computation at `rank`."""
        seconds = self.compute_s(op, rank)
        if self.cluster.on_cores(rank):
            sharing = self.near[self.folding.class_of[rank]][self.folding.class_of[rank]]
            return Load(work=seconds, usage=((self.cores(rank), float(sharing)),), cap=1.0)
        device, sharing_device = self.device(rank)
        return Load(work=seconds, usage=((device, sharing_device),), cap=1.0)

    # ---- messages --------------------------------------------------------------------------------------------

    def peers(self, op: Transfer, actor: int, *, sending: bool) -> dict[tuple[int, int], int]:
        """How many peers of each (class, kind of pair) the rank that stands for `actor` has in `op`."""
        rep = self.reps[actor]
        mine, other = (op.src, op.dst) if sending else (op.dst, op.src)
        if rep not in self.s.group(mine):
            return {}
        found: dict[tuple[int, int], int] = {}
        if op.pattern in _COMPLETE:
            group = self.s.group(other)
            if self.folding.orbits is not None:
                return self.kinds(actor, other, sending=sending)
            for c, members in enumerate(self.folding.classes):
                if members[0] not in group:
                    continue
                near = self.near[actor][c]
                far = len(members) - near
                if c == actor:
                    near -= 1
                if near:
                    found[c, NEAR] = near
                if far:
                    found[c, FAR] = far
            return found
        for r in self.s.destinations(op, rep) if sending else self.s.sources(op, rep):
            if r != rep:
                pair = (rep, r) if sending else (r, rep)
                key = (self.folding.class_of[r], self.kind(*pair))
                found[key] = found.get(key, 0) + 1
        return found

    def kind(self, src: int, dst: int) -> int:
        """What kind of pair two ranks are; see `Message`."""
        a, b = self.cluster.placement[src].host, self.cluster.placement[dst].host
        if a == b:
            return NEAR
        return FAR if self.folding.orbits is None else FAR + 1 + self.folding.orbits.pair_class(a, b)

    def kinds(self, actor: int, group: str, *, sending: bool) -> dict[tuple[int, int], int]:
        """How many others of `group`, by (class, kind of pair), the rank that stands for `actor` sends to or hears."""
        key = (actor, group, sending)
        if key not in self._kinds:
            rep = self.reps[actor]
            pairs = ((r, (rep, r) if sending else (r, rep)) for r in self.s.group(group) if r != rep)
            self._kinds[key] = dict(Counter((self.folding.class_of[r], self.kind(*pair)) for r, pair in pairs))
        return self._kinds[key]

    def a_peer(self, op: Transfer, actor: int, peer_class: int, kind: int) -> int:
        """One rank of `peer_class` to which the rank that stands for `actor` sends in `op`."""
        rep = self.reps[actor]
        members: Ranks = self.folding.classes[peer_class]
        candidates = members if op.pattern in _COMPLETE else self.s.destinations(op, rep)
        for r in candidates:
            if r != rep and self.folding.class_of[r] == peer_class and self.kind(rep, r) == kind:
                return r
        raise InputError(f"{op.name}: no peer in class {peer_class}")

    def message(self, op: Transfer, actor: int, peer_class: int, kind: int, count: int) -> Message:
        """The messages of `op` from class `actor` to `peer_class`."""
        src = self.reps[actor]
        dst = self.a_peer(op, actor, peer_class, kind)
        nbytes = self.s.message_bytes(op, src, dst)
        here, there = self.near[actor][actor], self.near[peer_class][peer_class]
        senders = self.peers(op, peer_class, sending=False).get((actor, kind), 0)
        path = self.path(src, dst, op.channel)
        if path is None:
            load = self.near_load(src, nbytes, float(here * count))
        else:
            flows = len(self.folding.classes[actor]) * count
            load = self.link_load(path, float(nbytes), float(here * count), float(there * senders), flows)
        staged = path is None or kind != NEAR
        return Message(
            src=actor,
            dst=peer_class,
            kind=kind,
            count=count,
            nbytes=nbytes,
            load=load,
            copy_out=self.copy(src, nbytes, "out", count) if staged else None,
            copy_in=self.copy(dst, nbytes, "in", senders) if staged else None,
        )

    def copy(self, rank: int, nbytes: float, side: str, alike: int = 1) -> Load | None:
        """A copy from a staged device to its host's memory (`out`) or back (`in`), one of `alike` at once.

        A sender copies the whole buffer before it posts the send, and a receiver once the whole buffer is there: that
        is what the executor does, so copying and sending one message are not pipelined. Copies of one device in one
        direction share its rate; those of one message overlap with sending another.
        Domain of validity: pinned memory, and copies that cost no core time. Copies asked for at once end together,
        when the last would if they were made one after another; a copy engine has the first of them ready sooner.
        """
        place = self.cluster.placement[rank]
        staging = self.cluster.hosts[place.host].staging
        if staging is None or place.device is None or nbytes <= 0:
            return None
        device, sharing = self.device(rank)
        label = f"{self.resources[device].label} staging {side}"
        copier = self.resource(("staging", device, side), label, staging.bandwidth_Bps, "staging")
        usage = ((copier, sharing * alike),)
        return Load(work=float(nbytes), usage=usage, phi=LINK_PHI, delay_s=staging.latency_s)

    def copies(self, op: Collective, rank: int) -> Copies:
        """What `rank` copies for a collective: all that it contributes, and all that it gets.

        Where the executor carries out the steps itself it copies what each of them sends and receives; here all that
        is sent is copied before the first step, and all that is received after the last, with the latency once each.
        """
        group = self.s.group(op.ranks)
        mine = op.nbytes / len(group)
        match op.kind:
            case CollectiveKind.ALL_REDUCE:
                out, into = float(op.nbytes), float(op.nbytes)
            case CollectiveKind.REDUCE_SCATTER:
                out, into = float(op.nbytes), mine
            case CollectiveKind.ALL_GATHER:
                out, into = mine, float(op.nbytes)
            case CollectiveKind.BROADCAST:
                out, into = (float(op.nbytes), 0.0) if rank == op.root else (0.0, float(op.nbytes))
        if op.by is Carrier.STEPS:
            out, into = map(float, self.moved(op)[rank])
        if len(group) == 1:
            out = into = 0.0
        return Copies(out=self.copy(rank, out, "out"), into=self.copy(rank, into, "in"))

    def near_load(self, rank: int, nbytes: int, flows: float) -> Load:
        """A message over the loopback of the host of `rank`, of which `flows` alike move at once."""
        loop = self.cluster.host_of(rank).loopback
        core_s = loop.byte_core_s + (loop.message_core_s / nbytes if nbytes else 0.0)
        return Load(
            work=float(nbytes),
            usage=((self.cores(rank), flows * core_s),) if core_s > 0 else (),
            phi=1.0 / core_s if core_s > 0 else LINK_PHI,
            cap=loop.bandwidth_Bps,
            delay_s=loop.latency_s,
        )

    def path(self, src: int, dst: int, channel: str) -> tuple[Usage, float] | None:
        """The (link, share) that a message between two ranks uses, and its latency; None over the loopback."""
        a, b = self.cluster.placement[src], self.cluster.placement[dst]
        key = flow_key(src, dst, channel) if self.hashed else 0
        links, latency_s = self.cluster.usage(a.host, b.host, key, a.device, b.device)
        return (links, latency_s) if links else None

    def link_load(
        self, path: tuple[Usage, float], work: float, leaving: float, entering: float, flows: int = 1
    ) -> Load:
        """A message over links, of which `leaving` alike use the sender's NIC and `entering` the receiver's.

        On a fabric with shared links, `flows` alike are spread evenly over the links of each class.
        """
        links, latency_s = path
        weights = [share for _, share in links]
        if (orbits := self.folding.orbits) is not None:
            weights = [share * flows / self.link_sizes[orbits.link_class[q]] for q, share in links]
        else:
            weights[0], weights[-1] = leaving, entering
        return Load(
            work=work,
            usage=usage_of((self.link(q), w) for (q, _), w in zip(links, weights, strict=True)),
            phi=LINK_PHI,
            delay_s=latency_s,
        )

    # ---- actors ----------------------------------------------------------------------------------------------

    def actor(self, index: int, *, with_messages: bool = True) -> Actor:
        """The actor of class `index`; without messages, its transfers are left to the caller."""
        rep = self.reps[index]
        program = project(self.s, rep)
        host = self.cluster.host_of(rep)
        loads: dict[int, Load] = {}
        messages: dict[int, tuple[Message, ...]] = {}
        arrivals: dict[int, int] = {}
        post_s: dict[int, float] = {}
        traffic: dict[int, tuple[int, int]] = {}
        copies: dict[int, Copies] = {}
        for u in program.units:
            match u.kind, u.op:
                case UnitKind.COMPUTE, Compute() as op:
                    loads[u.index] = self.compute(op, rep)
                case ((UnitKind.SEND | UnitKind.RECV), Transfer()) if not with_messages:
                    pass
                case UnitKind.SEND, Transfer() as op:
                    peers = self.peers(op, index, sending=True)
                    every = (self.message(op, index, c, kind, n) for (c, kind), n in sorted(peers.items()))
                    messages[u.index] = made = tuple(m for m in every if m.nbytes)
                    post_s[u.index] = host.nic.overhead_s * sum(m.count for m in made if m.kind != NEAR)
                    traffic[u.index] = (sum(m.count * m.nbytes for m in made), 0)
                case UnitKind.RECV, Transfer() as op:
                    peers = self.peers(op, index, sending=False)
                    sizes = self.received(op, index, peers)
                    arrivals[u.index] = sum(1 for nbytes in sizes if nbytes)
                    traffic[u.index] = (0, sum(sizes))
                case _, Collective() as op:
                    alone = len(self.s.group(op.ranks)) == 1
                    post_s[u.index] = 0.0 if alone else host.nic.overhead_s
                    traffic[u.index] = self.moved(op)[rep]
                    if host.staging is not None:
                        copies[u.index] = self.copies(op, rep)
                case _:
                    raise InputError(f"{u.op.name}: {u.kind} is no part of such an op")
        return Actor(
            rank=rep,
            size=len(self.folding.classes[index]),
            program=program,
            loads=loads,
            sends={u: len(m) for u, m in messages.items()},
            messages=messages,
            arrivals=arrivals,
            post_s=post_s,
            traffic=traffic,
            copies=copies,
        )

    def rings(self) -> dict[str, Ring]:
        """Every collective, by op name; those alike are looked up once."""
        from stanza_sim.simulate.lowering.collectives import collective  # which needs this module

        made: dict[tuple[object, ...], Ring] = {}
        found: dict[str, Ring] = {}
        for op in self.s.ops:
            if isinstance(op, Collective):
                key = (op.kind, op.ranks, op.nbytes, op.root, op.algorithm, op.by, op.local, op.chunk)
                if key not in made:
                    made[key] = collective(self, op)
                found[op.name] = made[key]
        return found

    def moved(self, op: Collective) -> dict[int, tuple[int, int]]:
        """Bytes that each member sends and receives in `op`."""
        from stanza_sim.simulate.lowering.collectives import moved

        if op.name not in self._moved:
            self._moved[op.name] = moved(self, op)
        return self._moved[op.name]

    def received(self, op: Transfer, index: int, peers: dict[tuple[int, int], int]) -> list[int]:
        """Bytes that the rank which stands for class `index` receives in `op` from each of `peers`."""
        sizes = []
        rep = self.reps[index]
        for (c, kind), count in peers.items():
            sources = self.folding.classes[c] if op.pattern in _COMPLETE else self.s.sources(op, rep)
            for r in sources:
                if r != rep and self.folding.class_of[r] == c and self.kind(r, rep) == kind:
                    sizes.append(count * self.s.message_bytes(op, r, rep))
                    break
        return sizes


def lower(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    folding: Folding,
    cost_of: Callable[[int], CostModel],
    *,
    stepwise: bool = False,
) -> Lowered:
    """Return the activities of `schedule` on `cluster`, for each class of `folding`.

    `cost_of(rank)` gives the cost model of the device that a rank computes on. With `stepwise`, for which nothing may
    be folded, collectives come with their steps.
    """
    work = Lowering(schedule, model, cluster, folding, cost_of, stepwise=stepwise)
    actors = [work.actor(i) for i in range(len(folding.classes))]
    rings = work.rings()
    return Lowered(
        resources=work.resources,
        actors=actors,
        rings=rings,
        links=work.used_links(),
        background=work.background(),
        buckets=work.buckets(),
        wake_s=cluster.wake_s,
    )
