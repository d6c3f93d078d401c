"""GPT-2, BERT and Llama as they are published: what the presets of `model.language` describe, to train and extract."""

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

    A head that is tied has the weights of the table of tokens.
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
    """GPT-2, the smallest of its four sizes by default (124,439,808 parameters), without dropout."""
    return GPT2(vocabulary, positions, width, layers, heads, tied=tied)


class BertLayer(nn.Module):
    """A layer of BERT: attention to all positions, then two linear layers, each added to its input and normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj, self.norm_1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm_2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, positions, width) of the same."""
        batch, positions, width = x.shape
        heads = (batch, positions, self.heads, width // self.heads)
        query, key, value = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value)
        x = self.norm_1(x + self.proj(seen.transpose(1, 2).reshape(batch, positions, width)))
        mixed: torch.Tensor = self.norm_2(x + self.mlp(x))
        return mixed


class BertMasked(nn.Module):
    """Tokens (batch, positions), int64, to scores of the masked ones (batch, positions, vocabulary): one segment.

    Scores are computed at all positions, whichever are masked, as in `transformers`. A head that is tied has the
    weights of the table of tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        segments: int,
        tied: bool,
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.segments, self.norm = nn.Embedding(segments, width), nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, heads, hidden) for _ in range(layers))
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.head = nn.Linear(width, vocabulary)
        _small_normal(self)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.segments(torch.zeros_like(places)) + self.places(places))
        for layer in self.layers:
            x = layer(x)
        scores: torch.Tensor = self.head(self.transform(x))
        return scores


def _small_normal(module: nn.Module) -> None:
    """Draw all matrices from a normal distribution of deviation 0.02, as these models do."""
    for p in module.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)


class LlamaLayer(nn.Module):
    """A layer of Llama: attention to earlier positions with rotated queries and keys, then a gated unit (SwiGLU).

    Groups of `heads // kv_heads` queries share keys and values.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, each = heads, kv_heads, width // heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.query, self.proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, kv_heads * each, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return (batch, positions, width) of the same; of all angles, `cos` and `sin` are (positions, head)."""
        batch, positions, width = x.shape
        normed = self.norm_1(x)
        query = self.query(normed).view(batch, positions, self.heads, -1).transpose(1, 2)
        key = self.key(normed).view(batch, positions, self.kv_heads, -1).transpose(1, 2)
        value = self.value(normed).view(batch, positions, self.kv_heads, -1).transpose(1, 2)
        seen = F.scaled_dot_product_attention(
            _rotated(query, cos, sin),
            _rotated(key, cos, sin),
            value,
            is_causal=True,
            enable_gqa=self.kv_heads < self.heads,
        )
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, positions, width))
        normed = self.norm_2(x)
        mixed: torch.Tensor = self.down(F.silu(self.gate(normed)) * self.up(normed))
        return x + mixed


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of features by its angle (RoPE, Su et al., arXiv 2104.09864); pairs are halves apart."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Llama(nn.Module):
    """Tokens (batch, positions), int64, to scores of the next ones (batch, positions, vocabulary)."""

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        tied: bool,
        theta: float,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaLayer(width, heads, kv_heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, vocabulary, bias=False)
        _small_normal(self)
        if tied:
            self.head.weight = self.words.weight
        each = width // heads
        frequencies = theta ** -(torch.arange(0, each, 2, dtype=torch.float32) / each)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies).repeat(1, 2)
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        x = self.words(tokens)
        positions = tokens.shape[1]
        cos, sin = self.cos[:positions], self.sin[:positions]
        for layer in self.layers:
            x = layer(x, cos, sin)
        scores: torch.Tensor = self.head(self.norm(x))
        return scores


def bert(
    vocabulary: int = 30522,
    positions: int = 512,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    segments: int = 2,
    tied: bool = True,
) -> nn.Module:
    """BERT, the base size by default, trained on masked tokens (109,514,298 parameters), without dropout."""
    return BertMasked(vocabulary, positions, width, layers, heads, hidden, segments, tied)


def llama(
    vocabulary: int = 128256,
    positions: int = 8192,
    width: int = 2048,
    layers: int = 16,
    heads: int = 32,
    kv_heads: int = 8,
    hidden: int = 8192,
    tied: bool = True,
    theta: float = 500000.0,
) -> nn.Module:
    """Llama, by default as Llama 3.2 of 1,235,814,400 parameters, without its scaling of angles to longer contexts."""
    return Llama(vocabulary, positions, width, layers, heads, kv_heads, hidden, tied, theta)
