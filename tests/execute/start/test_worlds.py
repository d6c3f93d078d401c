"""Ranks that faked launchers start: all take the same decision, or all stop with the same message."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.execute.start.fake_rank import said_by
from tests.execute.start.worlds import GROUPS, TWO_BY_TWO

ROOT = Path(__file__).parents[3]
PROCESS = Path(__file__).with_name("fake_rank.py")
MOST_S = 10.0


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on, where Slurm's jobs meet."""
    for first in range(20_000 + os.getpid() % 15_000, 39_000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no ports are free")


def visits(group: str, launcher: str, folder: Path) -> list[list[dict[str, Any]]]:
    """What each rank says of each world of a group."""
    (folder / "two-by-two.yaml").write_text(TWO_BY_TWO)
    (folder / "two-hosts.yaml").write_text(TWO_BY_TWO.replace("[H100, H100]", "[H100]"))
    size, first = len(GROUPS[group][0].hosts), free_ports(len(GROUPS[group]))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_SIZE"))}
    env = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(PROCESS), group, launcher, str(first), str(folder)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [said_by(rank, folder).read_text() for rank in range(size)]
    assert all(out.count("\n") == len(GROUPS[group]) for out in said), done.stderr[-3000:]
    return [[json.loads(line) for line in out.splitlines()] for out in said]


@pytest.mark.alone
@pytest.mark.processes
@pytest.mark.parametrize(
    ("group", "launcher"), [("two", "torchrun"), ("two", "slurm"), ("four", "slurm"), ("eight", "torchrun")]
)
def test_all_ranks_take_one_decision_or_stop_with_one_message(group: str, launcher: str, tmp_path: Path) -> None:
    by_rank = visits(group, launcher, tmp_path)
    for number, faked in enumerate(GROUPS[group]):
        found = [lines[number] for lines in by_rank]
        name, first = faked.name, found[0]
        assert [f["world"] for f in found] == [name] * len(found)
        assert max(f["seconds"] for f in found) < MOST_S, name
        if faked.error:
            assert len({f.get("error") for f in found}) == 1, (name, found)
            assert {f["status"] for f in found} == {2}
            assert re.search(faked.error, first["error"]), first["error"]
            continue
        assert "error" not in first, first
        assert all(f["told"] == first["told"] for f in found)
        assert [tuple(told) for told in first["told"]] == [(d, faked.over) for d in faked.devices], name
        expected = [list(faked.sharing) or ([] if d == "cpu" else [r]) for r, d in enumerate(faked.devices)]
        assert first["sharing"] == expected
        assert (faked.warning in "".join(first["said"])) if faked.warning else not first["said"], first["said"]
        assert not any(f["said"] for f in found[1:])  # only rank 0 speaks


FAKED_TORCH = """\
from stanza_sim.execute.rank import devices
devices.visible = lambda: (devices.GpuInfo(index=0, uuid="a", name="NVIDIA H100 80GB HBM3"),)
"""


def in_faked_place(folder: Path) -> dict[str, str]:
    """An environment whose Python processes see one and the same GPU."""
    (folder / "sitecustomize.py").write_text(FAKED_TORCH)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_SIZE"))}
    return kept | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}


COMMAND = ["-m", "stanza_sim", "run", "laptop", "--execute", "--set", "cluster=hgx-h100-8", "--set", "nodes=2"]
COMMAND += ["--set", "strategies=[all_reduce]"]


@pytest.mark.processes
def test_the_command_stops_every_rank_of_a_launcher_with_status_2(tmp_path: Path) -> None:
    env = in_faked_place(tmp_path) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1))}
    env |= {"WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, *COMMAND],
            env=env | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=pipe,
            stderr=pipe,
            text=True,
            cwd=tmp_path,
        )
        for r in range(2)
    ]
    try:
        said = [process.communicate(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [2, 2], said
    assert [err for _, err in said[1:]] == [""]  # rank 0 speaks for all
    assert said[0][1].startswith("error: --execute: ranks would share a GPU")
    assert "ranks 0 and 1" in said[0][1]


@pytest.mark.processes
def test_local_ranks_stop_with_one_message_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *COMMAND],
        env=in_faked_place(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "ranks would share a GPU" in done.stderr
    assert "--set cluster=hgx-h100-1" in done.stderr
