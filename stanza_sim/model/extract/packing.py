"""Several tensors of a sample as one vector: what passes between two blocks where more than one tensor is live."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(*tensors: Tensor) -> Tensor:
    """Return (batch, numbers): the tensors of each sample behind one another. Whole numbers are exact below 2**24."""
    rows = [t.reshape(len(t), -1) for t in tensors]
    return torch.cat([r if r.is_floating_point() else r.to(torch.float32) for r in rows], 1)


def unpack(packed: Tensor, start: int, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    """Return (batch, *shape) of what was packed from the column `start` on, as `dtype` if it is no float."""
    numel = 1
    for n in shape:
        numel *= n
    part = packed[:, start : start + numel].reshape(len(packed), *shape)
    return part if dtype is None else part.to(dtype)
