"""A small experiment for sweeps."""

from pathlib import Path

import pytest

SMALL = """\
name: small
cluster: star
nodes: 4
models: [{model: alexnet, batch_per_worker: 32}]
strategies:
  - {strategy: all_reduce}
  - {strategy: stanza, settings: {fc_workers: 1}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path
