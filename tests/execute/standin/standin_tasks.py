"""Tasks that run on imitated GPUs under changed constants, or that calibrate there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any
from unittest import mock

from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.standin.task import with_standin


@dataclass(frozen=True)
class Changed:
    """`task` with `value` in the place of what is called `name` in `module`."""

    task: Any
    module: str
    name: str
    value: object

    def __call__(self, context: Context, beat: Beat) -> Any:
        with mock.patch.object(importlib.import_module(self.module), self.name, self.value):
            return self.task(context, beat)


@dataclass(frozen=True)
class WithStandin:
    """`task` on an imitated GPU."""

    task: Any
    seed: int = 0
    jitter_s: float = 0.0

    def __call__(self, context: Context, beat: Beat) -> Any:
        here = with_standin(context, seed=self.seed, jitter_s=self.jitter_s)
        found = self.task(here, beat)
        here.accelerator.check()
        return found
