"""Models of today whose last layer is far wider than all before it, by import path like any other model.

All end in a linear layer without bias, called `head`, of as many outputs as there are `classes`; the shipped tables
`iresnet18`, `iresnet50` and `lstm_2048_512` are extracted from them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FEATURES = 512
"""Length of the vector that the head sees: that of a face's embedding, and of the LSTM's projected state."""
CELLS = 2048
"""Memory cells of the LSTM."""


class _Residual(nn.Module):
    """Improved residual unit: batch norm, convolution, batch norm, PReLU, convolution, batch norm; sum."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.prelu = nn.PReLU(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv1(self.bn1(x))
        y = self.bn3(self.conv2(self.prelu(self.bn2(y))))
        shortcut: torch.Tensor = self.downsample(x)
        return y + shortcut


class _MarginHead(nn.Module):
    """The head of ArcFace as its authors compute it: cosines in fp32, outside autocast, and passes for the margin.

    Features and weights are normalised; the angle of each logit is taken and its cosine scaled. Without labels no
    margin is added to the angle of the right class, which is one element of each row.
    """

    SCALE = 64.0

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, FEATURES).normal_(0, 0.01))
        vars(self.weight)["fp32_under_autocast"] = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cosines = functional.linear(functional.normalize(x), functional.normalize(self.weight)).clamp(-1, 1)
        return torch.cos(torch.acos(cosines)) * self.SCALE


class _IResNet(nn.Module):
    def __init__(self, units: tuple[int, int, int, int], classes: int, *, margin: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        before = 64
        stages: list[nn.Module] = []
        for channels, count in zip((64, 128, 256, 512), units, strict=True):
            steps = [_Residual(before, channels, 2), *(_Residual(channels, channels, 1) for _ in range(count - 1))]
            stages.append(nn.Sequential(*steps))
            before = channels
        self.layers = nn.Sequential(*stages)
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, FEATURES)
        self.features = nn.BatchNorm1d(FEATURES)
        self.head = _MarginHead(classes) if margin else nn.Linear(FEATURES, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(self.prelu(self.bn1(self.conv1(x))))
        y = self.features(self.fc(torch.flatten(self.bn2(y), 1)))
        logits: torch.Tensor = self.head(y)
        return logits


def iresnet18(classes: int = 100_000) -> nn.Module:
    """Return a face recognition network for images of 3 x 112 x 112: a trunk of 24 M parameters and a head.

    The trunk is the 18-layer form of that in Deng et al., ArcFace (arXiv 1801.07698), of improved residual units and a
    512-dimensional embedding. The margin of ArcFace's loss and its normalisation of weights are left out: they change
    neither what is sent nor the products that are computed.
    """
    return _IResNet((2, 2, 2, 2), classes)


def iresnet50(classes: int = 100_000) -> nn.Module:
    """Return the 50-layer form of the trunk of `iresnet18`, 43.6 M parameters, with a head as ArcFace's is computed.

    Under autocast the head stays in fp32, with passes over features, weights and logits for normalisation and margin
    (insightface's `partial_fc`, which takes the trunk's output out of autocast). It can be trained on whole heads; the
    head's features can be cut in predictions only.
    """
    return _IResNet((3, 4, 14, 3), classes, margin=True)


class _LstmStep(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * FEATURES, 4 * CELLS)
        self.projection = nn.Linear(CELLS, FEATURES, bias=False)
        self.head = nn.Linear(FEATURES, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        enter, forget, leave, new = torch.chunk(self.gates(x[:, : 2 * FEATURES]), 4, dim=1)
        cells = torch.sigmoid(forget) * x[:, 2 * FEATURES :] + torch.sigmoid(enter) * torch.tanh(new)
        logits: torch.Tensor = self.head(self.projection(torch.sigmoid(leave) * torch.tanh(cells)))
        return logits


def lstm_2048_512(classes: int = 793_471) -> nn.Module:
    """Return one step of LSTM-2048-512, a language model of Jozefowicz et al. (arXiv 1602.02410), as a module.

    A sample is one word: its 512-dimensional vector, the projected state (512) and the cells (2048) of the step before,
    one after another; `classes` is the size of the vocabulary (that of the One Billion Word benchmark). Parameters,
    FLOPs and activations per word are those of the network unrolled; gradients do not flow to earlier steps. The word
    vectors are input: their gradients touch the rows of few words and nobody exchanges them whole.
    """
    return _LstmStep(classes)
