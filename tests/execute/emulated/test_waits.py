"""Waits in the place of computations: nominal times, lanes, and devices that are shared, on a clock of our own."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.execute.emulated.shared_state import SharedState
from stanza_sim.execute.emulated.waits import Lanes, Shares, own_state, sleep_until


class Clock:
    """Sleeps by moving on to the time asked for, and a bit more."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.time_s, self._late_s = 0.0, late_s

    def now(self) -> float:
        return self.time_s

    def sleep(self, end_s: float) -> None:
        self.time_s = max(self.time_s, end_s + self._late_s)


def test_a_lane_keeps_nominal_time_however_late_it_wakes() -> None:
    clock = Clock(late_s=0.3)
    lanes = Lanes(now=clock.now, sleep=clock.sleep)
    assert lanes.compute("main", 1.0, 2.0) == (1.0, 3.0)
    assert clock.time_s == 3.3
    assert lanes.compute("main", 3.0, 4.0) == (3.0, 7.0)  # what it waited for was there when the first had ended
    assert lanes.compute("main", 7.2, 1.0) == (7.2, 8.2)  # this was not
    assert lanes.compute("main", 5.0, 1.0) == (8.2, 9.2)  # the lane itself was not free before
    assert lanes.compute("server", 6.0, 1.0) == (6.0, 7.0)  # lanes do not wait for each other


def test_what_would_have_ended_by_now_is_not_waited_for() -> None:
    clock = Clock()
    clock.time_s = 10.0
    assert Lanes(now=clock.now, sleep=clock.sleep).compute("main", 2.0, 3.0) == (2.0, 5.0)
    assert clock.time_s == 10.0


def test_what_nobody_could_tell_is_not_waited_for() -> None:
    clock = Clock()
    lanes = Lanes(now=clock.now, sleep=clock.sleep)
    assert lanes.compute("main", 1.0, 2.0, wait=False) == (1.0, 3.0)
    assert clock.time_s == 0.0
    assert lanes.compute("main", 3.0, 2.0) == (3.0, 5.0)
    assert clock.time_s == 5.0


def test_two_computations_share_a_device_equally() -> None:
    shares = Shares(1.0, own_state(2))
    shares.start(0, 0.0, 4.0)
    assert shares.end_s(0) == 4.0
    shares.start(1, 1.0, 1.0)  # from 1 on half as fast: the second ends at 3, when the first has 2 of 4 left
    assert (shares.end_s(0), shares.end_s(1)) == (5.0, 3.0)
    shares.finish(1, 3.0)
    shares.start(1, 4.0, 10.0)
    assert shares.end_s(0) == 6.0
    shares.finish(0, 6.0)
    assert shares.end_s(1) == pytest.approx(15.0)


def test_cores_are_shared_only_when_there_are_too_few() -> None:
    shares = Shares(2.0, own_state(3))
    for slot in range(2):
        shares.start(slot, 0.0, 2.0)
    assert [shares.end_s(k) for k in range(2)] == [2.0, 2.0]
    shares.start(2, 1.0, 1.0)
    assert [shares.end_s(k) for k in range(3)] == [2.5, 2.5, 2.5]


def test_a_computation_that_is_told_late_has_progressed_since() -> None:
    shares = Shares(1.0, own_state(2))
    shares.start(0, 0.0, 1.0)
    shares.finish(0, 1.0)
    shares.start(1, 0.5, 2.0)  # began at 0.5 by nominal time, and had the device to itself from then on
    assert shares.end_s(1) == 2.5
    shares.start(0, 0.9, 0.05)
    assert shares.end_s(0) == pytest.approx(1.0)  # half of its 0.05 was done by 1.0 at half speed, then nothing is left


Task = tuple[int, float, float]


@given(
    tasks=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3), st.floats(0.01, 3)), min_size=1, max_size=14),
    capacity=st.sampled_from([1.0, 2.0, 3.0]),
)
def test_work_is_conserved_and_no_one_is_faster_than_alone(tasks: list[Task], capacity: float) -> None:
    """Against steps of time: each lane's tasks one after another, all lanes at min(1, capacity / n)."""
    shares = Shares(capacity, own_state(4))
    queues: dict[int, list[tuple[float, float]]] = {k: [] for k in range(4)}
    for lane, wait_s, work_s in tasks:
        queues[lane].append((wait_s, work_s))
    starts = {k: q[0][0] for k, q in queues.items() if q}
    running: set[int] = set()
    found: dict[int, list[tuple[float, float]]] = {k: [] for k in range(4)}
    while starts or running:
        ends = {k: shares.end_s(k) for k in running}
        at_s, lane, begins = min([(t, k, True) for k, t in starts.items()] + [(t, k, False) for k, t in ends.items()])
        if begins:
            shares.start(lane, at_s, queues[lane][len(found[lane])][1])
            found[lane].append((at_s, 0.0))
            del starts[lane]
            running.add(lane)
        else:
            shares.finish(lane, at_s)
            found[lane][-1] = found[lane][-1][0], at_s
            running.discard(lane)
            if len(found[lane]) < len(queues[lane]):
                starts[lane] = at_s + queues[lane][len(found[lane])][0]
    spans = [span for lane in found.values() for span in lane]
    instants = sorted({t for span in spans for t in span})
    for lane, done in found.items():
        for (begin, end), (_, work_s) in zip(done, queues[lane], strict=True):
            got = 0.0
            for a, b in pairwise(instants):
                if begin <= a and b <= end:
                    count = sum(x <= a and b <= y for x, y in spans)
                    got += (b - a) * min(1.0, capacity / count)
            assert got == pytest.approx(work_s, abs=1e-6)


@pytest.mark.alone
def test_sleeping_ends_at_the_time_asked_for() -> None:
    late = []
    for _ in range(20):
        end_s = time.perf_counter() + 0.004
        sleep_until(end_s)
        late.append(time.perf_counter() - end_s)
    assert min(late) >= 0
    assert sorted(late)[10] < 1e-3


def compute_beside(path: Path, slot: int, begin_s: float, ends: object) -> None:
    state = SharedState(path, Shares.size(2))
    lanes = Lanes(Shares(1.0, state.numbers), {"main": slot}, guard=state.guard)
    ends.put((slot, lanes.compute("main", begin_s, 0.2)))


@pytest.mark.processes
@pytest.mark.alone
def test_processes_share_a_device(tmp_path: Path) -> None:
    """Two computations of 0.2 s that begin 0.1 s apart: 0.1 alone, 0.2 for the rest of the first, 0.1 alone."""
    context = get_context("fork")
    ends, path = context.Queue(), tmp_path / "device"
    begin_s = time.perf_counter() + 0.2
    ranks = [context.Process(target=compute_beside, args=(path, k, begin_s + 0.1 * k, ends)) for k in range(2)]
    for rank in ranks:
        rank.start()
    found = dict(ends.get(timeout=10) for _ in ranks)
    for rank in ranks:
        rank.join()
    assert found[0] == pytest.approx((begin_s, begin_s + 0.3), abs=1e-3)
    assert found[1] == pytest.approx((begin_s + 0.1, begin_s + 0.4), abs=1e-3)
    assert time.perf_counter() >= begin_s + 0.4


@pytest.mark.alone
def test_threads_of_one_process_share_a_device() -> None:
    lanes = Lanes(Shares(1.0, own_state(2)), {"main": 0, "server": 1})
    begin_s, found = time.perf_counter() + 0.02, {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: lanes.compute(name, begin_s, 0.05)}))
        for name in ("main", "server")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [end for _, end in found.values()] == pytest.approx([begin_s + 0.1] * 2, abs=1e-3)


def test_the_file_of_a_shared_device_can_be_forgotten(tmp_path: Path) -> None:
    a = SharedState(tmp_path / "x", 3)
    b = SharedState(tmp_path / "x", 3)
    a.forget()
    b.forget()
    a.numbers[2] = 7.0
    assert list(b.numbers) == [0.0, 0.0, 7.0]
    assert list(tmp_path.iterdir()) == []
