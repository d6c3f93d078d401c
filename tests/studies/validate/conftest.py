"""A small suite file, and a bench that measures nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.studies.validate.validate_fakes import SUITE, FakeBench


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    def make(*changes: tuple[str, str]) -> Path:
        text = SUITE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return make


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench()
