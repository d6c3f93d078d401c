"""What follows from a rank's program before anything runs: who talks to whom, and which thread waits for what. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from stanza_sim.schedule import Compute, RankProgram, Ranks, Transfer, UnitKind

Endpoint = tuple[int, str]
"""(the other rank, channel)."""
Worker = str | Ranks
"""Who carries out computations and collectives, one at a time: the lane of the former, the peers of the latter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTables:
    """Look-ups for the engine, so that little is left to do for each message. Units are indices into the program.

    `transfers[unit]` is the op of a unit that sends or receives, `peers[unit]` the ranks that it exchanges a message
    with (messages of 0 bytes are left out), `nbytes[unit, peer]` the size of that message. `worker_of[unit]` says who
    carries out any other unit. `arrivals[source, channel]` are the units that receive from there, in program order.
    `channels` are those on which this rank has messages.

    Nothing depends on most sends: they only delay the reuse of buffers. `awaited_sends` are those on which something
    does, or whose channel has credit; `awaited_from` are the endpoints that they go to.
    """

    transfers: Mapping[int, Transfer]
    peers: Mapping[int, tuple[int, ...]]
    nbytes: Mapping[tuple[int, int], int]
    worker_of: Mapping[int, Worker]
    arrivals: Mapping[Endpoint, tuple[int, ...]]
    channels: tuple[str, ...]
    awaited_sends: frozenset[int]
    awaited_from: tuple[Endpoint, ...]
    sends_any: bool

    def by_source(self) -> dict[Endpoint, tuple[int, ...]]:
        """The units that receive from each source, on all channels; each endpoint's channel is empty."""
        found: dict[Endpoint, tuple[int, ...]] = {}
        for (src, _), units in self.arrivals.items():
            found[src, ""] = (*found.get((src, ""), ()), *units)
        return found

    @classmethod
    def of(cls, program: RankProgram, nbytes: Callable[[Transfer, int, int], int]) -> Self:
        """The tables of `program`, whose messages have `nbytes(op, source, destination)` bytes."""
        transfers = {u.index: u.op for u in program.units if isinstance(u.op, Transfer)}
        sizes = _sizes(program, nbytes)
        peers = {unit: tuple(p for p in sizes[unit] if sizes[unit][p]) for unit in transfers}
        sending = {u.index for u in program.units if u.kind is UnitKind.SEND}
        needed = {j for u in program.units for j in (*u.needs, *u.needs_previous)}
        awaited = frozenset(unit for unit in sending if unit in needed or transfers[unit].credit)
        arrivals: dict[Endpoint, list[int]] = {}
        for unit, op in transfers.items():
            for src in () if unit in sending else peers[unit]:
                arrivals.setdefault((src, op.channel), []).append(unit)
        return cls(
            transfers=transfers,
            peers=peers,
            nbytes={(unit, p): sizes[unit][p] for unit in transfers for p in peers[unit]},
            worker_of=_workers(program),
            arrivals={source: tuple(units) for source, units in arrivals.items()},
            channels=tuple(dict.fromkeys(op.channel for unit, op in transfers.items() if peers[unit])),
            awaited_sends=awaited,
            awaited_from=tuple(
                dict.fromkeys((p, transfers[unit].channel) for unit in sorted(awaited) for p in peers[unit])
            ),
            sends_any=any(peers[unit] for unit in sending),
        )


def _sizes(program: RankProgram, nbytes: Callable[[Transfer, int, int], int]) -> dict[int, dict[int, int]]:
    """For each unit that sends or receives, the bytes of its message with each peer."""
    rank, found = program.rank, {}
    for u in program.units:
        if isinstance(u.op, Transfer):
            out = u.kind is UnitKind.SEND
            found[u.index] = {p: nbytes(u.op, rank, p) if out else nbytes(u.op, p, rank) for p in u.peers}
    return found


def _workers(program: RankProgram) -> dict[int, Worker]:
    """Who carries out each computation and each collective."""
    return {
        u.index: u.op.lane if isinstance(u.op, Compute) else u.peers
        for u in program.units
        if not isinstance(u.op, Transfer)
    }
