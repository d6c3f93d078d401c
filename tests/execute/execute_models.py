"""A network whose gradients change little where its values do: no ReLU, no pooling, no normalisation."""

from __future__ import annotations

from torch import nn


def smooth() -> nn.Module:
    """Two convolutions and three linear layers, on images of 8 x 8 pixels."""
    features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, stride=2), nn.Tanh())
    classifier = nn.Sequential(nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 10))
    return nn.Sequential(features, nn.Flatten(), classifier)
