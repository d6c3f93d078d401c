"""Small networks of the kinds that users have: smooth ones, language models on tokens, dense outputs, tied weights."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def smooth() -> nn.Module:
    """Two convolutions and three linear layers, on images of 8 x 8 pixels.

    Its gradients change little where its values do: no ReLU, no pooling, no normalisation.
    """
    features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, stride=2), nn.Tanh())
    classifier = nn.Sequential(nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 10))
    return nn.Sequential(features, nn.Flatten(), classifier)


def deep() -> nn.Module:
    """Eight convolutions that are alike, on images of 8 x 8 pixels: activations are most of what it needs."""
    alike = [nn.Sequential(nn.Conv2d(8 if i else 1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh()) for i in range(8)]
    return nn.Sequential(*alike, nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10))


class Layer(nn.Module):
    """Causal attention with two heads, and a layer of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, width = x.shape
        q, k, v = self.qkv(self.norm(x)).split(width, dim=2)
        q, k, v = [t.view(batch, positions, 2, width // 2).transpose(1, 2) for t in (q, k, v)]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, positions, width)
        x = x + self.proj(mixed)
        return x + self.narrow(F.gelu(self.wide(x)))


class Gpt(nn.Module):
    """Tokens (batch, positions) to (batch, positions, words), or of the last position only."""

    def __init__(self, *, words: int = 40, width: int = 16, tied: bool = False, last: bool = False) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(words, width), nn.Embedding(8, width)
        self.layer, self.norm = Layer(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.last = last
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok(tokens) + self.pos(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.norm(self.layer(x))
        return self.head(x[:, -1] if self.last else x)


def gpt(tied: bool = False, last: bool = False) -> nn.Module:
    return Gpt(tied=tied, last=last)


class Dense(nn.Module):
    """Images (batch, 1, 8, 8) to (batch, 3, 8, 8), by way of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.a(x))
        return self.out(torch.cat([a, self.up(torch.tanh(self.b(a)))], 1))


def dense() -> nn.Module:
    return Dense()


class Recalled(nn.Module):
    """One layer called in three blocks, by itself, tied to another, and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x.flatten(1)))))
        return self.out(torch.tanh(self.a(x)))


def recalled() -> nn.Module:
    return Recalled()


class Words(nn.Module):
    """Tokens (batch, 8) to ten classes, by way of a table with sparse gradients whose row 3 is padding."""

    def __init__(self, beside: bool, tied: bool) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(40, 6, sparse=True, padding_idx=3), nn.Linear(6, 40)
        self.places = nn.Embedding(8, 6) if beside else None
        if tied:
            self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        if self.places is not None:
            x = x + self.places(torch.arange(8, device=tokens.device))
        return self.out(torch.tanh(x).mean(1))


def words(beside: bool = False, tied: bool = False) -> nn.Module:
    return Words(beside, tied)


class Described(nn.Module):
    """An image, and a word about it, to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.word, self.out = nn.Linear(64, 12), nn.Embedding(40, 12), nn.Linear(12, 10)

    def forward(self, image: Tensor, word: Tensor) -> Tensor:
        return self.out(torch.tanh(self.image(image.flatten(1)) + self.word(word).sum(1)))


def described() -> nn.Module:
    return Described()


def numbers(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, outputs))


def half() -> nn.Module:
    return numbers(10).half()


class Drawn(nn.Module):
    """Attention that drops weights: random numbers that are no elementwise dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        return self.out(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))


def drawn() -> nn.Module:
    return Drawn()


class Recurrent(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(40, 6), nn.Linear(6, 40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a dropout that does nothing
            self.lstm = nn.LSTM(6, 6, layers, dropout=0.5, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.lstm(self.table(tokens))[0][:, -1])


def recurrent(layers: int = 1) -> nn.Module:
    return Recurrent(layers)


def normed() -> nn.Module:
    """A last layer that is normalised over its features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Linear(12, 10), nn.LogSoftmax(dim=1))
