"""GPT-2 as OpenAI published it: the numbers of the shipped table, and a language model to train."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class GPT2Layer(nn.Module):
    """A layer of a transformer: attention to earlier positions, then two linear layers, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, positions, width) of the same."""
        batch, positions, width = x.shape
        heads = (batch, positions, self.heads, width // self.heads)
        query, key, value = (part.view(heads).transpose(1, 2) for part in self.attn(self.ln_1(x)).chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, positions, width))
        mixed: torch.Tensor = self.mlp(self.ln_2(x))
        return x + mixed


class GPT2(nn.Module):
    """Tokens (batch, positions), int64, to scores of the next ones (batch, positions, vocabulary).

    The head has the weights of the table of tokens where it is `tied` to it.
    """

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int, *, tied: bool) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.h = nn.ModuleList(GPT2Layer(width, heads) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                # Layers add to what passes them: the sum keeps its size whatever their number.
                adds = name.endswith(("proj.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=0.02 / (2 * layers) ** 0.5 if adds else 0.02)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.h:
            x = layer(x)
        scores: torch.Tensor = self.lm_head(self.ln_f(x))
        return scores


def gpt2(
    vocabulary: int = 50257,
    positions: int = 1024,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    tied: bool = True,
) -> nn.Module:
    """GPT-2, the smallest of its four sizes by default (124,439,808 parameters), without dropout.

    Unless it is `tied` the head has weights of its own, so that it may be on other devices than the table of tokens.
    """
    return GPT2(vocabulary, positions, width, layers, heads, tied=tied)
