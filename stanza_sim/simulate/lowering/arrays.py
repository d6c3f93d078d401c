"""Lowering to arrays: every message of every pair of ranks as one entry, for many messages that nothing folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stanza_sim.cluster.cluster import Cluster, Usage
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Layout, Pattern, Schedule, Transfer, UnitKind
from stanza_sim.simulate.loads import LINK_PHI, Actor, Load, Lowered
from stanza_sim.simulate.lowering.fold import Folding
from stanza_sim.simulate.lowering.lower import Lowering

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """One iteration's messages in program order: arrays of one length, but for `loads`.

    `op` is the op's place in the schedule, `src` and `dst` ranks, `channel` the number of a queue, `load` an index
    into `loads`, whose work is not used: the work is `nbytes`. So are `copy_out` and `copy_in`, what staged devices
    copy before and after (see `Message`), -1 for nothing; they are empty where no device is staged.
    """

    op: I32
    src: I32
    dst: I32
    channel: I32
    nbytes: I64
    load: I32
    loads: tuple[Load, ...]
    copy_out: I32
    copy_in: I32

    def __len__(self) -> int:
        return len(self.op)

    def bytes_by_load(self) -> list[float]:
        """Bytes of all messages of each of `loads`."""
        total = np.bincount(self.load, weights=self.nbytes, minlength=len(self.loads))
        for copies in (self.copy_out, self.copy_in):
            there = copies >= 0
            if there.any():
                total += np.bincount(copies[there], weights=self.nbytes[there], minlength=len(self.loads))
        moved: list[float] = total.tolist()
        return moved


@dataclass(slots=True, kw_only=True)
class ArrayLowered(Lowered):
    """As `Lowered`, with all messages in arrays and none in the actors; `op_names` are in program order."""

    messages: Messages
    op_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfOp:
    """Per rank: messages of an op that it sends and receives, those it sends to other hosts, and the bytes."""

    sent: I64
    received: I64
    far: I64
    bytes_sent: I64
    bytes_received: I64


def message_count(schedule: Schedule) -> int:
    """Messages of one iteration, local pairs included."""
    total = 0
    for op in schedule.ops:
        if isinstance(op, Transfer):
            n, k = len(schedule.group(op.src)), len(schedule.group(op.dst))
            if op.pattern in (Pattern.ALL_PAIRS, Pattern.FAN_IN, Pattern.FAN_OUT):
                total += n * k
            else:
                total += max(n, k, len(op.pairs))
    return total


class _ArrayLowering(Lowering):
    """Lowers unfolded ranks; class c is rank c."""

    far_links: dict[int, int]

    def message_arrays(self) -> Messages:
        s = self.s
        self.far_links = {}
        channels: dict[str, int] = {}  # by what messages queue in
        names: list[str] = []
        parts: list[tuple[I32, I32, I32, I32, I64]] = []
        pairs: dict[tuple[object, ...], tuple[I32, I32]] = {}
        for index, op in enumerate(s.ops):
            if not isinstance(op, Transfer):
                continue
            key = (op.pattern, op.src, op.dst, op.pairs)
            if key not in pairs:
                pairs[key] = self.pair_arrays(op)
            src, dst = pairs[key]
            sizes = self.sizes(op, src, dst)
            if not sizes.all():  # a message of no bytes is not sent
                src, dst, sizes = src[sizes > 0], dst[sizes > 0], sizes[sizes > 0]
            if op.queue not in channels:
                names.append(op.channel)
            channel = channels.setdefault(op.queue, len(channels))
            parts.append(
                (
                    np.full(len(src), index, dtype=np.int32),
                    src,
                    dst,
                    np.full(len(src), channel, dtype=np.int32),
                    sizes,
                )
            )
        if not parts:
            empty = np.zeros(0, dtype=np.int32)
            parts.append((empty, empty, empty, empty, empty.astype(np.int64)))
        op_, src, dst, channel_, nbytes = (np.concatenate(x) for x in zip(*parts, strict=True))
        # Messages with the same two ends (and hash) use the same links; over the loopback their size matters as well.
        code = src.astype(np.int64) * s.world_size + dst
        if self.hashed:
            code = code * len(channels) + channel_
        codes, inverse = np.unique(code, return_inverse=True)
        ends = codes // len(channels) if self.hashed else codes
        paths = [
            self.path(*divmod(int(e), s.world_size), names[int(c) % len(channels)] if self.hashed else "")
            for e, c in zip(ends, codes, strict=True)
        ]
        loads: list[Load] = []
        place = np.full(len(codes), -1, dtype=np.int32)
        known: dict[object, int] = {}
        for k, path in enumerate(paths):
            if path is not None:
                if path not in known:
                    known[path] = len(loads)
                    loads.append(self.far_load(path))
                place[k] = known[path]
        load = place[inverse]
        near = load < 0
        hosts = np.array([p.host for p in self.cluster.placement], dtype=np.int64)
        sizes, inverse = np.unique(np.stack([hosts[src[near]], nbytes[near]]), axis=1, return_inverse=True)
        load[near] = len(loads) + inverse.reshape(-1)
        loads.extend(self.near_load(self.on_host[host][0], size, 1.0) for host, size in sizes.T.tolist())
        staged = near | (hosts[src] != hosts[dst])
        return Messages(
            op=op_,
            src=src,
            dst=dst,
            channel=channel_,
            nbytes=nbytes,
            load=load,
            copy_out=self.copy_arrays(src, "out", staged, loads),
            copy_in=self.copy_arrays(dst, "in", staged, loads),
            loads=tuple(loads),
        )

    def copy_arrays(self, rank: I32, side: str, staged: npt.NDArray[np.bool_], loads: list[Load]) -> I32:
        """What each message copies at its `rank` if it is `staged`, as an index into `loads`, which is extended."""
        if all(host.staging is None for host in self.cluster.hosts):
            return np.zeros(0, dtype=np.int32)
        index = np.full(self.s.world_size, -1, dtype=np.int32)
        for a in range(self.s.world_size):
            load = self.copy(a, 1.0, side)
            if load is not None:
                index[a] = len(loads)
                loads.append(load)
        found: I32 = np.where(staged, index[rank], -1)
        return found

    def far_load(self, path: tuple[Usage, float]) -> Load:
        """As `link_load` for one message of unfolded ranks: each link is a resource by itself, and on no path twice."""
        links, latency_s = path
        usage = sorted((self.far_links[q] if q in self.far_links else self.far_link(q), share) for q, share in links)
        return Load(work=0.0, usage=tuple(usage), phi=LINK_PHI, delay_s=latency_s)

    def far_link(self, link: int) -> int:
        """The resource of a link, kept in `far_links`."""
        self.far_links[link] = made = self.link(link)
        return made

    def pair_arrays(self, op: Transfer) -> tuple[I32, I32]:
        """Source and destination of every message of `op`, sources in ascending order."""
        if op.pattern in (Pattern.ALL_PAIRS, Pattern.FAN_IN, Pattern.FAN_OUT):
            a = np.fromiter(self.s.group(op.src), dtype=np.int32)
            b = np.fromiter(self.s.group(op.dst), dtype=np.int32)
            src, dst = np.repeat(a, len(b)), np.tile(b, len(a))
        else:
            both = np.array(list(self.s.pairs(op)), dtype=np.int32).reshape(-1, 2)
            src, dst = both[:, 0], both[:, 1]
        keep = src != dst
        return np.ascontiguousarray(src[keep]), np.ascontiguousarray(dst[keep])

    def sizes(self, op: Transfer, src: I32, dst: I32) -> I64:
        """Bytes of every message of `op`."""
        value = op.values[0]
        if op.slices:
            return np.array([self.s.message_bytes(op, a, b) for a, b in zip(src, dst, strict=True)], dtype=np.int64)
        if (owner_sends := value.kind.owner_sends) is not None:
            bundle = self.s.bundle(value.name)
            if bundle.layout is Layout.CUT:
                owners = np.fromiter(self.s.owners(bundle), dtype=np.int64)
                size = -(-bundle.numel // len(owners))
                bounds = np.minimum(np.arange(len(owners) + 1, dtype=np.int64) * size, bundle.numel)
                by_rank = np.zeros(self.s.world_size, dtype=np.int64)
                by_rank[owners] = np.diff(bounds) * self.s.itemsize
                sizes: I64 = by_rank[src if owner_sends else dst]
                return sizes
        return np.full(len(src), op.nbytes, dtype=np.int64)

    def rank_actor(self, rank: int, messages: dict[str, OfOp]) -> Actor:
        """The actor of `rank`; `messages` are those of each op."""
        made = self.actor(rank, with_messages=False)
        host = self.cluster.host_of(rank)
        sends: dict[int, int] = {}
        arrivals: dict[int, int] = {}
        post_s, traffic = dict(made.post_s), dict(made.traffic)
        for u in made.program.units:
            if u.kind is UnitKind.SEND:
                of = messages[u.op.name]
                sends[u.index] = int(of.sent[rank])
                post_s[u.index] = host.nic.overhead_s * int(of.far[rank])
                traffic[u.index] = (int(of.bytes_sent[rank]), 0)
            elif u.kind is UnitKind.RECV:
                of = messages[u.op.name]
                arrivals[u.index] = int(of.received[rank])
                traffic[u.index] = (0, int(of.bytes_received[rank]))
        return Actor(
            rank=rank,
            size=1,
            program=made.program,
            loads=made.loads,
            sends=sends,
            messages={},
            arrivals=arrivals,
            post_s=post_s,
            traffic=traffic,
            copies=made.copies,
        )


def lower_to_arrays(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    folding: Folding,
    cost_of: Callable[[int], CostModel],
) -> ArrayLowered:
    """As `lower`, for a folding in which every rank is a class of its own."""
    work = _ArrayLowering(schedule, model, cluster, folding, cost_of)
    messages = work.message_arrays()
    world = cluster.world_size
    host = np.array([p.host for p in cluster.placement], dtype=np.int64)
    by_op: dict[str, OfOp] = {}
    bounds = np.searchsorted(messages.op, np.arange(len(schedule.ops) + 1))
    for index, op in enumerate(schedule.ops):
        if isinstance(op, Transfer):
            part = slice(bounds[index], bounds[index + 1])
            src, dst, nbytes = messages.src[part], messages.dst[part], messages.nbytes[part]
            by_op[op.name] = OfOp(
                sent=np.bincount(src, minlength=world),
                received=np.bincount(dst, minlength=world),
                far=np.bincount(src, weights=host[src] != host[dst], minlength=world).astype(np.int64),
                bytes_sent=np.bincount(src, weights=nbytes, minlength=world).astype(np.int64),
                bytes_received=np.bincount(dst, weights=nbytes, minlength=world).astype(np.int64),
            )
    actors = [work.rank_actor(r, by_op) for r in range(world)]
    rings = work.rings()
    return ArrayLowered(
        resources=work.resources,
        actors=actors,
        rings=rings,
        links=work.used_links(),
        background=work.background(),
        buckets=work.buckets(),
        wake_s=cluster.wake_s,
        messages=messages,
        op_names=tuple(op.name for op in schedule.ops),
    )
