"""Datasets of every kind that users have, good and bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

Sample = Callable[[int, torch.Generator], object]


class Made:
    """`count` samples, each made by `sample(index, generator)`."""

    def __init__(self, sample: Sample, count: int = 60) -> None:
        self._sample, self._count = sample, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> object:
        return self._sample(index, torch.Generator().manual_seed(index))


def image(g: torch.Generator) -> Tensor:
    return torch.randn(1, 8, 8, generator=g)


def with_label(label: object) -> Made:
    """Images that all have `label`."""
    return Made(lambda i, g: (image(g), label))


def next_tokens() -> Made:
    """Sequences of 8 tokens and of the labels of each, of which some are left out."""

    def sample(i: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(40, (9,), generator=g)
        return tokens[:-1], torch.where(torch.arange(8) < i % 5, -100, tokens[1:])

    return Made(sample)


def last_token() -> Made:
    return Made(lambda i, g: (torch.randint(40, (8,), generator=g, dtype=torch.int32), i % 40))


def masks() -> Made:
    """A class from 0 to 2 for each pixel, as bytes."""
    return Made(lambda i, g: (image(g), torch.randint(3, (8, 8), generator=g).to(torch.uint8)))


def tens() -> Made:
    return Made(lambda i, g: (image(g), torch.randn(10, generator=g)))


def ones() -> Made:
    return Made(lambda i, g: (image(g), torch.randn((), generator=g)))


def several() -> Made:
    """Which of ten things are in an image."""
    return Made(lambda i, g: (image(g), torch.rand(10, generator=g) > 0.5))


def shares() -> Made:
    return Made(lambda i, g: (image(g), torch.randn(10, generator=g).softmax(0)))


def arrays() -> Made:
    return Made(lambda i, g: (np.full((1, 8, 8), i, dtype=np.uint8), np.int64(i % 10)))


def images_and_words() -> Made:
    return Made(lambda i, g: ((image(g), torch.tensor([i % 40])), i % 10))


def images_with_far_words() -> Made:
    return Made(lambda i, g: (image(g), np.array([99]), i % 10))


def wrong_shape() -> Made:
    return Made(lambda i, g: (torch.zeros(3, 8, 8), 0))


def empty() -> Made:
    return Made(lambda i, g: (image(g), 0), 0)


def short() -> Made:
    return Made(lambda i, g: (image(g), i % 10), 10)


def one_wrong() -> Made:
    return Made(lambda i, g: (image(g), 99 if i == 7 else i % 10))


def one_broken() -> Made:
    def sample(i: int, g: torch.Generator) -> tuple[Tensor, int]:
        if i == 7:
            raise OSError("truncated file")
        return image(g), i % 10

    return Made(sample)


def triples() -> Made:
    return Made(lambda i, g: (image(g), i % 10, "name"))


def words() -> Made:
    return Made(lambda i, g: (image(g), "cat"))


def float_class() -> Made:
    return with_label(3.0)


def far_tokens() -> Made:
    return Made(lambda i, g: (torch.full((8,), 39 + (i == 7)), 0))


def float_tokens() -> Made:
    return Made(lambda i, g: (torch.zeros(8), 0))


class Endless(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            yield torch.zeros(1, 8, 8), 0


def loader() -> DataLoader[object]:
    return DataLoader(short(), batch_size=2)  # type: ignore[arg-type]


def all_ignored() -> Made:
    return with_label(-100)


NO_DATA = 3.14
"""Neither a Dataset nor a function that returns one."""
