"""Settings for every test: hypothesis without deadlines (the machine may be busy), one thread for arithmetic."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import settings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

settings.register_profile("default", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """The tests of a file stay in one worker, and so do all that build testbeds: these have one machine's names."""
    for item in items:
        group = "testbed" if item.get_closest_marker("root") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
