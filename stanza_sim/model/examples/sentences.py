"""A small language: sentences that a seed makes, for language models to learn, and how well any model can know it.

A sentence is a subject, a verb and an object, such as "the old cats see a dog .". What follows a word depends on words
before it: a verb agrees with its subject, whatever adjectives stand between, and animals do other things than people.
All that is chosen at random is chosen with probabilities that are known, so that the least perplexity is.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_ADJECTIVES = ("old", "small", "quiet", "red")
_NOUNS = (("cat", "cats", "animal"), ("dog", "dogs", "animal"), ("girl", "girls", "person"), ("boy", "boys", "person"))
_VERBS = {"animal": (("sees", "see"), ("hears", "hear")), "person": (("knows", "know"), ("draws", "draw"))}
_ADJECTIVE = 0.4
"""How likely another adjective is, up to two."""
WORDS = (
    *(".", "the", "a", *_ADJECTIVES),
    *(form for one, many, _ in _NOUNS for form in (one, many)),
    *(form for verbs in _VERBS.values() for pair in verbs for form in pair),
)
"""The vocabulary; a word's place is its token."""
POSITIONS = 16
SAMPLES = 2560
_TOKEN = {word: i for i, word in enumerate(WORDS)}


class _Speaker:
    """Says words, and knows how likely each was."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.tokens: list[int] = []
        self.nats = 0.0

    def _choose(self, count: int) -> int:
        self.nats += math.log(count)
        return int(self._rng.integers(count))

    def _say(self, word: str) -> None:
        self.tokens.append(_TOKEN[word])

    def _noun_phrase(self) -> tuple[int, str]:
        """An article, up to two adjectives and a noun; returns its number and what kind of being it is."""
        many = 0 if (article := ("a", "the")[self._choose(2)]) == "a" else -1
        self._say(article)
        for _ in range(2):
            if self._rng.random() >= _ADJECTIVE:
                self.nats -= math.log(1 - _ADJECTIVE)
                break
            self.nats -= math.log(_ADJECTIVE)
            self._say(_ADJECTIVES[self._choose(len(_ADJECTIVES))])
        one, several, kind = _NOUNS[self._choose(len(_NOUNS))]
        many = self._choose(2) if many < 0 else many
        self._say((one, several)[many])
        return many, kind

    def sentence(self) -> None:
        """Say a sentence."""
        many, kind = self._noun_phrase()
        verbs = _VERBS[kind]
        self._say(verbs[self._choose(len(verbs))][many])
        self._noun_phrase()
        self._say(".")


def _spoken(tokens: int, seed: int) -> _Speaker:
    speaker = _Speaker(seed)
    while len(speaker.tokens) < tokens:
        speaker.sentence()
    return speaker


def least_perplexity(seed: int = 1) -> float:
    """The perplexity of the language itself, for a model that has seen the whole sentence so far: none has less.

    Measured on as many words as the samples have; a model that sees the beginning of a sample only has a little more.
    """
    spoken = _spoken(SAMPLES * POSITIONS, seed)
    return math.exp(spoken.nats / len(spoken.tokens))


class Sentences(Dataset[tuple[Tensor, Tensor]]):
    """Samples of `POSITIONS` tokens, and as labels the tokens that follow each."""

    def __init__(self, seed: int = 1) -> None:
        self._tokens = torch.tensor(_spoken(SAMPLES * POSITIONS + 1, seed).tokens)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        first = index * POSITIONS
        return self._tokens[first : first + POSITIONS], self._tokens[first + 1 : first + POSITIONS + 1]
