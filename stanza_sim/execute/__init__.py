"""Executing schedules for real with `torch.distributed`.

Importing this package imports no torch; the processes of the ranks do. Names are imported when they are first used,
since every rank imports this package and needs few of them.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stanza_sim.execute.calibrate.calibration import measure_loopback
    from stanza_sim.execute.rank.job import (
        Backend,
        ComputeMode,
        Emulation,
        LearningRate,
        Measurement,
        Optimizer,
        RunJob,
        Score,
        Target,
        Training,
    )
    from stanza_sim.execute.start.launch import RankPlace
    from stanza_sim.execute.start.protocol import Workers
    from stanza_sim.execute.start.start import execute, open_workers, require_torch

_HOMES = {
    "measure_loopback": "calibrate.calibration",
    **dict.fromkeys(("Backend", "ComputeMode", "Emulation", "LearningRate", "Measurement"), "rank.job"),
    **dict.fromkeys(("Optimizer", "RunJob", "Score", "Target", "Training"), "rank.job"),
    "RankPlace": "start.launch",
    "Workers": "start.protocol",
    **dict.fromkeys(("execute", "open_workers", "require_torch"), "start.start"),
}

__all__ = [
    "Backend",
    "ComputeMode",
    "Emulation",
    "LearningRate",
    "Measurement",
    "Optimizer",
    "RankPlace",
    "RunJob",
    "Score",
    "Target",
    "Training",
    "Workers",
    "execute",
    "measure_loopback",
    "open_workers",
    "require_torch",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
