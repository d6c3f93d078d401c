"""What a collective consists of: point-to-point steps, the same for the simulator and the executor.

n ranks, S bytes, p the greatest power of two that is at most n, r = n - p surplus ranks, C chunks, d the depth of a
binary tree. Steps, and bytes that a rank sends (of the busiest kind of rank where ranks differ):

    algorithm          all_reduce                  reduce_scatter, all_gather    broadcast
    ring               2(n-1)      2(n-1)/n S      n-1         (n-1)/n S         n+C-2            S
    halving_doubling   2 log2 p    2(p-1)/p S      log2 p      (p-1)/p S         2 log2 p         2(p-1)/p S
       surplus ranks   +2          +S              +1 or 2     +S/n or (n-1)/n S +1               +S
    tree               2d+C-1      3S              at most these                 d+C-1            2S
    hierarchical       inside each host, then across hosts, then inside each host

- ring: each rank talks to its two neighbours; a broadcast is a chain from the root, pipelined (Thakur, Rabenseifner,
  Gropp: Optimization of Collective Communication Operations in MPICH, IJHPCA 2005).
- halving_doubling: reduce-scatter by recursive halving, all-gather by recursive doubling; a broadcast is a scatter and
  an all-gather (Rabenseifner: Optimization of Collective Reduction Operations, ICCS 2004; Thakur et al. 2005).
  Surplus ranks give what they have to their neighbour before, and get the result from it after.
- tree: one balanced binary tree, in order; up and down overlap, since a chunk starts down once it is at the root. The
  inner ranks' ports carry three chunks a step, two from the children and one from above (Sanders, Speck, Träff:
  Two-tree algorithms for full bandwidth broadcast, reduction and scan, Parallel Computing 2009; one of their two).
- hierarchical: hosts are runs of ranks r // local. All-reduce, where all hosts have equally many members: ring
  reduce-scatter inside, one ring all-reduce across hosts for each place in a host, ring all-gather inside (Cho et al.:
  BlueConnect, MLSys 2019; NCCL's trees as well have a part inside each host and one across). Otherwise, and for the
  other kinds: along a tree inside to one rank of each host, a ring among those (a chain for a broadcast), and along the
  trees back.

All four exist for all four kinds. Sums are formed in the order that the steps say, at one rank for each element, so
that runs repeat bitwise and all ranks get equal bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise

from stanza_sim.schedule.ops import Algorithm, Carrier, Collective, CollectiveKind
from stanza_sim.schedule.phases import (
    Out,
    Passing,
    Range,
    Step,
    Tree,
    chain_broadcast,
    chunks_of,
    doubling,
    even_blocks,
    exchange,
    halving,
    ring_all_gather,
    ring_reduce_scatter,
    scatter,
    tree_down,
    tree_through,
    tree_up,
)
from stanza_sim.schedule.ranks import Ranks

__all__ = ["RankStep", "Step", "has_closed_form", "member_order", "rank_steps", "steps", "steps_of", "traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """What one rank does in one step: it posts the receives, then the sends, and waits for all of them.

    What it received is added or kept in the order of `receives`.
    """

    step: int
    sends: tuple[Step, ...]
    receives: tuple[Step, ...]


def steps(
    kind: CollectiveKind,
    algorithm: Algorithm,
    members: Sequence[int],
    numel: int,
    *,
    chunk: int,
    hosts: Sequence[int] = (),
    root: int | None = None,
) -> tuple[Step, ...]:
    """The messages of a collective over `members` (ranks, in order) on `numel` elements, in ascending order of step.

    `chunk` is the most elements of one message of a pipeline. `hosts[i]` is the host of member i, ascending; only
    `hierarchical` uses it. `root` is the rank that a broadcast comes from. In a reduce-scatter and an all-gather member
    i owns slice i as `slice_bounds` cuts; a reduce-scatter leaves the rest of a rank's vector in any state.
    """
    made: Out = []
    n = len(members)
    if kind is CollectiveKind.BROADCAST:
        at = 0 if root is None else list(members).index(root)
        members = [*members[at:], *members[:at]]
        hosts = [*hosts[at:], *hosts[:at]]
    if n > 1 and numel:
        match algorithm:
            case Algorithm.RING:
                _ring(made, kind, members, numel, chunk)
            case Algorithm.HALVING_DOUBLING:
                _halving_doubling(made, kind, members, numel)
            case Algorithm.TREE:
                _tree(made, kind, members, numel, chunk)
            case Algorithm.HIERARCHICAL:
                _hierarchical(made, kind, members, numel, chunk, hosts)
    made.sort(key=lambda s: s.step)
    return tuple(made)


def _ring(out: Out, kind: CollectiveKind, members: Sequence[int], numel: int, chunk: int) -> None:
    blocks = even_blocks(0, numel, len(members))
    at = 0
    if kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER):
        at = ring_reduce_scatter(out, at, members, blocks)
    if kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER):
        ring_all_gather(out, at, members, blocks)
    if kind is CollectiveKind.BROADCAST:
        chain_broadcast(out, at, members, chunks_of(0, numel, chunk))


def _halving_doubling(out: Out, kind: CollectiveKind, members: Sequence[int], numel: int) -> None:
    """The first `surplus` pairs of members are one core rank (the former) and one surplus rank each."""
    n, whole = len(members), (0, numel)
    power = 1 << (n.bit_length() - 1)
    surplus = n - power
    core = [members[2 * j] if j < surplus else members[j + surplus] for j in range(power)]
    to_core = [(members[2 * j + 1], members[2 * j]) for j in range(surplus)]
    from_core = [(a, b) for b, a in to_core]
    if kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST):
        blocks = even_blocks(0, numel, power)
        if kind is CollectiveKind.ALL_REDUCE:
            at = exchange(out, 0, to_core, [[whole]] * surplus, reduce=True)
            at = halving(out, at, core, blocks)
        else:
            at = scatter(out, 0, core, blocks)
        at = doubling(out, at, core, blocks)
        exchange(out, at, from_core, [[whole]] * surplus, reduce=False)
        return
    slices = even_blocks(0, numel, n)
    blocks = [(slices[2 * j][0], slices[2 * j + 1][1]) if j < surplus else slices[j + surplus] for j in range(power)]
    theirs = [slices[2 * j + 1] for j in range(surplus)]
    if kind is CollectiveKind.REDUCE_SCATTER:
        at = exchange(out, 0, to_core, [[whole]] * surplus, reduce=True)
        at = halving(out, at, core, blocks)
        exchange(out, at, from_core, [[s] for s in theirs], reduce=False)
    else:
        at = exchange(out, 0, to_core, [[s] for s in theirs], reduce=False)
        at = doubling(out, at, core, blocks)
        exchange(out, at, from_core, [[(0, lo), (hi, numel)] for lo, hi in theirs], reduce=False)


def _tree(out: Out, kind: CollectiveKind, members: Sequence[int], numel: int, chunk: int) -> None:
    n, chunks = len(members), chunks_of(0, numel, chunk)
    slices = even_blocks(0, numel, n)
    match kind:
        case CollectiveKind.ALL_REDUCE:
            tree_through(out, 0, members, chunks, reduce=True)
        case CollectiveKind.REDUCE_SCATTER:
            tree_through(out, 0, members, chunks, reduce=True, down=Passing.WITHIN, blocks=slices)
        case CollectiveKind.ALL_GATHER:
            tree_through(out, 0, members, chunks, reduce=False, up=Passing.WITHIN, down=Passing.OUTSIDE, blocks=slices)
        case CollectiveKind.BROADCAST:
            tree_down(out, 0, _rooted(members), chunks)


def _rooted(members: Sequence[int]) -> list[int]:
    """`members` turned so that the first of them is the root of the tree."""
    at = len(members) - Tree.of(len(members)).root
    return [*members[at:], *members[:at]]


def _hierarchical(
    out: Out, kind: CollectiveKind, members: Sequence[int], numel: int, chunk: int, hosts: Sequence[int]
) -> None:
    inside = [[m for _, m in run] for _, run in groupby(sorted(zip(hosts, members, strict=True)), key=lambda x: x[0])]
    chunks = chunks_of(0, numel, chunk)
    if kind is CollectiveKind.BROADCAST:
        home = next(i for i, run in enumerate(inside) if members[0] in run)
        turned = [*inside[home:], *inside[:home]]
        first = turned[0].index(members[0])
        trees = [_rooted([*turned[0][first:], *turned[0][:first]]), *turned[1:]]
        at = chain_broadcast(out, 0, _leaders(trees), chunks)
        for run in trees:
            tree_down(out, at, run, chunks)
        return
    if kind is CollectiveKind.ALL_REDUCE and len({len(run) for run in inside}) == 1:
        _by_place(out, inside, numel)
        return
    ends = [sum(len(run) for run in inside[:i]) for i in range(len(inside) + 1)]
    slices = even_blocks(0, numel, len(members))
    mine = [slices[a:b] for a, b in pairwise(ends)]
    reduces = kind is not CollectiveKind.ALL_GATHER
    up = Passing.ALL if reduces else Passing.WITHIN
    pieces = [chunks if reduces else chunks_of(own[0][0], own[-1][1], chunk) for own in mine]
    at = max(
        tree_up(out, 0, run, piece, reduce=reduces, part=up, blocks=own)
        for run, piece, own in zip(inside, pieces, mine, strict=True)
    )
    leaders = _leaders(inside)
    of_hosts = [(own[0][0], own[-1][1]) for own in mine]
    if kind is CollectiveKind.ALL_REDUCE:
        of_hosts = even_blocks(0, numel, len(inside))
    if reduces:
        at = ring_reduce_scatter(out, at, leaders, of_hosts)
    if kind is not CollectiveKind.REDUCE_SCATTER:
        at = ring_all_gather(out, at, leaders, of_hosts)
    for run, own in zip(inside, mine, strict=True):
        if kind is CollectiveKind.REDUCE_SCATTER:
            tree_down(out, at, run, chunks_of(own[0][0], own[-1][1], chunk), part=Passing.WITHIN, blocks=own)
        else:
            down = Passing.ALL if kind is CollectiveKind.ALL_REDUCE else Passing.OUTSIDE
            tree_down(out, at, run, chunks, part=down, blocks=own)


def _leaders(inside: Sequence[Sequence[int]]) -> list[int]:
    return [run[Tree.of(len(run)).root] for run in inside]


def _by_place(out: Out, inside: Sequence[Sequence[int]], numel: int) -> None:
    """All-reduce over hosts with equally many members: those at one place in their hosts share one block."""
    blocks: list[Range] = even_blocks(0, numel, len(inside[0]))
    inner = max(ring_reduce_scatter(out, 0, run, blocks) for run in inside)
    at = inner
    for place, (lo, hi) in enumerate(blocks):
        across = [run[place] for run in inside]
        ranges = even_blocks(lo, hi, len(across))
        middle = ring_reduce_scatter(out, inner, across, ranges)
        at = max(at, ring_all_gather(out, middle, across, ranges))
    for run in inside:
        ring_all_gather(out, at, run, blocks)


# ---- of an op ------------------------------------------------------------------------------------------------------


def member_order(op: Collective, ranks: Ranks) -> list[int]:
    """Members of `op` in order: ascending, from the root of a broadcast."""
    members = list(ranks)
    if op.root is None:
        return members
    at = members.index(op.root)
    return members[at:] + members[:at]


def has_closed_form(op: Collective) -> bool:
    """Whether all members do alike, so that `op` can be priced without its steps: a ring, or a backend's collective."""
    return op.algorithm is Algorithm.RING and (op.by is Carrier.BACKEND or op.kind is not CollectiveKind.BROADCAST)


def steps_of(op: Collective, ranks: Ranks, itemsize: int) -> tuple[Step, ...]:
    """The messages of `op` over the group `ranks` with elements of `itemsize` bytes; see `steps`."""
    chunk = max(1, op.chunk // itemsize)
    return _steps(op.kind, op.algorithm, ranks, op.nbytes // itemsize, chunk, op.local, op.root)


@lru_cache(maxsize=64)
def _steps(
    kind: CollectiveKind, algorithm: Algorithm, ranks: Ranks, numel: int, chunk: int, local: int, root: int | None
) -> tuple[Step, ...]:
    hosts = [r // local for r in ranks] if local else ()
    return steps(kind, algorithm, list(ranks), numel, chunk=chunk, hosts=hosts, root=root)


def rank_steps(made: Sequence[Step], rank: int) -> tuple[RankStep, ...]:
    """What `rank` does in the steps in which it takes part, ascending."""
    sends: dict[int, list[Step]] = defaultdict(list)
    receives: dict[int, list[Step]] = defaultdict(list)
    for s in made:
        if s.src == rank:
            sends[s.step].append(s)
        elif s.dst == rank:
            receives[s.step].append(s)
    return tuple(
        RankStep(step=k, sends=tuple(sends[k]), receives=tuple(receives[k])) for k in sorted({*sends, *receives})
    )


def about_how_many(op: Collective, ranks: Ranks) -> int:
    """About how many messages the steps of `op` are, without working them out; 0 where that is not needed."""
    n = len(ranks)
    if n == 1 or op.by is Carrier.BACKEND or has_closed_form(op):
        return 0
    chunks = max(1, -(-op.nbytes // op.chunk))
    match op.algorithm:
        case Algorithm.RING:
            return n * chunks
        case Algorithm.HALVING_DOUBLING:
            return 2 * n * (n - 1).bit_length()
        case Algorithm.TREE:
            return 2 * n * chunks
        case Algorithm.HIERARCHICAL:
            hosts = len({rank // max(1, op.local) for rank in ranks})
            if op.kind is CollectiveKind.ALL_REDUCE:
                return 2 * n * (hosts - 1 + -(-n // hosts) - 1)
            return 2 * n * chunks + 2 * hosts * (hosts - 1)


def traffic(op: Collective, ranks: Ranks, itemsize: int) -> dict[int, tuple[int, int]]:
    """Bytes that each rank of the group sends and receives in `op`, carried out step by step.

    On a ring each rank sends what does not end, and receives what does not start, at itself: all but one slice in each
    of the two halves of an all-reduce. Elsewhere the steps are counted.
    """
    numel, n = op.nbytes // itemsize, len(ranks)
    if n > 1 and op.algorithm is Algorithm.RING:
        order = member_order(op, ranks)
        if op.kind is CollectiveKind.BROADCAST:
            return {r: (op.nbytes * (r != order[-1]), op.nbytes * (r != order[0])) for r in order}
        rest = [numel - (hi - lo) for lo, hi in even_blocks(0, numel, n)]
        found: dict[int, tuple[int, int]] = {}
        for i, r in enumerate(order):
            sent = received = 0
            if op.kind is not CollectiveKind.ALL_GATHER:
                sent, received = rest[i], rest[i - 1]
            if op.kind is not CollectiveKind.REDUCE_SCATTER:
                sent, received = sent + rest[(i + 1) % n], received + rest[i]
            found[r] = sent * itemsize, received * itemsize
        return found
    total = {r: [0, 0] for r in ranks}
    for s in steps_of(op, ranks, itemsize):
        total[s.src][0] += (s.hi - s.lo) * itemsize
        total[s.dst][1] += (s.hi - s.lo) * itemsize
    return {r: (a, b) for r, (a, b) in total.items()}


def collective_bytes(op: Collective, ranks: Ranks, rank: int, itemsize: int) -> tuple[int, int]:
    """Bytes that `rank` sends and receives in `op`: of its steps, or of a backend's collective by the closed form.

    The closed form, with n ranks and S bytes, padded to n equal parts where it is cut: a ring all-reduce sends and
    receives 2(n-1)/n S per rank, a reduce-scatter or all-gather (n-1)/n S. A broadcast is a chain from the root on, in
    rank order: each but the last sends S, each but the root receives S. (gloo sends a broadcast along a binomial
    tree: the same bytes in all, differently spread.)
    """
    n = len(ranks)
    if n == 1:
        return 0, 0
    if op.by is Carrier.STEPS:
        return traffic(op, ranks, itemsize)[rank]
    part = -(-(op.nbytes // itemsize) // n) * itemsize
    match op.kind:
        case CollectiveKind.ALL_REDUCE:
            moved = 2 * (n - 1) * op.nbytes // n
            return moved, moved
        case CollectiveKind.REDUCE_SCATTER | CollectiveKind.ALL_GATHER:
            return (n - 1) * part, (n - 1) * part
        case CollectiveKind.BROADCAST:
            root = ranks.index(op.root) if op.root is not None else 0
            place = (ranks.index(rank) - root) % n
            return (op.nbytes if place < n - 1 else 0), (op.nbytes if place else 0)
