"""Modules with the traits of those that people bring: each computes something that a recording could get wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Layer(nn.Module):
    """A layer of a transformer as people write it."""

    def __init__(self, d: int, heads: int = 2, drop: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.path = DropPath(drop)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        assert c % self.heads == 0
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.path(self.attend(self.ln1(x)))
        return x + self.path(self.mlp(self.ln2(x)))


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    loss: torch.Tensor | None = None


class Words(nn.Module):
    """Tokens to logits: positions by `arange`, a mask from a plain attribute, weights tied, an output with fields."""

    def __init__(self, tied: bool = True, last: bool = False, drop: float = 0.0, again: bool = False) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.layers = nn.ModuleList(Layer(8, drop=drop) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.tok.weight
        self.last, self.again = last, again

    def forward(self, input_ids: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> Output:
        assert input_ids is not None
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        if not torch.all(positions < 6):
            raise ValueError("too long")
        x = self.tok(input_ids) + self.pos(positions)[None]
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.last) if self.again and self.training else layer(x)
        x = self.norm(x)
        return Output(logits=self.head(x[:, -1] if self.last else x), hidden=(x,))


class Double(torch.autograd.Function):
    """Its gradient is not that of what it computes."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 5


class Odd(nn.Module):
    """Assignment to parts and through views, parts without gradients, a custom one, values that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 3)
        self.scale = torch.tensor([1.0, 2.0, 3.0])
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        if torch.rand(()) < 0.0:
            return x
        y = self.a(x)
        with torch.no_grad():
            z = self.a(x) * 3
        out = torch.zeros(x.shape[0], 2, 6, device=x.device)
        out[:, 0] = Double.apply(y)
        view = out.flatten(1)[:, 6:]
        view.copy_(self.b(y) * torch.softmax(z, -1))
        half, rest = out.flatten(1).chunk(2, dim=1)
        halves = [half, rest, 2 ** -half.clamp(0, 1)]
        return (1 - self.c(torch.cat(halves[:2], 1))) * self.scale + halves[2].mean(1, keepdim=True) / 3


class OwnNorm(nn.BatchNorm2d):
    """A norm that does its own bookkeeping, as those of libraries do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training))


class Pixels(nn.Module):
    """Dense scores (classes, height, width) of an image in two scales, channels last in the middle."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1), OwnNorm(4)
        self.down, self.up = nn.Conv2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 4, 2, 2)
        self.last, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.norm(self.a(x))
        y = self.down(x).permute(0, 2, 3, 1)
        y = self.mix(self.last(y)).permute(0, 3, 1, 2)
        return self.out(torch.cat([x, self.up(y)], 1))


class Shared(nn.Module):
    """One layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.layer, self.head = nn.Linear(3, 8), nn.ModuleList([Layer(8)]), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.emb(x)
        for _ in range(3):
            x = self.layer[0](x)
        return self.head(x.mean(1))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, chosen = torch.zeros_like(x), self.gate(x).argmax(-1) == 0
        out[chosen] = self.one(x[chosen])
        return out


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.experts = nn.Linear(4, 4), Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(self.stem(x))


def sparse_bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(50, 4, sparse=True), nn.Linear(4, 3))


def sparse_words() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(20, 3))


def bfloat16() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2)).bfloat16()


class Translator(nn.Module):
    """Torch's own encoder and decoder on two inputs; the mask of the first is needed to the end."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(13, 8), nn.Linear(8, 13)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, drop, batch_first=True), 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, drop, batch_first=True), 2)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        padding = source == 0
        memory = self.encoder(self.words(source), src_key_padding_mask=padding)
        later = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        y = self.decoder(self.words(target), memory, tgt_mask=later, memory_key_padding_mask=padding)
        return self.head(y)
