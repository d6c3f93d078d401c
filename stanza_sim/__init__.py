"""stanza_sim: predict one training iteration on a cluster, then run the very same schedule for real.

>>> import stanza_sim as ss
>>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
>>> schedule = ss.build_schedule("stanza", model, cluster, batch_per_worker=32, fc_workers=1)
>>> ss.predict(schedule, cluster).samples_per_s > 150
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from stanza_sim.base.version import __version__

if TYPE_CHECKING:
    from stanza_sim.api.clusters_models import available, describe, draw, load_cluster, load_device, load_model
    from stanza_sim.api.comparing import Comparison, compare
    from stanza_sim.api.experiments import ExperimentResult, LoadedExperiment, load_experiment
    from stanza_sim.api.measuring import Measurement, calibrate, measure
    from stanza_sim.api.predictions import Prediction, predict
    from stanza_sim.api.published import PublishedResult, validate_published
    from stanza_sim.api.schedules import ModelSchedule, build_schedule
    from stanza_sim.api.seeing import draw_pictures, write_report
    from stanza_sim.api.studies import PlanResult, SweepResult, plan, sweep
    from stanza_sim.api.validation import ValidationResult, validate
    from stanza_sim.base.errors import InputError, RunError, ScheduleError, StanzaError
    from stanza_sim.cluster.cluster import Cluster
    from stanza_sim.cluster.device import DeviceSpec
    from stanza_sim.model.profile import ModelProfile
    from stanza_sim.profiles.network import NetworkProfile
    from stanza_sim.report.explanation import Explanation
    from stanza_sim.report.result import Row
    from stanza_sim.schedule.schedule import Schedule
    from stanza_sim.simulate.flows import simulate_flows
    from stanza_sim.simulate.prediction import FlowResult
    from stanza_sim.timeline.critical_path import CriticalPath, PathStep
    from stanza_sim.timeline.spans import Span, Timeline

_HOMES = {
    "api.clusters_models": ("available", "describe", "draw", "load_cluster", "load_device", "load_model"),
    "api.comparing": ("Comparison", "compare"),
    "api.experiments": ("ExperimentResult", "LoadedExperiment", "load_experiment"),
    "api.measuring": ("Measurement", "calibrate", "measure"),
    "api.predictions": ("Prediction", "predict"),
    "api.published": ("PublishedResult", "validate_published"),
    "api.schedules": ("ModelSchedule", "build_schedule"),
    "api.seeing": ("draw_pictures", "write_report"),
    "api.studies": ("PlanResult", "SweepResult", "plan", "sweep"),
    "api.validation": ("ValidationResult", "validate"),
    "base.errors": ("InputError", "RunError", "ScheduleError", "StanzaError"),
    "cluster.cluster": ("Cluster",),
    "cluster.device": ("DeviceSpec",),
    "model.profile": ("ModelProfile",),
    "profiles.network": ("NetworkProfile",),
    "report.explanation": ("Explanation",),
    "report.result": ("Row",),
    "schedule.schedule": ("Schedule",),
    "simulate.flows": ("simulate_flows",),
    "simulate.prediction": ("FlowResult",),
    "timeline.critical_path": ("CriticalPath", "PathStep"),
    "timeline.spans": ("Span", "Timeline"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Cluster",
    "Comparison",
    "CriticalPath",
    "DeviceSpec",
    "ExperimentResult",
    "Explanation",
    "FlowResult",
    "InputError",
    "LoadedExperiment",
    "Measurement",
    "ModelProfile",
    "ModelSchedule",
    "NetworkProfile",
    "PathStep",
    "PlanResult",
    "Prediction",
    "PublishedResult",
    "Row",
    "RunError",
    "Schedule",
    "ScheduleError",
    "Span",
    "StanzaError",
    "SweepResult",
    "Timeline",
    "ValidationResult",
    "__version__",
    "available",
    "build_schedule",
    "calibrate",
    "compare",
    "describe",
    "draw",
    "draw_pictures",
    "load_cluster",
    "load_device",
    "load_experiment",
    "load_model",
    "measure",
    "plan",
    "predict",
    "simulate_flows",
    "sweep",
    "validate",
    "validate_published",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Import what is offered here when it is first asked for, so that `import stanza_sim` stays quick."""
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
