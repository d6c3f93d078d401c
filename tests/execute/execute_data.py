"""A dataset whose samples fit no model here."""

from __future__ import annotations

import torch


class Wrong:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(3, 8, 8), 0
