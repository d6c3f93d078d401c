"""Small convolutional networks for one machine, by import path like any other model.

Two take images of 1 x 8 x 8 (scikit-learn's handwritten digits) and have batch normalisation and dropout; the third is
VGG-16 made narrow.
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


def narrow_vgg16(width: int = 8, num_classes: int = 125) -> nn.Module:
    """Return VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) with its channels and features divided by `width`.

    With 8: 2.2 million parameters (a 64th), 89% of them in the linear layers as in the original, for images of
    3 x 224 x 224.
    """
    features: list[nn.Module] = []
    before = 3
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            features += [nn.Conv2d(before, channels // width, 3, padding=1), nn.ReLU(inplace=True)]
            before = channels // width
        features.append(nn.MaxPool2d(2))
    hidden = 4096 // width
    return _network(
        features,
        [
            nn.Flatten(),
            nn.Linear(before * 7 * 7, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, num_classes),
        ],
    )
