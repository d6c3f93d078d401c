"""Tests marked `root` build testbeds; they are skipped where that cannot be done, with the reason."""

import os
from functools import cache

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.testbed import bed
from stanza_sim.testbed.probe import require_kernel, require_tools

bed.Testbed.__test__ = False  # no test, whatever its name begins with


@cache
def lacking() -> str | None:
    try:
        require_kernel(require_tools())
    except InputError as error:
        return error.message
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and (why := lacking()):
        if os.environ.get("STANZA_SIM_ROOT_TESTS") == "required":
            pytest.fail(why)
        pytest.skip(why)
