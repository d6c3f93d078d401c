"""The work of a whole module, without blocks: enough for what one device takes, and known of any module that runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_whole
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.model.profile import ModelProfile, OpWork, PassWork
from stanza_sim.model.profile_json import work_from_data, work_to_data

FORMAT = "stanza-sim-work/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleWork:
    """What a training step of a module takes, by kind of op, its parameters, and the outputs of a sample."""

    numel: int
    output_numel: int
    work: tuple[OpWork, ...]


def work_of_profile(profile: ModelProfile) -> ModuleWork:
    """Return the work of all blocks of a model; raise `InputError` if some block's is not known by kind of op."""
    if unknown := [b.name for b in profile.blocks if not b.work]:
        raise InputError(f"the work of block {unknown[0]} of {profile.name} is not known by kind of op")
    every = [work for block in profile.blocks for work in block.work]
    kinds = [[work for work in every if work.kind is kind] for kind in OpKind]
    work = tuple(_sum(same) for same in kinds if same)
    return ModuleWork(numel=profile.numel, output_numel=profile.blocks[-1].output_numel, work=work)


def _sum(same: Sequence[OpWork]) -> OpWork:
    """The work of ops of one kind together."""
    forward, inputs, weights = (
        PassWork(
            flops=sum(p.flops for p in passes),
            sample_nbytes=sum(p.sample_nbytes for p in passes),
            fixed_nbytes=sum(p.fixed_nbytes for p in passes),
            kernels=sum(p.kernels for p in passes),
        )
        for passes in zip(*(work.passes for work in same), strict=True)
    )
    return OpWork(kind=same[0].kind, forward=forward, backward_input=inputs, backward_weight=weights)


def to_data(known: ModuleWork) -> dict[str, object]:
    """Return `known` as data for JSON."""
    return {"numel": known.numel, "output_numel": known.output_numel, "work": work_to_data(known.work)}


def from_data(data: object, where: str) -> ModuleWork:
    """Read what `to_data` returned. Raises `InputError`."""
    if not isinstance(data, dict) or not all(isinstance(data.get(key), int) for key in ("numel", "output_numel")):
        raise InputError("is not the work of a module", where=where)
    work = work_from_data(data.get("work"), where)
    return ModuleWork(numel=data["numel"], output_numel=data["output_numel"], work=work)


def read_works(path: Path) -> dict[str, ModuleWork]:
    """Return the works of a file that `write_works` wrote, by key. Raises `InputError`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {key: from_data(one, f"{path}: {key}") for key, one in data["modules"].items()}


def write_works(works: dict[str, ModuleWork], path: Path) -> None:
    """Write works by key, one module a line."""
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(to_data(work))}" for key, work in works.items())
    write_whole(f'{{\n  "format": "{FORMAT}",\n  "modules": {{\n{lines}\n  }}\n}}\n', path)
