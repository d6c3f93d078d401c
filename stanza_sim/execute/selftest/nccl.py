"""The check of NCCL on one GPU: communicators of one rank, and what two ranks on a GPU are told."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.accelerator import Cuda
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.library import Nccl
from stanza_sim.execute.selftest import on_device
from stanza_sim.execute.selftest.on_gpu import first, sharing
from stanza_sim.execute.selftest.outcome import Here, Skipped, Wrong
from stanza_sim.execute.selftest.tasks import on_a_thread
from stanza_sim.execute.selftest.variants import job_of, schedule_of, tiny
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.tasks import RunTask


def nccl(here: Here) -> None:
    """Communicators with a `device_id`, collectives, messages to oneself, two threads, waiting, a GPU for two ranks."""
    with here.check("gpu:nccl") as said:
        if not dist.is_nccl_available():
            raise Skipped("torch has no NCCL here")
        device = first()
        accelerator = Cuda(device)
        library, sleep = Nccl(accelerator), on_device.cuda_sleep(device)
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1)
            here.note("making communicators")
            groups = [library.new_group([0], 2) for _ in range(2)]

            def body() -> str:
                here.note("collectives")
                on_device.collectives(accelerator, library, groups[0])
                here.note("messages to oneself")
                on_device.to_oneself(accelerator, library, groups[0])
                here.note("waiting behind a sleeping kernel")
                return on_device.waits(accelerator, library, groups[0], sleep)

            waited = on_a_thread(body, accelerator.start_thread)
            here.note("collectives from two threads")
            on_device.from_two_threads(accelerator, library, groups)
        here.note("two ranks on one GPU")
        said.detail = f"collectives and messages are right; {waited}; two ranks on one GPU: {refusal(here)}"


def refusal(here: Here) -> str:
    """What two ranks on one GPU are told who want NCCL. Raises `Wrong` where they are not refused."""
    model = tiny()
    job = replace(job_of(model, schedule_of(model, "all_reduce", 2, {})), backend=Backend.NCCL)
    with Pool(2, timeout_s=here.limit_s / 2, kind="cuda", **sharing(2)) as pool:
        try:
            pool.run(RunTask(job))
        except InputError as error:
            return error.one_line
    raise Wrong("two ranks on one GPU were not refused")
