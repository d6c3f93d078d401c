"""Two small convolutional networks to train on one machine, by import path like any other model.

Both take images of 1 x 8 x 8 (scikit-learn's handwritten digits) and have batch normalisation and dropout.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def _convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    """3 x 3 convolution, batch normalisation, ReLU; the normalisation makes a bias superfluous."""
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]


def _network(features: list[nn.Module], classifier: list[nn.Module]) -> nn.Module:
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), classifier=nn.Sequential(*classifier)))


def digits_cnn(num_classes: int = 10) -> nn.Module:
    """Return a network with VGG's proportions: four convolutions, three linear layers, 7.3 MB of parameters.

    87% of the parameters lie in the linear layers and 75% of the arithmetic in the convolutions.
    """
    return _network(
        [
            *_convolution(1, 32),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            *_convolution(128, 128),
            nn.MaxPool2d(2),
        ],
        [
            nn.Flatten(),
            nn.Linear(512, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(1024, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(1024, num_classes),
        ],
    )


def tiny_cnn(num_classes: int = 10) -> nn.Module:
    """Return a network of 4,546 parameters (at 10 classes) for tests: one convolution, two linear layers."""
    return _network(
        [*_convolution(1, 8), nn.MaxPool2d(2)],
        [nn.Flatten(), nn.Linear(128, 32), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(32, num_classes)],
    )
