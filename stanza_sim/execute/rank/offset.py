"""Offsets between clocks of ranks by exchanges with rank 0 (F. Cristian, Probabilistic clock synchronization, 1989)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from stanza_sim.execute.rank.clock import now

EXCHANGES = 12


def estimate_offset(rank: int, ranks: int, boot: str, boot_of_rank0: str) -> tuple[float, float]:
    """Return (time on the own clock, seconds to add to get rank 0's); every rank below `ranks` must call this.

    Of several exchanges the one with the shortest round trip is used: its error is at most half that trip. On
    rank 0's own machine an offset within this error is taken for none, since processes there share one clock.
    """
    word = torch.zeros(1, dtype=torch.float64)
    if rank == 0:
        for r in range(1, ranks):
            for _ in range(EXCHANGES):
                dist.recv(word, r)
                word[0] = now()
                dist.send(word, r)
        return now(), 0.0
    best = float("inf")
    offset = at = 0.0
    for _ in range(EXCHANGES):
        begin = now()
        dist.send(word, 0)
        dist.recv(word, 0)
        end = now()
        if end - begin < best:
            best, at = end - begin, (begin + end) / 2
            offset = float(word[0]) - at
    if boot and boot == boot_of_rank0 and abs(offset) <= best / 2:
        offset = 0.0
    return at, offset
