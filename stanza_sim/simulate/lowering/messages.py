"""What messages cost, and which of them are alike: activities over links and loopback, staging copies, classes of
peers.

Contract: `MessageActivities` turns a number of bytes between two ranks into activities on resources, whoever sends
them, be it a transfer or a step of a collective. `MessageClasses` says which peers each class of ranks has in a
transfer. Peers are alike if they are of one class and are reached by pairs of one kind: `NEAR` on one host, `FAR`
across a switch, and from `FAR` + 1 on the classes of pairs of hosts on a fabric with shared links.
"""

from __future__ import annotations

from collections import Counter

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import RoutingKind, Usage, flow_key
from stanza_sim.schedule import Ranks, Schedule, Transfer
from stanza_sim.simulate.lowered import Activity, Message
from stanza_sim.simulate.lowering.endpoints import Endpoints, Ends
from stanza_sim.simulate.lowering.fold import COMPLETE
from stanza_sim.simulate.lowering.resources import Resources
from stanza_sim.simulate.plain.fluid import usage_of

NEAR, FAR = 0, 1
"""Kinds of pairs of ranks: on one host, across a switch."""

Path = tuple[Usage, float]
"""The (link, share of the bytes) pairs that a message uses, and its latency in seconds."""
Peers = dict[tuple[int, int], int]
"""How many peers there are of each (class, kind of pair)."""


class MessageActivities:
    """What moving bytes between two ranks takes of `resources`."""

    def __init__(self, resources: Resources) -> None:
        self.resources, self.cluster = resources, resources.cluster
        self.endpoints = Endpoints(resources)
        self.hashed = self.cluster.fabric.routing.kind is RoutingKind.ECMP
        """Whether the links of a message depend on its channel."""

    def path(self, src: int, dst: int, channel: str) -> Path | None:
        """The links of a message between two ranks and its latency; None over the loopback."""
        a, b = self.cluster.placement[src], self.cluster.placement[dst]
        key = flow_key(src, dst, channel) if self.hashed else 0
        links, latency_s = self.cluster.usage(a.host, b.host, key, a.device, b.device)
        return (links, latency_s) if links else None

    def over_links(self, path: Path, work: float, leaving: float, entering: float, flows: int = 1) -> Activity:
        """A message over links, of which `leaving` alike use the sender's NIC and `entering` the receiver's.

        On a fabric with shared links, `flows` alike are spread evenly over the links of each class.
        """
        links, latency_s = path
        weights = [share for _, share in links]
        if (orbits := self.resources.folding.orbits) is not None:
            sizes = self.resources.link_sizes
            weights = [share * flows / sizes[orbits.link_class[q]] for q, share in links]
        else:
            weights[0] *= leaving
            weights[-1] *= entering
        return Activity(
            work=work,
            usage=usage_of((self.resources.link(q), w) for (q, _), w in zip(links, weights, strict=True)),
            weight=self.resources.link_weight,
            delay_s=latency_s,
        )

    def over_loopback(self, rank: int, nbytes: int, flows: float) -> Activity:
        """A message over the loopback of the host of `rank`, of which `flows` alike move at once."""
        loop = self.cluster.host_of(rank).loopback
        core_s = loop.byte_core_s + (loop.message_core_s / nbytes if nbytes else 0.0)
        return Activity(
            work=float(nbytes),
            usage=((self.resources.cores(rank), flows * core_s),) if core_s > 0 else (),
            weight=1.0 / core_s if core_s > 0 else self.resources.link_weight,
            cap=loop.bandwidth_Bps,
            delay_s=loop.latency_s,
        )

    def copy(self, rank: int, nbytes: float, side: str, alike: int = 1) -> Activity | None:
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
        device, sharing = self.resources.device(rank)
        label = f"{self.resources.made[device].label} staging {side}"
        rate_Bps, latency_s = staging.way(side)
        copier = self.resources.resource(("staging", device, side), label, rate_Bps, "staging")
        usage = ((copier, sharing * alike),)
        return Activity(work=float(nbytes), usage=usage, weight=self.resources.link_weight, delay_s=latency_s)


class MessageClasses:
    """The messages of the transfers of `schedule`, those that are alike as one; a class is known by its number."""

    def __init__(self, schedule: Schedule, activities: MessageActivities) -> None:
        self.schedule, self.activities = schedule, activities
        self.resources, self.folding = activities.resources, activities.resources.folding
        self._of_group: dict[tuple[int, str, bool], Peers] = {}

    def peers(self, op: Transfer, rank_class: int, *, sending: bool) -> Peers:
        """To whom the rank that stands for class `rank_class` sends in `op`, or from whom it receives."""
        rep = self.resources.reps[rank_class]
        mine, other = (op.src, op.dst) if sending else (op.dst, op.src)
        if rep not in self.schedule.group(mine):
            return {}
        if op.pattern in COMPLETE:
            if self.folding.orbits is not None:
                return self._by_pairs(rank_class, other, sending=sending)
            return self._by_classes(rank_class, other)
        partners = self.schedule.destinations(op, rep) if sending else self.schedule.sources(op, rep)
        return dict(Counter(self._peer(rep, r, sending=sending) for r in partners if r != rep))

    def sent(self, op: Transfer, rank_class: int) -> tuple[Message, ...]:
        """The messages of `op` that class `rank_class` sends; one of no bytes is not sent."""
        peers = self.peers(op, rank_class, sending=True)
        every = (self._message(op, rank_class, c, kind, count) for (c, kind), count in sorted(peers.items()))
        return tuple(m for m in every if m.nbytes)

    def received(self, op: Transfer, rank_class: int) -> list[int]:
        """Bytes that the rank which stands for class `rank_class` receives in `op` from each class of peers, 0
        included."""
        sizes = []
        rep = self.resources.reps[rank_class]
        for (c, kind), count in self.peers(op, rank_class, sending=False).items():
            sources = self.folding.classes[c] if op.pattern in COMPLETE else self.schedule.sources(op, rep)
            for r in sources:
                if r != rep and self._peer(rep, r, sending=False) == (c, kind):
                    sizes.append(count * self.schedule.message_bytes(op, r, rep))
                    break
        return sizes

    # ---- kinds of pairs --------------------------------------------------------------------------------------------

    def _peer(self, rank: int, other: int, *, sending: bool) -> tuple[int, int]:
        """The class of `other`, and the kind of pair that `rank` and it are when `rank` sends, or receives."""
        placement = self.resources.cluster.placement
        a, b = placement[rank].host, placement[other].host
        kind = NEAR if a == b else FAR
        if a != b and self.folding.orbits is not None:
            kind = FAR + 1 + self.folding.orbits.pair_class(*((a, b) if sending else (b, a)))
        return self.folding.class_of[other], kind

    def _by_pairs(self, rank_class: int, group: str, *, sending: bool) -> Peers:
        """All others of `group`, pair by pair: on a fabric with shared links the two hosts matter."""
        key = (rank_class, group, sending)
        if key not in self._of_group:
            rep = self.resources.reps[rank_class]
            others = (r for r in self.schedule.group(group) if r != rep)
            self._of_group[key] = dict(Counter(self._peer(rep, r, sending=sending) for r in others))
        return self._of_group[key]

    def _by_classes(self, rank_class: int, group: str) -> Peers:
        """All others of `group`, class by class: a class is in a group as a whole, and a pair is near or far."""
        found: Peers = {}
        ranks = self.schedule.group(group)
        for c, members in enumerate(self.folding.classes):
            if members[0] not in ranks:
                continue
            near = self.resources.near[rank_class][c]
            far = len(members) - near
            if c == rank_class:
                near -= 1
            if near:
                found[c, NEAR] = near
            if far:
                found[c, FAR] = far
        return found

    # ---- messages --------------------------------------------------------------------------------------------------

    def _message(self, op: Transfer, rank_class: int, peer_class: int, kind: int, count: int) -> Message:
        """The messages of `op` from class `rank_class` to `peer_class`."""
        src = self.resources.reps[rank_class]
        dst = self._a_peer(op, rank_class, peer_class, kind)
        nbytes = self.schedule.message_bytes(op, src, dst)
        near = self.resources.near
        here, there = near[rank_class][rank_class], near[peer_class][peer_class]
        senders = self.peers(op, peer_class, sending=False).get((rank_class, kind), 0)
        path = self.activities.path(src, dst, op.channel)
        if path is None:
            activity = self.activities.over_loopback(src, nbytes, float(here * count))
        else:
            flows = len(self.folding.classes[rank_class]) * count
            activity = self.activities.over_links(
                path, float(nbytes), float(here * count), float(there * senders), flows
            )
        if self.activities.endpoints.matter:
            ends = Ends(src=src, dst=dst, sends=count, receives=senders, leaving=here * count, entering=there * senders)
            activity = self.activities.endpoints.added(activity, ends, nbytes)
        staged = path is None or kind != NEAR
        return Message(
            src=rank_class,
            dst=peer_class,
            kind=kind,
            count=count,
            nbytes=nbytes,
            activity=activity,
            copy_out=self.activities.copy(src, nbytes, "out", count) if staged else None,
            copy_in=self.activities.copy(dst, nbytes, "in", senders) if staged else None,
        )

    def _a_peer(self, op: Transfer, rank_class: int, peer_class: int, kind: int) -> int:
        """One rank of `peer_class` to which the rank that stands for `rank_class` sends in `op`."""
        rep = self.resources.reps[rank_class]
        members: Ranks = self.folding.classes[peer_class]
        candidates = members if op.pattern in COMPLETE else self.schedule.destinations(op, rep)
        for r in candidates:
            if r != rep and self._peer(rep, r, sending=True) == (peer_class, kind):
                return r
        raise InputError(f"{op.name}: no peer in class {peer_class}")
