"""One pool of five ranks for all tests of the executor: starting them costs more than a job does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stanza_sim.execute.selftest import variants
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile
from tests.execute.forked_pool import ForkedPool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with ForkedPool(5, timeout_s=20) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def tiny() -> ModelProfile:
    return variants.tiny()
