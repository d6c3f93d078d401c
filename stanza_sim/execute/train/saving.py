"""Writing what was trained, and reading what is to be resumed: tensors only, and nothing that is executed."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_parts
from stanza_sim.base.tensor_file import ToStore, write_tensors
from stanza_sim.execute.rank.checkpoint import (
    BUFFERS,
    FORMAT,
    ITERATION,
    MOMENTS,
    PARAMETERS,
    VERSION,
    identity,
    open_resume,
    resume_file,
)
from stanza_sim.execute.rank.job import RunJob
from stanza_sim.execute.train.whole import Whole

SAFETENSORS = ".safetensors"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(job: RunJob, whole: Whole, done: int) -> None:
    """Write the `whole` after `done` iterations to where `job` says, each file whole or not at all.

    The parameters are a plain `state_dict` that loads into the user's module with `strict=True`, with buffers as the
    first rank that computes their block has them: in the safetensors format for a name that ends so, else by
    `torch.save`. Raises `InputError` for files that cannot be written.
    """
    if job.save is None:
        return
    path = Path(job.save)
    tensors = {f"{PARAMETERS}{name}": t for name, t in whole.parameters.items()}
    for moment, by_name in whole.moments.items():
        tensors |= {f"{MOMENTS}{moment}/{name}": t for name, t in by_name.items()}
    for rank, buffers in enumerate(whole.buffers):
        tensors |= {f"{BUFFERS}{rank}/{name}": t for name, t in buffers.items()}
    facts = {FORMAT: VERSION, ITERATION: str(done), **identity(job)}
    write_tensors(resume_file(path), {name: _stored(t, name) for name, t in tensors.items()}, facts)
    state = {name: t.detach().clone().contiguous() for name, t in whole.module(job.model).state_dict().items()}
    if path.suffix == SAFETENSORS:
        write_tensors(path, {name: _stored(t, name) for name, t in state.items()}, {"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_parts([buffer.getbuffer()], path)


def load(job: RunJob) -> Whole:
    """What the training that `job` resumes had. Raises `InputError` for a file that does not have it all."""
    if job.resume is None:
        raise RuntimeError("nothing is resumed")
    file = open_resume(Path(job.resume))
    kinds: dict[str, dict[str, Tensor]] = {PARAMETERS: {}, MOMENTS: {}, BUFFERS: {}}
    for name, stored in file.tensors.items():
        kind = next((k for k in kinds if name.startswith(k)), None)
        dtype = next((t for t, code in _DTYPES.items() if code == stored.dtype), None)
        if kind is None or dtype is None:
            raise InputError(f"has a tensor {name!r:.80}, which no training has", where=str(file.path))
        flat = torch.frombuffer(content, dtype=dtype) if (content := file.read(name)) else torch.empty(0, dtype=dtype)
        kinds[kind][name.removeprefix(kind)] = flat.view(stored.shape)
    buffers: list[dict[str, Tensor]] = [{} for _ in range(job.schedule.world_size)]
    for key, values in kinds[BUFFERS].items():
        rank, _, name = key.partition("/")
        if not rank.isdecimal() or int(rank) >= len(buffers):
            raise InputError(f"has a buffer {key!r:.80} of no rank", where=str(file.path))
        buffers[int(rank)][name] = values
    moments: dict[str, dict[str, Tensor]] = {}
    for key, values in kinds[MOMENTS].items():
        moment, _, name = key.partition("/")
        moments.setdefault(moment, {})[name] = values
    return Whole(parameters=kinds[PARAMETERS], moments=moments, buffers=buffers)


def _stored(tensor: Tensor, name: str) -> ToStore:
    if tensor.dtype not in _DTYPES:
        raise InputError(f"{name} is of {tensor.dtype}, which files of tensors do not have", where="--save")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return ToStore(dtype=_DTYPES[tensor.dtype], shape=tuple(tensor.shape), content=_bytes(flat))


def _bytes(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
