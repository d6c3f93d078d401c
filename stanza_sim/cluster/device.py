"""What is known of a device: its data sheet, and how much of its peak each model reaches.

One YAML file per device, in `stanza_sim/data/devices` or in `./devices`. The part above `efficiency:` is written by
people; the rest, for devices with published timings, by `python -m stanza_sim.simulate.fit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from stanza_sim.base.config import Count, Factor, Kind, Section, find, load, near
from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import shortened
from stanza_sim.base.units import Flops, Rate, Seconds, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTiming:
    """A published throughput and what the roofline with the fitted efficiency makes of it.

    `batch` is an assumption where `batch_assumed`. `ratio` is predicted over published step time. A timing that is
    not `fitted` has only been compared.
    """

    gpu: str
    batch: int
    batch_assumed: bool
    images_per_s: float
    kind: str
    source: str
    fitted: bool
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEfficiency:
    """The share of the peak that a model reaches: fitted to `timings`; above 1 is possible (Winograd)."""

    value: float
    timings: tuple[PublishedTiming, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A way to compute: its peak, and efficiency by model with a default for models that were not measured."""

    name: str
    note: str
    peak_flops: float
    default: float
    default_source: str
    models: Mapping[str, ModelEfficiency]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeviceSpec:
    """A device's data. `fp32_runs` names the precision that a framework's fp32 setting means on it."""

    name: str
    description: str
    memory_nbytes: int
    memory_bandwidth_Bps: float
    launch_overhead_s: float
    precisions: Mapping[str, Precision]
    fp32_runs: str
    published: tuple[str, ...]
    sources: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<DeviceSpec {shortened(self.name)}: {shortened(self.description, 80)}>"

    def precision(self, name: str) -> Precision:
        """Return how the device computes at a precision; raise `InputError` if it is not known."""
        known = self.precisions.get(self.fp32_runs if name == "fp32" else name)
        if known is None:
            names = sorted({*self.precisions, *(["fp32"] if self.fp32_runs in self.precisions else [])})
            raise InputError(f"device {self.name} has no data for precision {name!r}", hint=near(name, names))
        return known


class _TimingSection(Section):
    gpu: str
    batch: Count
    batch_assumed: bool = False
    images_per_s: Factor
    kind: str
    source: str
    fitted: bool = True
    ratio: Factor


class _ModelSection(Section):
    value: Factor
    timings: tuple[_TimingSection, ...] = ()


class _DefaultSection(Section):
    value: Factor
    source: str = Field(min_length=1)


class _EfficiencySection(Section):
    default: _DefaultSection
    models: dict[str, _ModelSection] = Field(default_factory=dict)


class _PrecisionSection(Section):
    peak: Flops
    note: str


class _DeviceSection(Section):
    name: str = Field(min_length=1)
    description: str
    memory: Size
    memory_bandwidth: Rate
    launch_overhead: Seconds
    precisions: dict[str, _PrecisionSection] = Field(min_length=1)
    fp32_runs: str = "fp32"
    published: tuple[str, ...] = ()
    sources: tuple[str, ...] = Field(min_length=1)
    efficiency: dict[str, _EfficiencySection] = Field(default_factory=dict)


def device_path(name_or_path: str) -> Path:
    """Return the data file of a device; raise `InputError` if there is none."""
    return find(Kind.DEVICES, name_or_path)


def load_device(name_or_path: str) -> DeviceSpec:
    """Return the data of a device, given by name or path. Raises `InputError`."""
    return _load(device_path(name_or_path).resolve())


@lru_cache(maxsize=64)
def _load(path: Path) -> DeviceSpec:
    section = load(path, _DeviceSection)
    if unknown := [name for name in section.efficiency if name not in section.precisions]:
        raise InputError(
            f"efficiency of {unknown[0]!r}, which is no precision of it",
            where=f"{path}: efficiency",
            hint=near(unknown[0], section.precisions),
        )
    precisions = {}
    for name, stated in section.precisions.items():
        efficiency = section.efficiency.get(name)
        precisions[name] = Precision(
            name=name,
            note=stated.note,
            peak_flops=stated.peak,
            default=efficiency.default.value if efficiency else 1.0,
            default_source=efficiency.default.source if efficiency else "nothing known, the peak is taken",
            models={
                model: ModelEfficiency(
                    value=fit.value, timings=tuple(PublishedTiming(**dict(row)) for row in fit.timings)
                )
                for model, fit in (efficiency.models if efficiency else {}).items()
            },
        )
    return DeviceSpec(
        name=section.name,
        description=section.description,
        memory_nbytes=section.memory,
        memory_bandwidth_Bps=section.memory_bandwidth,
        launch_overhead_s=section.launch_overhead,
        precisions=precisions,
        fp32_runs=section.fp32_runs,
        published=section.published,
        sources=section.sources,
    )
