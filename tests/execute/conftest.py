"""One pool of five ranks for all tests of the executor: starting a rank costs seconds, a job milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stanza_sim.execute.selftest import variants
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with Pool(5, timeout_s=20) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def tiny() -> ModelProfile:
    return variants.tiny()
