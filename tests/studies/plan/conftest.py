"""Small experiments for the planner."""

from pathlib import Path

import pytest

SMALL = """\
name: small
cluster: star
nodes: 4
models: [{model: alexnet, batch_per_worker: 8}]
strategies:
  - {strategy: parameter_server, label: "PS, one server", settings: {overlap: false}}
  - {strategy: stanza, settings: {fc_workers: 1}}
"""


@pytest.fixture(scope="session")
def small_text() -> str:
    return SMALL


@pytest.fixture
def small(small_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(small_text)
    return path
