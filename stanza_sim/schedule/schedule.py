"""The schedule itself: groups, bundles and ops in program order, and which pairs each transfer has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.base.tables import shortened
from stanza_sim.schedule import printing
from stanza_sim.schedule.ops import (
    Bundle,
    Collective,
    Compute,
    Cut,
    Group,
    Layout,
    Op,
    Pattern,
    Transfer,
    Value,
    ValueKind,
    feature_bounds,
    slice_bounds,
)
from stanza_sim.schedule.ranks import Ranks


@dataclass(frozen=True, kw_only=True, repr=False)
class Schedule:
    """What every rank does in one iteration: a short program over groups of ranks.

    Program order is a topological order: an op names only earlier ops in `after`, and ops of the iteration
    before in `after_previous`. Each rank that computes the first block's forward pass draws `batch_per_worker`
    samples per iteration, in `microbatches` equal parts. Beside the parameters of a bundle its owners keep `moments`
    vectors of optimiser state, which an update reads and writes: none of SGD without momentum, one with it, two of
    Adam. Schedules are immutable, compare and hash by content.
    """

    name: str
    model: str
    world_size: int
    batch_per_worker: int
    groups: tuple[Group, ...]
    bundles: tuple[Bundle, ...]
    ops: tuple[Op, ...]
    microbatches: int = 1
    itemsize: int = 4
    cuts: tuple[Cut, ...] = ()
    moments: int = 1

    def __repr__(self) -> str:
        what = f"{shortened(self.name)} of {shortened(self.model)}"
        return f"<{type(self).__name__} {what}: {len(self.ops):,} ops for {self.world_size:,} ranks>"

    @cached_property
    def _groups(self) -> dict[str, Ranks]:
        return {g.name: g.ranks for g in self.groups}

    @cached_property
    def _bundles(self) -> dict[str, Bundle]:
        return {b.name: b for b in self.bundles}

    @cached_property
    def _cuts(self) -> dict[str, Cut]:
        return {c.block: c for c in self.cuts}

    @cached_property
    def _known_peers(self) -> dict[tuple[Pattern, str, str, int, bool], Ranks]:
        """Peers that have been asked for: a few groups talk in many ops."""
        return {}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {op.name: i for i, op in enumerate(self.ops)}

    def group(self, name: str) -> Ranks:
        """Ranks of the group `name`; raises `ScheduleError`."""
        try:
            return self._groups[name]
        except KeyError:
            raise ScheduleError(f"schedule {self.name} has no group {name!r}") from None

    def bundle(self, name: str) -> Bundle:
        """The bundle called `name`; raises `ScheduleError`."""
        try:
            return self._bundles[name]
        except KeyError:
            raise ScheduleError(f"schedule {self.name} has no bundle {name!r}") from None

    def index(self, name: str) -> int:
        """Position of the op called `name` in program order; raises `ScheduleError`."""
        try:
            return self._index[name]
        except KeyError:
            raise ScheduleError(f"schedule {self.name} has no op {name!r}") from None

    def op(self, name: str) -> Op:
        """The op called `name`; raises `ScheduleError`."""
        return self.ops[self.index(name)]

    def owners(self, bundle: Bundle) -> Ranks:
        """Ranks that hold optimiser state of `bundle`."""
        return self.group(bundle.owners)

    def pieces(self, bundle: Bundle) -> int:
        """In how many slices the owners have `bundle`: 1 if it is not in slices."""
        return len(self.owners(bundle)) // bundle.replicas if bundle.layout is Layout.SHARDED else 1

    def slice_of(self, bundle: Bundle, owner: int) -> tuple[int, int]:
        """Elements [lo, hi) of `bundle`, which is in slices, that the rank `owner` has."""
        pieces = self.pieces(bundle)
        return slice_bounds(bundle.numel, pieces, self.owners(bundle).index(owner) % pieces)

    def cut(self, block: str) -> Cut | None:
        """How `block` is cut over a group, or None if it is not."""
        return self._cuts.get(block)

    def features(self, cut: Cut, rank: int) -> tuple[int, int]:
        """Features [lo, hi) of `cut` that `rank`, a member of its group, holds."""
        ranks = self.group(cut.ranks)
        return feature_bounds(cut.features, len(ranks), ranks.index(rank))

    # ---- who talks to whom -------------------------------------------------------------------------------

    def destinations(self, op: Transfer, src: int) -> Ranks:
        """Ranks to which `src` sends in `op`, itself included where the pair (src, src) exists."""
        return self._peers(op, src, sending=True)

    def sources(self, op: Transfer, dst: int) -> Ranks:
        """Ranks from which `dst` receives in `op`, itself included where the pair (dst, dst) exists."""
        return self._peers(op, dst, sending=False)

    def _peers(self, op: Transfer, rank: int, *, sending: bool) -> Ranks:
        if op.pattern is Pattern.EXPLICIT:
            return self._found_peers(op, rank, sending=sending)
        key = op.pattern, op.src, op.dst, rank, sending
        if (known := self._known_peers.get(key)) is None:
            known = self._known_peers[key] = self._found_peers(op, rank, sending=sending)
        return known

    def _found_peers(self, op: Transfer, rank: int, *, sending: bool) -> Ranks:
        mine, other = self.group(op.src), self.group(op.dst)
        if not sending:
            mine, other = other, mine
        if rank not in mine:
            return Ranks(())
        match op.pattern:
            case Pattern.FAN_IN | Pattern.FAN_OUT | Pattern.ALL_PAIRS:
                return other
            case Pattern.ONE_TO_ONE:
                i = mine.index(rank)
                return Ranks.of([other[i]])
            case Pattern.BLOCKED:
                i, n, k = mine.index(rank), len(mine), len(other)
                if n >= k:
                    return Ranks.of([other[i * k // n]])
                # The inverse of i -> i*n // k: all i with rank*k <= i*n < (rank+1)*k.
                first, last = -(-i * k // n), -(-(i + 1) * k // n)
                return Ranks.of(other[j] for j in range(first, last))
            case Pattern.EXPLICIT:
                return Ranks.of(b if sending else a for a, b in op.pairs if (a if sending else b) == rank)

    def pairs(self, op: Transfer) -> Iterator[tuple[int, int]]:
        """Yield every (source, destination) of `op`, local pairs included, sources in ascending order."""
        if op.pattern is Pattern.EXPLICIT:
            yield from sorted(op.pairs)
            return
        for s in self.group(op.src):
            for d in self.destinations(op, s):
                yield s, d

    def value_slice(self, op: Transfer, value: Value, src: int, dst: int) -> tuple[int, int] | None:
        """Elements of the bundle that the pair (src, dst) carries, or None if `value` goes whole.

        Gradients of a cut bundle, and sums of them, go to the owner of a slice, parameters come from it.
        """
        owner_sends = value.kind.owner_sends
        if owner_sends is None:
            return None
        bundle = self.bundle(value.name)
        if bundle.layout is not Layout.SHARDED:
            return None
        return self.slice_of(bundle, src if owner_sends else dst)

    def itemsize_of(self, op: Transfer | Collective) -> int:
        """Bytes of an element of what travels in `op`, but for labels, which are int64."""
        return op.wire.itemsize(self.itemsize)

    def message_bytes(self, op: Transfer, src: int, dst: int) -> int:
        """Bytes of the message from `src` to `dst`; 0 for a local pair."""
        if src == dst:
            return 0
        total = op.nbytes
        for value in op.values:
            cut = self.value_slice(op, value, src, dst)
            if cut is not None:
                total -= (self.bundle(value.name).numel - (cut[1] - cut[0])) * self.itemsize_of(op)
        return total - self._left_out(op, src, dst)

    def _left_out(self, op: Transfer, src: int, dst: int) -> int:
        """Bytes of the features that the pair (src, dst) does not carry, where values travel in slices."""
        cut = self.cut(op.slices)
        if cut is None:
            return 0
        lo, hi = self.features(cut, src if op.values[0].kind is ValueKind.ACTGRAD else dst)
        positions = self.batch_per_worker // self.microbatches * cut.positions
        return positions * (cut.features - (hi - lo)) * self.itemsize_of(op)

    # ---- samples ------------------------------------------------------------------------------------------

    @cached_property
    def microbatch_ids(self) -> range:
        """Numbers of micro-batches: the `microbatches` of a data rank, and those as which others' samples arrive."""
        return range(max([self.microbatches, *(op.landing + 1 for op in self.ops if isinstance(op, Transfer))]))

    @cached_property
    def data_ranks(self) -> Ranks:
        """Ranks that draw samples, in the order of the global batch: those that compute the first block."""
        first: str | None = None
        found: list[Ranks] = []
        for op in self.ops:
            if isinstance(op, Compute) and op.phase == "forward" and first in (None, op.target):
                first = op.target
                found.append(self.group(op.ranks))
        return found[0] if len(set(found)) == 1 else Ranks.of(r for ranks in found for r in ranks)

    @property
    def global_batch(self) -> int:
        """Samples that the whole cluster consumes per iteration."""
        return len(self.data_ranks) * self.batch_per_worker

    # ---- forms ---------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The printed form; `stanza_sim.schedule.parse` reads it back to an equal schedule."""
        return printing.print_schedule(self)

    def to_json(self) -> str:
        """The JSON form; `stanza_sim.schedule.from_json` reads it back to an equal schedule."""
        return printing.to_json(self)

    def digest(self) -> str:
        """SHA-256 of the printed form, in hexadecimal: which schedule a run executed."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def for_rank(self, rank: int) -> tuple[Op, ...]:
        """The ops that `rank` takes part in, in program order; raises `InputError` for a rank that is not there."""
        if not 0 <= rank < self.world_size:
            raise InputError(f"schedule {self.name} has ranks 0 to {self.world_size - 1}, not {rank}")
        return tuple(op for op in self.ops if self.takes_part(op, rank))

    def takes_part(self, op: Op, rank: int) -> bool:
        """Whether `rank` does something in `op`."""
        if isinstance(op, Transfer):
            return bool(len(self.destinations(op, rank)) or len(self.sources(op, rank)))
        return rank in self.group(op.ranks)
