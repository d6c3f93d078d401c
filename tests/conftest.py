"""Settings for every test: hypothesis without deadlines (the machine may be busy), one thread for arithmetic.

A test marked `alone` measures times: while it runs, no other test does. Otherwise what the other worker computes would
be measured too.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_SH, LOCK_UN, flock
from pathlib import Path

import pytest
from hypothesis import settings

from stanza_sim.network_profile import Estimate, Machine, NetworkProfile, PairTimes, write_network

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

settings.register_profile("default", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

LOCKS = pytest.StashKey[tuple[Path, Path]]()


def pytest_configure(config: pytest.Config) -> None:
    if run := getattr(config, "workerinput", {}).get("testrunuid"):
        folder = Path(tempfile.gettempdir())
        config.stash[LOCKS] = folder / f"tests-{run}-turn", folder / f"tests-{run}-run"


def pytest_unconfigure(config: pytest.Config) -> None:
    for path in config.stash.get(LOCKS, ()):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:
        flock(file, how)
        try:
            yield
        finally:
            flock(file, LOCK_UN)  # not by closing alone: a forked child may have it open still


@pytest.hookimpl(wrapper=True, tryfirst=True)  # waiting is no part of a test's time
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if (paths := item.config.stash.get(LOCKS, None)) is None:
        return (yield)
    turn, run = paths
    with ExitStack() as held:
        with locked(turn, LOCK_EX):  # who waits to be alone keeps the turn, so that no other test begins before it
            held.enter_context(locked(run, LOCK_EX if item.get_closest_marker("alone") else LOCK_SH))
        return (yield)


@pytest.fixture
def network_profile(tmp_path: Path) -> Path:
    """A network profile of NICs of 200 Mbps, measured on a busy machine."""

    def about(value: float) -> Estimate:
        return Estimate(value=value, low=0.9 * value, high=1.1 * value)

    pair = PairTimes(
        sender_Bps=25e6, receiver_Bps=25e6, source=0, destination=1, messages=3, latency_s=about(8e-5),
        overhead_s=about(3e-5), posting_s=about(3e-4), goodput_Bps=about(2.4e7), burst_bytes=about(0.0),
    )  # fmt: skip
    profile = NetworkProfile(
        cluster="t", date="2026-01-01T00:00:00Z", testbed=False, ranks=4, pairs=(pair,), hop_s=about(9e-5),
        machine=Machine(device="cpu X", cores=2, kernel="6.1", load=9.0), reduce_Bps=about(8e9), update_Bps=about(2e9),
    )  # fmt: skip
    path = tmp_path / "network.json"
    write_network(profile, path)
    return path
