"""One pool of five ranks for all tests of the executor: starting a rank costs seconds, a job milliseconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stanza_sim.execute.launch import Pool
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "schedule")]


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with Pool(5, timeout_s=20) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def tiny() -> ModelProfile:
    return extract("stanza_sim.execute.examples:tiny_cnn", name="tiny", input_shape=(1, 8, 8))
