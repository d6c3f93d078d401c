"""The ranks of a faked launcher: each joins every world of a group in turn.

    python tests/execute/start/fake_rank.py GROUP LAUNCHER FIRST_PORT FOLDER

Each rank says what came of each world as a JSON line of its own file in the folder. Ranks are forked from a process
that has imported torch, since that takes a second or two.

What it imitates is the environment, the name of the host and the GPUs that torch sees; joining, deciding and checking
are the real thing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch.distributed as dist

from stanza_sim.base.errors import InputError
from stanza_sim.base.processes import end_with_parent
from stanza_sim.cluster import load_cluster
from stanza_sim.execute.rank import devices
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start import start, world
from stanza_sim.execute.start.tasks import DescribeTask
from tests.execute.start.worlds import GROUPS, World


def environment(launcher: str, faked: World, rank: int, port: int) -> dict[str, str]:
    """What `launcher` sets for `rank`."""
    local, size = str(faked.local_rank(rank)), str(len(faked.hosts))
    if launcher == "torchrun":
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return where | {"RANK": str(rank), "WORLD_SIZE": size, "LOCAL_RANK": local}
    where = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": str(port - 20_000), "SLURM_STEP_ID": "0"}
    return where | {"SLURM_PROCID": str(rank), "SLURM_NTASKS": size, "SLURM_LOCALID": local}


def taken(context: Context, beat: Beat) -> tuple[str, str]:
    """The device and the backend of this rank."""
    return str(context.device), str(context.backend(Backend.AUTO))


def visit(faked: World, folder: Path) -> dict[str, object]:
    """Open the world and return what all ranks told, or the error."""
    path = folder / f"{faked.cluster}.yaml"
    cluster = load_cluster(path if path.exists() else faked.cluster, nodes=faked.nodes)
    said: list[str] = []
    try:
        with start.open_workers(cluster, backend=Backend(faked.backend), say=said.append) as workers:
            told = workers.run(taken)
            sharing = [info.sharing for info in workers.run(DescribeTask())]
    except InputError as error:
        return {"error": str(error), "status": error.exit_status}
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return {"told": told, "sharing": sharing, "said": said}


def visit_all(group: str, launcher: str, rank: int, port: int, folder: Path) -> None:
    """As `rank`, visit every world of the group."""
    end_with_parent(os.getppid())
    for number, faked in enumerate(GROUPS[group]):
        begin = time.monotonic()
        with (
            patch.dict(os.environ, environment(launcher, faked, rank, port + number)),
            patch.object(devices, "visible", lambda faked=faked: faked.seen[rank]),
            patch.object(
                world,
                "socket",
                SimpleNamespace(
                    gethostname=lambda faked=faked: f"host-{faked.hosts[rank]}", create_server=socket.create_server
                ),
            ),
            patch.object(dist, "is_nccl_available", lambda faked=faked: rank not in faked.without_nccl),
            patch.object(start, "note_on_cores", lambda cluster: None),
        ):
            found = visit(faked, folder)
        seconds = time.monotonic() - begin
        with said_by(rank, folder).open("a") as file:
            file.write(json.dumps({"world": faked.name, "seconds": seconds} | found) + "\n")


def said_by(rank: int, folder: Path) -> Path:
    """Where `rank` says what came of its worlds."""
    return folder / f"rank{rank}.jsonl"


def main() -> None:
    """Start all ranks and wait for them."""
    group, launcher, port, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=visit_all, args=(group, launcher, rank, port, folder))
        for rank in range(len(GROUPS[group][0].hosts))
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    main()
