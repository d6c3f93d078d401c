"""One pool of five ranks for all tests of the executor: starting a rank costs seconds, a job milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with Pool(5, timeout_s=20) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def tiny() -> ModelProfile:
    return extract("stanza_sim.model.examples:tiny_cnn", name="tiny", input_shape=(1, 8, 8))
