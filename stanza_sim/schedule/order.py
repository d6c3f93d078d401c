"""What is complete, and where, before an op starts somewhere: the facts that the rules of data flow ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import and_
from typing import Protocol

from stanza_sim.schedule.ops import Collective, Compute, Phase, Transfer, ValueKind, dependency
from stanza_sim.schedule.rank_cells import RankCells, bits
from stanza_sim.schedule.schedule import Schedule

MAX_FACTS = 2**14
"""Most facts that are told apart. Each op keeps a set of facts per cell, so memory grows with the square: 2^14 facts
in 2^14 sets are some 30 MiB."""


_SUMMED = {Phase.REDUCE: ValueKind.GRAD, Phase.RECONSTRUCT: ValueKind.FACTORS, Phase.PARTIAL: ValueKind.PART}
"""Phases that add up gradients of ranks, and as what these arrive."""


class Order(Protocol):
    """The order of the ops of a schedule. Masks have bit a for cell a of `cells`; ops are named by position."""

    cells: RankCells

    def add(self, i: int) -> None:
        """Take in op `i`; ops are added in program order, each before anything is asked about it."""

    def before(self, i: int, j: int, at: int) -> int:
        """Cells of `at` at which op `j` is complete before op `i` starts there."""

    def before_writing(self, i: int, j: int, at: int) -> int:
        """Cells of `at` at which op `j` is complete before what op `i` brings is written there."""

    def needed(self, i: int, bundle: str, at: int) -> int:
        """Cells of `at` whose gradients of `bundle` a sum needed that is complete before op `i` writes there."""


def order_of(schedule: Schedule) -> Order:
    """The order of `schedule`, told apart per rank as far as that stays small.

    Exact at every rank where that takes at most `MAX_FACTS` facts (an op complete at a cell); else with pairwise
    transfers taken at the level of cells, see `RankCells`; else by op only, see `OpOrder`.
    """
    pulled = _pulled(schedule)
    for pairwise in (True, False) if schedule.world_size <= MAX_FACTS else (False,):
        cells = RankCells(schedule, pairwise=pairwise)
        facts = sum(at.bit_count() for at in cells.completes) + len(pulled) * cells.count
        if facts <= MAX_FACTS:
            return CellOrder(schedule, cells, pulled)
    return OpOrder(schedule, cells)


def _pulled(schedule: Schedule) -> set[str]:
    """Bundles whose parameters some transfer or collective writes in place."""
    values = [v for op in schedule.ops if isinstance(op, Transfer) for v in op.values]
    values += [op.value for op in schedule.ops if isinstance(op, Collective)]
    return {v.name for v in values if v.kind in (ValueKind.PARAM, ValueKind.COPY)}


class CellOrder:
    """The order at every cell.

    A fact is (op, cell): the op is complete there, or (bundle, cell): a sum that needed the gradients of that cell is
    complete. For each op and cell the facts that hold before it starts there are kept as one integer. They are those
    of its dependencies *at that cell* (bare X means X.recv where the cell receives, else X.sent, as the projection
    has it; a dependency in which the cell takes no part adds nothing) and of the op before it in the cell's lane.
    Arrival at a cell implies what held where its messages were sent from; a collective's completion implies what
    held at each member, a broadcast's what held at the root and at the member itself.
    """

    def __init__(self, schedule: Schedule, cells: RankCells, pulled: set[str]) -> None:
        self.cells = cells
        self._s, self._pulled = schedule, pulled
        self._bit: dict[tuple[int | str, int], int] = {}  # fact -> its bit
        self._start: list[dict[int, int]] = []  # per op: cell -> facts before it starts there
        self._done: list[dict[int, int]] = []  # per op: cell -> facts once it is complete there (a transfer: arrived)
        self._waited: dict[tuple[tuple[str, ...], int], int] = {}  # (dependencies, cell) -> facts once they are met
        self._writing: dict[int, dict[int, int]] = {}  # op -> cell -> facts before it writes there
        self._lanes: dict[tuple[str, int], int] = {}
        self._pushes: dict[tuple[ValueKind, str], list[int]] = defaultdict(list)

    def _fact(self, what: int | str, cell: int) -> int:
        return 1 << self._bit.setdefault((what, cell), len(self._bit))

    def add(self, i: int) -> None:
        """See `Order`."""
        op = self._s.ops[i]
        names = [(self._s.index(name), side) for name, side in map(dependency, op.after)]
        start: dict[int, int] = {}
        for a in bits(self.cells.gated[i]):
            key = op.after, a
            if (facts := self._waited.get(key, -1)) < 0:
                facts = 0
                for j, side in names:
                    facts |= self._met(j, side, a)
                if len(names) > 1:  # what many ops wait for is found once
                    self._waited[key] = facts
            start[a] = facts | self._lanes.get((op.lane, a), 0) if isinstance(op, Compute) else facts
        self._start.append(start)
        match op:
            case Compute():
                done = {a: facts | self._fact(i, a) | self._summed(op, a, facts) for a, facts in start.items()}
                self._lanes.update({(op.lane, a): facts for a, facts in done.items()})
            case Transfer():
                done = self._arrived(i)
                for value in op.values:
                    self._pushes[value.kind, value.name].append(i)
            case Collective():
                done = self._collected(i, op)
        self._done.append(done)

    def _met(self, j: int, side: str, cell: int) -> int:
        """Facts that hold at `cell` once its dependency on op `j` is met; none where it takes no part in it."""
        done = self._done[j].get(cell) if side != "sent" else None
        if done is None and side != "recv" and isinstance(self._s.ops[j], Transfer):
            # What was sent need not have arrived: only what was complete before it is known.
            return self._start[j].get(cell, 0)
        return done or 0

    def _arrived(self, i: int) -> dict[int, int]:
        links, start = self.cells.links(i), self._start[i]
        if links.sources is None:
            known = _union(start, links.src)
            return {a: known | self._fact(i, a) for a in bits(links.dst)}
        return {a: _union(start, src) | self._fact(i, a) for a, src in links.sources.items()}

    def _collected(self, i: int, op: Collective) -> dict[int, int]:
        start = self._start[i]
        known = _union(start, -1 if op.root is None else 1 << self.cells.of_rank(op.root))
        if op.value.kind is ValueKind.GRAD:
            known |= self._contributions(op.value.name, self.cells.gated[i])
        return {a: known | facts | self._fact(i, a) for a, facts in start.items()}

    def _summed(self, op: Compute, cell: int, facts: int) -> int:
        """Whose gradients a sum at `cell` needed: theirs whose pushes had arrived.

        Those that a partial sum needed are among the facts already, wherever it arrived.
        """
        found = 0
        if (kind := _SUMMED.get(op.phase)) is not None:
            for p in self._pushes[kind, op.target]:
                if facts & self._fact(p, cell):
                    links = self.cells.links(p)
                    src = links.src if links.sources is None else links.sources[cell]
                    found |= self._contributions(op.target, src)
        return found

    def _contributions(self, bundle: str, at: int) -> int:
        return sum(self._fact(bundle, a) for a in bits(at)) if bundle in self._pulled else 0

    def before(self, i: int, j: int, at: int) -> int:
        """See `Order`."""
        return self._hold(self._start[i], j, at)

    def before_writing(self, i: int, j: int, at: int) -> int:
        """See `Order`."""
        return self._hold(self._written(i), j, at)

    def needed(self, i: int, bundle: str, at: int) -> int:
        """See `Order`."""
        return self._hold(self._written(i), bundle, at)

    def _hold(self, facts: dict[int, int], what: int | str, at: int) -> int:
        """Cells of `at` at which the fact about `what` and that same cell is among `facts`."""
        return sum(1 << a for a in bits(at) if facts.get(a, 0) & self._fact(what, a))

    def _written(self, i: int) -> dict[int, int]:
        """Facts that hold at each cell before op `i` writes there: a message may come from any of its writers."""
        if i not in self._writing:
            op, start = self._s.ops[i], self._start[i]
            match op:
                case Transfer():
                    self._writing[i] = self._received(i, start)
                case Collective() if op.root is not None:
                    root = start[self.cells.of_rank(op.root)]
                    self._writing[i] = {a: facts | root for a, facts in start.items()}
                case _:
                    self._writing[i] = start
        return self._writing[i]

    def _received(self, i: int, start: dict[int, int]) -> dict[int, int]:
        links = self.cells.links(i)
        if links.writers is not None:
            return {a: _common([start[s] for s in bits(src)]) for a, src in links.writers.items()}
        senders = list(start)
        every = _common(list(start.values()))
        alone = links.src & self.cells.single
        if not alone & links.dst:
            return dict.fromkeys(bits(links.dst), every)
        # A cell of one rank sends itself nothing: common to all senders but itself, from both ends.
        left = [-1, *accumulate(start.values(), and_)]
        right = [-1, *accumulate(reversed(start.values()), and_)]
        place = {s: k for k, s in enumerate(senders)}
        return {
            a: left[place[a]] & right[len(senders) - 1 - place[a]] if alone >> a & 1 else every for a in bits(links.dst)
        }


def _union(facts: dict[int, int], at: int) -> int:
    """Facts that hold at any of the cells `at` of `facts` (-1: at any)."""
    found = 0
    for a, known in facts.items():
        if at >> a & 1:
            found |= known
    return found


def _common(facts: list[int]) -> int:
    found = -1
    for known in facts:
        found &= known
    return found


class OpOrder:
    """The order by op: op i comes after op j if it does so at some rank. For schedules of very many facts.

    Weaker than `CellOrder`: it takes a dependency to hold at every rank of an op if it holds at one. Which ranks make
    and hold a value is still told apart by rank.

    Computations of one lane and the same cells are a chain: each comes after those before it. So of each chain an op
    keeps only the last computation that it comes after. Whether it comes after another op is found from the ops that
    wait for that one.
    """

    def __init__(self, schedule: Schedule, cells: RankCells) -> None:
        self.cells = cells
        self._s = schedule
        self._chain: list[int | None] = []  # per op: the first computation of its chain
        self._last: list[Mapping[int, int]] = []  # per op: chain -> the last of it that the op comes after
        self._waiting: dict[int, list[tuple[int, bool]]] = defaultdict(list)  # op -> (later op, until it is complete?)
        self._met: dict[tuple[str, ...], tuple[Mapping[int, int], list[tuple[int, bool]]]] = {}
        self._lanes: dict[str, dict[int, int]] = defaultdict(dict)  # lane -> cells -> the last op there
        self._meets: dict[tuple[str, int], list[int]] = {}  # (lane, cells) -> those of the lane that overlap them
        self._pushes: dict[tuple[ValueKind, str], list[int]] = defaultdict(list)
        self._sums: dict[str, list[tuple[int, int]]] = defaultdict(list)  # (op, cells whose gradients it needed)

    def add(self, i: int) -> None:
        """See `Order`."""
        op, chain = self._s.ops[i], None
        known, waits = self._known(op.after)
        for j, completes in waits:
            self._waiting[j].append((i, completes))
        if isinstance(op, Compute):
            at, lane = self.cells.gated[i], self._lanes[op.lane]
            if at not in lane:
                lane[at] = i
                self._meets[op.lane, at] = [mask for mask in lane if mask & at]
                for mask in self._meets[op.lane, at][:-1]:
                    self._meets[op.lane, mask].append(at)
            before = [lane[mask] for mask in self._meets[op.lane, at] if lane[mask] != i]
            chain = i if lane[at] == i else self._chain[lane[at]]
            known = self._latest(known, before)
            lane[at] = i
        self._chain.append(chain)
        self._last.append(known)
        match op:
            case Compute():
                if (kind := _SUMMED.get(op.phase)) is not None:
                    needed = 0
                    for p in self._pushes[kind, op.target]:
                        if self._comes_after(i, p):
                            needed |= self.cells.gated[p]
                    self._sums[op.target].append((i, needed))
            case Transfer():
                for value in op.values:
                    self._pushes[value.kind, value.name].append(i)
            case Collective() if op.value.kind is ValueKind.GRAD:
                self._sums[op.value.name].append((i, self.cells.gated[i]))
            case _:
                pass

    def _known(self, after: tuple[str, ...]) -> tuple[Mapping[int, int], list[tuple[int, bool]]]:
        """What an op with these dependencies comes after of each chain, and those it waits for that are in none.

        Many ops may wait for the same many: what that comes to is found once.
        """
        if after not in self._met:
            names = [(self._s.index(name), side != "sent") for name, side in map(dependency, after)]
            waits = [(j, completes) for j, completes in names if self._chain[j] is None]
            self._met[after] = self._latest({}, [j for j, _ in names]), waits
        return self._met[after]

    def _latest(self, known: Mapping[int, int], before: Iterable[int]) -> Mapping[int, int]:
        """What an op comes after of each chain that comes after `known` and after the ops `before`."""
        found = dict(known)
        for j in before:
            if (own := self._chain[j]) is not None:
                found[own] = max(j, found.get(own, j))
            for chain, last in self._last[j].items():
                found[chain] = max(last, found.get(chain, last))
        return found

    def _comes_after(self, i: int, j: int) -> bool:
        """Whether op `i` comes after op `j` in the same iteration."""
        if j >= i:
            return False
        if (chain := self._chain[j]) is not None:
            return self._last[i].get(chain, -1) >= j
        behind = [k for k, completes in self._waiting[j] if completes]
        seen = set(behind)
        while behind:  # ops that start after `j`
            k = behind.pop()
            if k == i or ((chain := self._chain[k]) is not None and self._last[i].get(chain, -1) >= k):
                return True
            if chain is None:
                later = {v for v, _ in self._waiting[k] if v <= i} - seen
                seen |= later
                behind += later
        return False

    def before(self, i: int, j: int, at: int) -> int:
        """See `Order`."""
        return at & self.cells.completes[j] if self._comes_after(i, j) else 0

    def before_writing(self, i: int, j: int, at: int) -> int:
        """See `Order`."""
        return self.before(i, j, at)

    def needed(self, i: int, bundle: str, at: int) -> int:
        """See `Order`."""
        found = 0
        for j, needed in self._sums[bundle]:
            if self._comes_after(i, j):
                found |= at & needed
        return found
