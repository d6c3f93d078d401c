"""Limits: what takes too long or too much is stopped wherever it is, and nothing of a limit stays behind."""

import sys
from threading import Thread
from time import monotonic

import numpy as np
import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.base.limits import TimeIsUp, check_memory, free_memory, memory_limit, own_memory, time_limit


def endless() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:  # noqa: BLE001 - what handles every error does not keep it alive
            pytest.fail("it was taken for an error")


def test_code_that_never_asks_for_the_time_is_stopped():
    with pytest.raises(TimeIsUp), time_limit(monotonic() + 0.02):
        endless()


def test_in_another_thread_too():
    seen = []

    def work() -> None:
        try:
            with time_limit(monotonic() + 0.02):
                endless()
        except TimeIsUp:
            seen.append("stopped")

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["stopped"]


def test_a_limit_that_has_passed_lets_nothing_begin():
    with pytest.raises(TimeIsUp), time_limit(monotonic()):
        pytest.fail("it began")


def test_what_ends_in_time_is_left_alone():
    with time_limit(monotonic() + 0.02):
        pass
    with time_limit(None):
        pass
    until_s = monotonic() + 0.05
    while monotonic() < until_s:  # nothing is raised later
        pass


def test_an_import_is_completed(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text(
        "from time import sleep\nfor _ in range(20):\n    sleep(0.005)\ndone = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TimeIsUp), time_limit(monotonic() + 0.01):
        import slow_to_import

        endless()
    assert slow_to_import.done


def test_an_error_within_is_the_one_that_leaves():
    with pytest.raises(ZeroDivisionError), time_limit(monotonic() + 100.0):
        1 / 0  # noqa: B018


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits data")
def test_memory_is_limited_and_then_no_longer():
    with pytest.raises(MemoryError), memory_limit(own_memory() + 10**8):
        np.ones(10**8)
    assert np.ones(10**7).sum() == 10**7
    with memory_limit(None):
        assert np.ones(10**6).sum() == 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so")
def test_memory_is_told():
    assert own_memory() > 10**7
    assert free_memory() > 10**7


def test_a_limit_below_what_the_program_takes_is_refused():
    check_memory(10**15, "--memory")
    with pytest.raises(InputError, match="--memory: 1 MB is less than the program itself takes"):
        check_memory(10**6, "--memory")
