"""Where this process was started: by a launcher (torchrun, Slurm) as one rank of many, or by itself. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stanza_sim.base.errors import InputError

FIRST_PORT, PORTS = 20_000, 20_000
"""Without MASTER_PORT, ranks of a Slurm job meet at a port of this range, by the job's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's place as its launcher told it, and where the ranks meet; `one_machine` if all are on this one."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    one_machine: bool = False


def for_gpus(environment: Mapping[str, str], *, deterministic: bool = False) -> dict[str, str]:
    """Variables that a process which computes on a GPU needs before CUDA starts, unless `environment` has them.

    A module that CUDA loads lazily may have to wait for the device, which a receive of NCCL's may keep busy for as long
    as its sender computes ("Lazy Loading" in CUDA's programming guide). With as many connections to the device as CUDA
    allows, few streams share one (`CUDA_DEVICE_MAX_CONNECTIONS`, 1 to 32), in which they would wait for each other. For
    the last see `stanza_sim.execute.rank.deterministic`: 8 buffers of 4,096 KiB.
    """
    wanted = {"CUDA_MODULE_LOADING": "EAGER", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}
    if deterministic:
        wanted["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {name: value for name, value in wanted.items() if name not in environment}


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """This process's place among ranks; None if no launcher started it. Raises `InputError` if half of it is missing.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Slurm's srun sets SLURM_PROCID,
    SLURM_NTASKS, SLURM_LOCALID and the node list, whose first node is where the ranks meet. The batch script itself
    (a job without a step) and a single task are not taken for a launcher.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env or "WORLD_SIZE" in env:
        return _checked(
            Place(
                launcher="torchrun",
                rank=_number(env, "RANK", "torchrun"),
                world_size=_number(env, "WORLD_SIZE", "torchrun"),
                local_rank=_number(env, "LOCAL_RANK", "torchrun"),
                address=_text(env, "MASTER_ADDR", "torchrun"),
                port=_number(env, "MASTER_PORT", "torchrun"),
                one_machine=env.get("LOCAL_WORLD_SIZE") == env["WORLD_SIZE"],
            )
        )
    in_step = "SLURM_STEP_ID" in env or "SLURM_JOB_ID" not in env
    if "SLURM_PROCID" not in env or not in_step or _number(env, "SLURM_NTASKS", "Slurm") == 1:
        return None
    job = _number(env, "SLURM_JOB_ID", "Slurm") if "SLURM_JOB_ID" in env else 0
    nodes = env.get("SLURM_STEP_NODELIST") or _text(env, "SLURM_JOB_NODELIST", "Slurm")
    return _checked(
        Place(
            launcher="Slurm",
            rank=_number(env, "SLURM_PROCID", "Slurm"),
            world_size=_number(env, "SLURM_NTASKS", "Slurm"),
            local_rank=_number(env, "SLURM_LOCALID", "Slurm"),
            address=env.get("MASTER_ADDR") or expand_nodes(nodes)[0],
            port=_number(env, "MASTER_PORT", "Slurm") if "MASTER_PORT" in env else FIRST_PORT + job % PORTS,
            one_machine=len(set(expand_nodes(nodes))) == 1,
        )
    )


def _text(env: Mapping[str, str], name: str, launcher: str) -> str:
    value = env.get(name, "")
    if not value:
        raise InputError(
            f"{name} is not set, though {launcher} seems to have started this process",
            where="environment",
            hint=f"{launcher} sets it for every rank; unset its other variables to start local ranks instead",
        )
    return value


def _number(env: Mapping[str, str], name: str, launcher: str) -> int:
    text = _text(env, name, launcher)
    if not text.isascii() or not text.isdigit():
        raise InputError(f"{name}={text} is not a whole number", where="environment", hint=f"{launcher} sets it")
    return int(text)


def _checked(found: Place) -> Place:
    if not 0 <= found.rank < found.world_size:
        raise InputError(
            f"rank {found.rank} is not one of a world of {found.world_size}", where=f"environment of {found.launcher}"
        )
    return found


def expand_nodes(text: str) -> list[str]:
    """Host names of a Slurm node list, in order: `node[01-03,7],login` is node01, node02, node03, node7, login.

    Raises `InputError` if brackets or ranges are malformed.
    """
    names: list[str] = []
    for part in _split(text):
        names += _expand(part, text)
    if not names:
        raise InputError("the list of nodes is empty", where="SLURM_JOB_NODELIST")
    return names


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c == "[") - (c == "]")
        if depth not in (0, 1):
            break
        if c == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    if depth:
        raise InputError(f"{text!r} has brackets that do not match", where="SLURM_JOB_NODELIST")
    return [p.strip() for p in (*parts, current) if p.strip()]


def _expand(part: str, text: str) -> list[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, tail = rest.partition("]")
    numbers: list[str] = []
    for item in inside.split(","):
        m = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", item)
        if m is None or (m[2] and int(m[2]) < int(m[1])):
            raise InputError(f"{item!r} in {text!r} is not a range of nodes", where="SLURM_JOB_NODELIST")
        first, last = m[1], m[2] or m[1]
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [head + n + end for n in numbers for end in _expand(tail, text)] if tail else [head + n for n in numbers]
