"""Modules for the tests of extraction: each has something that a plain chain of layers has not."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Branches, functional dropout, a dropout module called twice, sizes used late, ops in place on a block's input."""

    def __init__(self, mc_dropout: bool = False) -> None:
        super().__init__()
        self.mc_dropout = mc_dropout
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1, groups=2)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.25)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False)
        self.scale = nn.Parameter(torch.full((2, 1, 1), 0.5))
        self.register_buffer("offset", torch.tensor(0.1))
        self.hidden = nn.Linear(2 * 16 * 16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, channels, height, width = x.shape
        x = self.drop(self.norm(self.stem(x)))
        y = self.act(x)  # changes x as well
        x = self.left(y) + self.right(x)
        x = self.drop(x)
        x = self.up(x) * self.scale + self.offset
        x = F.dropout(x, 0.3) if self.mc_dropout else F.dropout(x, p=0.3, training=self.training)
        x = x.view(samples, 2 * channels * (2 * height) * (2 * width))
        x = torch.relu_(self.hidden(x))
        x = F.dropout(x, 0.5, self.training)
        return self.head(x)


class FunctionalNorm(nn.Module):
    """Batch normalisation by function: a constant that differs between the modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.randn(3, 8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        x = F.batch_norm(self.first(x), self.mean, self.var, training=self.training, momentum=0.5)
        return F.linear(F.gelu(x), self.weight)


class Transformer(nn.Module):
    """A patch embedding, a class token, attention, a two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) * scale
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(x)
        return self.head(x[:, 0])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.table(x))
        return self.head(out[:, -1])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = -x
        return self.a(x)


class TrainsOtherwise(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x * 2 if self.training else x)


class Tied(nn.Module):
    def __init__(self, two_names: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4) if two_names else self.a
        self.b.weight = self.a.weight
        self.c = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(torch.relu(self.a(x))))


class NormTwice(nn.Module):
    """Two blocks that change the statistics of one normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(self.norm(self.a(x))))


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)[:, 0]


class TiedInside(nn.Module):
    """The tied weights lie within one block, as `left` and `right` are never apart."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.right.weight = self.left.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.left(x) + self.right(torch.tanh(x)))


class OtherName(nn.Module):
    """A parameter whose first name belongs to a module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.body, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 2)
        self.body.weight = self.spare.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Unused(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


class TwoInputs(Branching):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.a(x + y)


class TwoOutputs(Branching):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.a(x)
        return x, x * 2


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def mlp(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


def frozen() -> nn.Module:
    model = mlp()
    for p in model[0].parameters():
        p.requires_grad_(False)
    return model


def layer_and_head(kind: str, features: int, **kwargs: int) -> nn.Module:
    """A layer of `kind` behind a linear layer of its input's last dimension, then a linear head of 2."""
    return nn.Sequential(getattr(nn, kind)(**kwargs), nn.Flatten(), nn.Linear(features, 2))


def channel_dropout() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(144, 2))


def relu_only() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.ReLU())


def not_a_module() -> str:
    return "net"


def fails(size: int) -> nn.Module:
    raise ValueError(f"size {size} is odd")


def reads_a_value() -> nn.Module:
    rate = torch.linspace(0, 0.5, 3)[1].item()
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(rate), nn.Linear(4, 2))


def random_net(layers: str) -> nn.Module:
    return Random(layers)


class Random(nn.Module):
    """Layers by letter on a 3 x 4 x 4 image: see `forward`; then a linear head."""

    def __init__(self, layers: str) -> None:
        super().__init__()
        self.letters = layers
        self.parts = nn.ModuleList(self._part(letter) for letter in layers)
        self.drop, self.act = nn.Dropout(0.2), nn.ReLU(inplace=True)
        self.head = nn.Linear(48, 2)

    @staticmethod
    def _part(letter: str) -> nn.Module:
        if letter == "b":
            return nn.BatchNorm2d(3)
        return nn.Conv2d(3, 3, 3, padding=1) if letter in "cs" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.size(0)
        for letter, part in zip(self.letters, self.parts, strict=True):
            if letter in "cb":
                x = part(x)
            elif letter == "s":  # a skip connection around two ops, the first in place
                x = part(self.act(x)) + x
            elif letter == "r":
                x = F.leaky_relu(x, 0.1)
            elif letter == "d":
                x = self.drop(x)
            elif letter == "f":
                x = F.dropout(x, 0.4, training=self.training)
            elif letter == "v":
                x = x.view(batch, -1).view(batch, 3, 4, 4)
        return self.head(torch.flatten(x, 1))


class TwoHeads(nn.Module):
    """Adds the class scores of a model that returns two in training, so that one tensor leaves it."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        self.net = inception_v3(aux_logits=True, init_weights=True)

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, auxiliary = self.net(x)
        return scores + auxiliary


constant = 3


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))


def two_types() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())
