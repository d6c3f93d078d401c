"""Ranks that die, hang or refuse: a clear error quickly, no orphan, and a pool that starts anew."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.cluster import load_cluster
from stanza_sim.execute.start import launch
from stanza_sim.execute.start.environment import Place
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.protocol import RankInfo
from stanza_sim.execute.start.start import check_hosts, check_ranks, execute
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_tasks import Misbehave
from tests.execute.execute_variants import job_of, run, schedule_of
from tests.execute.forked_pool import ForkedPool

ROOT = Path(__file__).parents[3]
CPU = "cpu Some Model"


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether the process is no more (a zombie is not running either)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def quickly_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a rank be silent that has said nothing for two seconds."""
    monkeypatch.setattr(launch, "SILENCE_S", 2.0)
    monkeypatch.setattr(launch, "GRACE_S", 1.0)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "(?s)rank 1 exited with status 7; it last wrote:.*out of luck"),
        ("raise", "rank 1: ValueError: seven is not a number"),
        ("stop", r"rank 1 did not answer for \d+ s"),
    ],
)
def test_a_rank_that_fails_ends_the_run_quickly_and_the_next_task_works(
    how: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "stop":
        quickly_silent(monkeypatch)
    with (Pool if how == "exit" else ForkedPool)(2, timeout_s=1) as pool:
        pool.start()
        old = pool.process_ids
        begin = time.monotonic()
        with pytest.raises(RunError, match=said):
            pool.run(Misbehave(1, how))
        assert time.monotonic() - begin < 15
        assert all(gone(pid) for pid in old)
        if how == "exit":
            again = pool.run(Misbehave(1, "not at all"))
            assert [r[0] for r in again] == [0, 1]
            assert {r[1] for r in again} == set(pool.process_ids)
            assert not set(pool.process_ids) & set(old)
            last = pool.process_ids
    if how == "exit":
        assert all(gone(pid) for pid in last)


@pytest.mark.processes
def test_bad_input_found_by_a_rank_stays_bad_input() -> None:
    with ForkedPool(2, timeout_s=5) as pool, pytest.raises(InputError, match="data 'x': no such data"):
        pool.run(Misbehave(1, "input"))


def stop_in_a_run(pid: int) -> None:
    """Stop a rank once it has had the threads of a run for half a second."""
    tasks = Path(f"/proc/{pid}/task")
    at_rest = len(list(tasks.iterdir()))
    until_s = time.monotonic() + 10
    while len(list(tasks.iterdir())) < at_rest + 3 and time.monotonic() < until_s:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.processes
def test_a_rank_that_hangs_in_a_run_is_found_and_the_others_say_what_they_wait_for(tiny: ModelProfile) -> None:
    job = job_of(tiny, schedule_of(tiny, "parameter_server", 3, {}), timeout_s=1.5)
    job = replace(job, training=replace(job.training, data="synthetic"))
    long = replace(job, training=replace(job.training, iterations=5000))
    with ForkedPool(3) as ranks:
        assert len(run(ranks, job).losses) == job.training.iterations
        stopped, begin = ranks.process_ids[1], time.monotonic()
        threading.Thread(target=stop_in_a_run, args=(stopped,)).start()
        with pytest.raises(RunError) as caught:
            run(ranks, long)
        assert time.monotonic() - begin < 20
        text = str(caught.value)
        assert "rank 1 did not" in text
        assert re.search(r"rank 0: nothing completed for 1.5 s; rank 0, iteration \d+: ", text)
        assert re.search(
            r"rank 2: nothing completed for 1.5 s; rank 2, iteration \d+: push\.\S+\.recv awaits messages", text
        )
        assert gone(stopped)


@pytest.mark.processes
def test_a_rank_may_rest_while_others_get_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with ForkedPool(2, timeout_s=1) as pool:
        pool.start()
        monkeypatch.setattr(launch, "START_S", 0.6)
        monkeypatch.setattr(launch, "GRACE_S", 0.1)
        assert [rank for rank, _ in pool.run(Misbehave(1, "rest"), timeout_s=0.5)] == [0, 1]
        with pytest.raises(RunError, match=r"rank \d did not get on for \d+ s"):
            pool.run(Misbehave(1, "sleep"), timeout_s=0.5)


@pytest.mark.processes
def test_a_stopped_rank_is_found_however_patient_a_task_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dilated run may make no progress for long; its processes show signs of life all the same."""
    quickly_silent(monkeypatch)
    with ForkedPool(2, timeout_s=1) as pool:
        pool.start()
        begin = time.monotonic()
        with pytest.raises(RunError, match=r"rank 1 did not answer for \d+ s"):
            pool.run(Misbehave(1, "stop"), timeout_s=2400)
        assert time.monotonic() - begin < 60


@pytest.mark.processes
def test_no_orphan_is_left_when_the_parent_is_killed_or_interrupted() -> None:
    script = textwrap.dedent(
        """
        from tests.execute.execute_tasks import Misbehave
        from stanza_sim.execute.start.launch import Pool
        with Pool(2, timeout_s=60) as pool:
            pool.start()
            print(*pool.process_ids, flush=True)
            pool.run(Misbehave(0, "sleep"))
        """
    )
    for ending in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A shell starts background jobs with SIGINT ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as parent:
            assert parent.stdout is not None
            ranks = [int(p) for p in parent.stdout.readline().split()]
            assert len(ranks) == 2
            time.sleep(0.3)
            os.kill(parent.pid, ending)
            parent.wait(timeout=15)
        assert all(gone(pid) for pid in ranks), ending


@pytest.mark.nightly
@pytest.mark.processes
def test_torchrun_gives_the_same_losses_as_local_ranks(pool: Pool, tiny: ModelProfile) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--no-python"]
    done = subprocess.run(
        [*command, sys.executable, str(ROOT / "tests" / "execute" / "execute_joined.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    local = run(pool, job_of(tiny, schedule_of(tiny, "stanza", 3, {})))
    assert lines == [repr(local.losses)]  # one rank prints


@pytest.mark.processes
def test_a_schedule_larger_than_the_world_and_a_model_without_factory_are_refused(tiny: ModelProfile) -> None:
    schedule = schedule_of(tiny, "all_reduce", 4, {})
    with Pool(2) as small:
        with pytest.raises(InputError, match="has 4 ranks, only 2 run"):
            execute([job_of(tiny, schedule)], small)
        with pytest.raises(InputError, match="without a factory"):
            execute([job_of(replace(tiny, factory=None), schedule)], small)
        assert small.process_ids == []


def test_ranks_hosts_and_devices_that_differ_from_the_topology() -> None:
    laptop, ec2 = load_cluster("laptop", nodes=4), load_cluster("ec2-p3-10", nodes=2)
    with pytest.raises(InputError, match=r"(?s)2 ranks on 2 hosts, this is one machine.*cluster=laptop"):
        check_ranks(ec2, None)
    three = Place(launcher="torchrun", rank=0, world_size=3, local_rank=0, address="a", port=1)
    with pytest.raises(InputError, match=r"(?s)torchrun started 3 ranks, topology laptop has 4.*--set nodes=3"):
        check_ranks(laptop, three)
    check_ranks(laptop, None)
    apart = [RankInfo(host=h, device=CPU) for h in "aabb"]
    with pytest.raises(InputError, match="4 ranks run on 2 hosts"):
        check_hosts(laptop, apart)
    check_hosts(laptop, [RankInfo(host="a", device=CPU)] * 4)
    with pytest.raises(InputError, match="rank 0 has a cpu Some Model, topology ec2-p3-10 says V100"):
        check_hosts(ec2, [RankInfo(host="a", device=CPU), RankInfo(host="b", device=CPU)])
    check_hosts(ec2, [RankInfo(host=h, device="cuda Tesla V100-SXM2-16GB") for h in "ab"])
