"""Dropout whose masks do not depend on how the work is split: a counter-based hash instead of a generator.

An element is kept by a hash of (seed, step, module, position of the sample in the global batch, element index), so a
sample is dropped alike whichever rank computes it, with whichever other samples, on whichever device. The hash is
`lowbias32` (C. Wellons, hash-prospector, 2018), a bijection of 32-bit words with low bias, in int32 that wraps.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_GOLDEN = 0x9E3779B1
_M1, _M2 = 0x7FEB352D, 0x846CA68B - (1 << 32)


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _mix(x: Tensor) -> Tensor:
    """`lowbias32` of an int32 tensor, in place. A shift of a signed word copies its sign: mask that off."""
    x ^= (x >> 16) & 0xFFFF
    x *= _M1
    x ^= (x >> 15) & 0x1FFFF
    x *= _M2
    x ^= (x >> 16) & 0xFFFF
    return x


def keep_mask(
    key: str,
    seed: int,
    step: int,
    positions: Tensor,
    numel: int,
    p: float,
    first_element: int = 0,
    row: tuple[int, int] | None = None,
) -> Tensor:
    """Return which of `numel` elements of each sample, from `first_element` on, are kept: boolean (samples, numel).

    With `row`, (positions of a sample, features of each), they are a slice of the features of every position, which
    begins with the feature `first_element`.

    `positions` are the samples' positions in the global batch (int32, on the device to use); each element is
    dropped with probability `p`.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{key}".encode(), digest_size=8).digest()
    first, second = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    rows = _mix(positions * _signed(_GOLDEN) + _signed(first)) ^ _signed(second)
    elements = torch.arange(first_element, first_element + numel, dtype=torch.int32, device=positions.device)
    if row:
        places, features = row
        starts = torch.arange(places, dtype=torch.int32, device=positions.device) * features
        elements = (starts[:, None] + elements[None, : numel // places]).view(-1)
    columns = elements * _signed(_GOLDEN)
    words = _mix(rows[:, None] ^ columns[None, :])
    threshold = _signed(round(p * (1 << 32)) - (1 << 31)) if p < 1 else (1 << 31) - 1
    return words >= threshold


class CounterDropout(nn.Module):
    """Dropout with rate `p`; `step` and `positions` (int32, one for each sample) say what the mask is keyed by.

    Where a rank has but a slice of the features, `first_element` is the first that it sees, and `features` are all.
    """

    def __init__(self, key: str, p: float, seed: int) -> None:
        super().__init__()
        self.key, self.p, self.seed = key, p, seed
        self.step = 0
        self.first_element = 0
        self.features = 0
        self.positions: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x` (samples first) in training and scale the rest by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        if self.positions is None or len(self.positions) != len(x):
            raise RuntimeError(f"dropout {self.key} was not told which samples it sees")
        if self.p >= 1:
            return x * 0
        numel, first = x[0].numel(), self.first_element
        row = (numel // x.shape[-1], self.features) if self.features and x.dim() > 2 else None
        keep = keep_mask(self.key, self.seed, self.step, self.positions, numel, self.p, first, row)
        return x * keep.view(x.shape).to(x.dtype).mul_(1 / (1 - self.p))
