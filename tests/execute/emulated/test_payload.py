"""Payloads whose contents do not matter: as long as asked for, in little memory, ordinary tensors otherwise."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from stanza_sim.execute.emulated import payload as module
from stanza_sim.execute.emulated.payload import PIECE_BYTES, payload


def proportional_bytes() -> int:
    """What this process has of the memory, pages that are mapped several times counted once."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def mapped_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:"))


@pytest.mark.parametrize("nbytes", [0, 1, 4096, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 4])
def test_as_many_zeros_as_asked_for(nbytes: int) -> None:
    found = payload(nbytes)
    assert (found.dtype, tuple(found.shape), found.is_contiguous()) == (torch.uint8, (nbytes,), True)
    assert not found.any()
    found.fill_(7)
    assert bool((found == 7).all())
    assert len(found[: nbytes // 4 * 4].view(torch.float32)) == nbytes // 4


@pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped again and again on Linux only")
def test_a_long_one_takes_a_piece_of_memory_and_gives_it_back() -> None:
    payload(2 * PIECE_BYTES).fill_(1)  # whatever the first one needs
    gc.collect()
    before, mapped = proportional_bytes(), mapped_bytes()
    found = payload(40 * PIECE_BYTES)
    found.fill_(1)
    assert proportional_bytes() - before < 2 * PIECE_BYTES
    found[5] = 9
    assert [int(found[5 + k * PIECE_BYTES]) for k in (0, 1, 39)] == [9, 9, 9]
    part = found[100:200]
    del found
    gc.collect()
    assert bool((part == 1).all())  # what is left of it keeps all of it
    del part
    gc.collect()
    assert mapped_bytes() < mapped + 2 * PIECE_BYTES


def test_where_memory_cannot_be_mapped_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(nbytes: int) -> torch.Tensor:
        raise OSError(12, "mmap")

    monkeypatch.setattr(module, "_repeated", refused)
    found = payload(2 * PIECE_BYTES)
    assert len(found) == 2 * PIECE_BYTES
    found[5] = 9
    assert int(found[5 + PIECE_BYTES]) == 0
