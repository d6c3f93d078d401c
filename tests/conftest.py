"""Settings for every test: hypothesis without deadlines (the machine may be busy), one thread for arithmetic.

A test marked `alone` measures times: while it runs, no other test does. Otherwise what the other worker computes would
be measured too.

Only a test marked `processes` may start another process (ranks, a testbed, a pool, the command line as a user calls
it); any other fails when it tries. So `pytest -m "not processes"` stays the quick inner loop, whatever is added.

A test marked `nightly` runs with the profile of that name only: another shows the same in less time.

Profiles of hypothesis: `default`, `ci` (the same examples each time; chosen where CI is set) and `nightly` (2,000
examples for each test that states no number of its own). Choose one with `--hypothesis-profile` or with the variable
HYPOTHESIS_PROFILE. A test that needs 200 examples in every profile, and 2,000 in `nightly`, says
`@settings(max_examples=max(200, settings().max_examples))`.
"""

import gc
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_SH, LOCK_UN, flock
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from stanza_sim.profiles.network import Estimate, Machine, NetworkProfile, PairTimes, write_network

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

settings.register_profile("default", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("nightly", parent=settings.get_profile("default"), max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))

LOCKS = pytest.StashKey[tuple[Path, Path]]()


def pytest_configure(config: pytest.Config) -> None:
    if run := getattr(config, "workerinput", {}).get("testrunuid"):
        folder = Path(tempfile.gettempdir())
        config.stash[LOCKS] = folder / f"tests-{run}-turn", folder / f"tests-{run}-run"


def pytest_unconfigure(config: pytest.Config) -> None:
    for path in config.stash.get(LOCKS, ()):
        path.unlink(missing_ok=True)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end, a million objects: leave them out when garbage is looked for."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Testbeds and the pool of ranks are processes. All tests of the pool stay in one worker: it is started once."""
    nightly = settings.get_current_profile_name() == "nightly"
    for item in items:
        if not nightly and item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="runs with --hypothesis-profile nightly"))
        pool = "pool" in getattr(item, "fixturenames", ())
        if pool or item.get_closest_marker("root"):
            item.add_marker("processes")
        if pool:
            item.add_marker(pytest.mark.xdist_group("pool"))


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:
        flock(file, how)
        try:
            yield
        finally:
            flock(file, LOCK_UN)  # not by closing alone: a forked child may have it open still


def refuse_to_start(*_: object, **__: object) -> NoReturn:
    pytest.fail("this test starts a process: mark it `processes`")


@contextmanager
def without_processes(item: pytest.Item) -> Iterator[None]:
    """No process can be started in the block, unless the test says that it starts some."""
    if item.get_closest_marker("processes"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse_to_start)
        patch.setattr(BaseProcess, "start", refuse_to_start)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)  # waiting is no part of a test's time
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with ExitStack() as held:
        held.enter_context(without_processes(item))
        if (paths := item.config.stash.get(LOCKS, None)) is None:
            return (yield)
        turn, run = paths
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
