"""What a saved training is of, and whether it is the one that is to go on. No torch: it is known before ranks start.

The trained parameters are in one file, which loads into the user's module. What resuming takes is in another beside it
(`resume_file`), whole in itself: parameters, optimiser state and buffers of every rank, in the safetensors format, with
the facts of `identity` as texts.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import shortened
from stanza_sim.base.tensor_file import TensorFile, open_tensors
from stanza_sim.execute.rank.job import RunJob

FORMAT, VERSION = "stanza_sim.resume", "1"
ITERATION = "iteration"
MOST_DIGITS = 18
PARAMETERS, MOMENTS, BUFFERS = "parameters/", "optimizer/", "buffers/"
"""What tensors' names begin with. A parameter's name follows, behind a moment's; a buffer's, behind a rank."""
_SCHEDULE = "settings of the strategy: the schedule's digest"
_MAY_CHANGE = ("lr", "schedule")
"""Of an optimiser: no state depends on them."""


def resume_file(path: Path) -> Path:
    """Where what it takes to resume lies, for the parameters at `path`: `gpt.resume.safetensors` for `gpt.pt`."""
    if path.name.endswith(".resume.safetensors"):
        return path
    return path.with_name(f"{path.stem}.resume.safetensors")


def identity(job: RunJob) -> dict[str, str]:
    """What must be the same for a training to go on as if it had not stopped, as JSON by key."""
    schedule, training = job.schedule, job.training
    optimizer = {f"optimizer.{k}": v for k, v in asdict(training.optimizer).items() if k not in _MAY_CHANGE}
    facts: dict[str, object] = {
        "model": job.model.name,
        **optimizer,
        "world_size": schedule.world_size,
        "global_batch": schedule.global_batch,
        "data": training.data,
        "seed": training.seed,
        "precision": job.precision,
        "strategy": schedule.name,
        _SCHEDULE: schedule.digest()[:16],
    }
    return {key: json.dumps(value) for key, value in facts.items()}


def iterations_in(job: RunJob) -> int:
    """How many iterations the training that `job` resumes has done.

    Raises `InputError`, which says what differs, for one that is another, and for a file that is none.
    """
    if job.resume is None:
        return 0
    found, path = open_resume(Path(job.resume)), job.resume
    differ: list[str] = []
    for key, here in identity(job).items():
        if (there := found.texts.get(key)) != here and not (key == _SCHEDULE and differ):
            differ.append(f"{key} is {_word(there)} there and {_word(here)} here")
        if key == "model" and not differ:
            differ += _parameters(job, found)
    if differ:
        hint = "resume with what it was trained with, or begin anew without it"
        raise InputError(f"cannot be resumed: {'; '.join(differ[:3])}", where=path, hint=hint)
    done = int(found.texts[ITERATION])
    if job.training.iterations < done + 2:
        what = f"has {done} iterations done, and training.iterations, which counts them, is {job.training.iterations}"
        raise InputError(what, where=path, hint=f"raise it to {done + 2} or more")
    return done


def open_resume(path: Path) -> TensorFile:
    """The file that resuming from `path` takes: that itself, or the one beside the parameters. Raises `InputError`."""
    beside = resume_file(path)
    if not beside.exists() and path.exists():
        what = f"holds no more than parameters: {beside.name}, which was written beside it, is not there"
        raise InputError(what, where=str(path), hint="move it there, or begin anew")
    found = open_tensors(beside)
    iteration = found.texts.get(ITERATION, "")
    if found.texts.get(FORMAT) != VERSION or not iteration.isdecimal() or len(iteration) > MOST_DIGITS:
        what = "is no file from which a training can be resumed"
        raise InputError(what, where=str(path), hint="give one that --save wrote")
    return found


def _parameters(job: RunJob, found: TensorFile) -> list[str]:
    """In what the parameters of the file are not those of the model."""
    there = {k.removeprefix(PARAMETERS): v.shape for k, v in found.tensors.items() if k.startswith(PARAMETERS)}
    here = {t.name: tuple(t.shape) for b in job.model.blocks for t in b.tensors}
    differ = [f"{name} is {list(shape)} there and {list(here[name])} here" for name, shape in there.items()
              if name in here and here[name] != shape]  # fmt: skip
    differ += [f"{name} is not there" for name in here if name not in there]
    return differ + [f"{name} is there and not here" for name in there if name not in here]


def _word(value: str | None) -> str:
    return "not known" if value is None else shortened(value.strip('"'))
