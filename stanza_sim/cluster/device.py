"""What is known of a device: its data sheet, and how much of its peak each model reaches.

One YAML file per device, in `stanza_sim/data/devices`, or in `devices/` here or beside the topology or the experiment.
Its data sheet is written by people; `launch:` and `constants:` of GPUs by `python -m stanza_sim.simulate.fit`. A device
without constants (a CPU, or one of a user's own) has `efficiency:`, the share of its peak that models reach under a
roofline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stanza_sim.base.config import Count, Factor, Kind, Section, find, load, near
from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.base.tables import shortened
from stanza_sim.base.units import Flops, Rate, Seconds, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTiming:
    """A published throughput and what the fitted costs make of it.

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
class ModelFactor:
    """What the sum over kinds of op is multiplied by for a model that was measured: fitted to `timings`."""

    value: float
    timings: tuple[PublishedTiming, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Relative errors in samples/s of models that were left out of the fit: alone, and with all of their family."""

    models: int
    median: float
    p90: float
    family_median: float
    family_p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkConstants:
    """How ops of each kind run at a precision, relative to the data sheet: see `stanza_sim.simulate.sum_costs`.

    `flops[kind]` is the time of a FLOP times the peak, `nbytes[kind]` that of a byte times the memory bandwidth.
    `source` says what they rest on; `residuals` are those of the models that were measured at this precision.
    """

    source: str
    flops: Mapping[OpKind, float]
    nbytes: Mapping[OpKind, float]
    residuals: Residuals | None
    models: Mapping[str, ModelFactor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchCost:
    """What an eager framework's host needs for a kernel of forward and of backward; `overlap`: see `sum_costs`."""

    forward_s: float
    backward_s: float
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A way to compute: its peak, and either constants by kind of op, or efficiencies under a roofline.

    There is an efficiency of each measured model, and a default for others.
    """

    name: str
    note: str
    peak_flops: float
    default: float
    default_source: str
    models: Mapping[str, ModelEfficiency]
    constants: WorkConstants | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeviceSpec:
    """A device's data.

    `published_fp32` names the precision in which the published timings ran that call themselves fp32 (a framework's
    setting, under which GPUs from Ampere on may compute in TF32). Only rules for published texts look at it.

    `form` is how the part is built in (`SXM`, `PCIe` or `NVL`; None: any), and `reported` what a driver calls it
    where that is not its name.
    """

    name: str
    description: str
    memory_nbytes: int
    memory_bandwidth_Bps: float
    launch_overhead_s: float
    precisions: Mapping[str, Precision]
    published_fp32: str
    published: tuple[str, ...]
    sources: tuple[str, ...]
    launch: LaunchCost | None = None
    form: str | None = None
    reported: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<DeviceSpec {shortened(self.name)}: {shortened(self.description, 80)}>"

    def precision(self, name: str) -> Precision:
        """Return how the device computes at a precision; raise `InputError` if it is not known."""
        known = self.precisions.get(name)
        if known is None:
            what = f"device {self.name} has no data for precision {str(name)!r}"
            raise InputError(what, hint=near(name, sorted(self.precisions)))
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


class _FactorSection(Section):
    factor: Factor
    timings: tuple[_TimingSection, ...] = ()


class _ResidualsSection(Section):
    models: Count
    median: float = Field(ge=0, allow_inf_nan=False)
    p90: float = Field(ge=0, allow_inf_nan=False)
    family_median: float = Field(ge=0, allow_inf_nan=False)
    family_p90: float = Field(ge=0, allow_inf_nan=False)


class _ConstantsSection(Section):
    source: str = Field(min_length=1)
    residuals: _ResidualsSection | None = None
    flops: dict[OpKind, Factor]
    bytes: dict[OpKind, Factor]
    models: dict[str, _FactorSection] = Field(default_factory=dict)


class _LaunchSection(Section):
    forward: Seconds
    backward: Seconds
    overlap: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]


class _PrecisionSection(Section):
    peak: Flops
    note: str


class _DeviceSection(Section):
    name: str = Field(min_length=1)
    description: str
    form: Literal["SXM", "PCIe", "NVL"] | None = None
    reported: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    memory: Size
    memory_bandwidth: Rate
    launch_overhead: Seconds
    precisions: dict[str, _PrecisionSection] = Field(min_length=1)
    published_fp32: str = "fp32"
    published: tuple[str, ...] = ()
    sources: tuple[str, ...] = Field(min_length=1)
    efficiency: dict[str, _EfficiencySection] = Field(default_factory=dict)
    launch: _LaunchSection | None = None
    constants: dict[str, _ConstantsSection] = Field(default_factory=dict)


def device_path(name_or_path: str) -> Path:
    """Return the data file of a device; raise `InputError` if there is none."""
    return find(Kind.DEVICES, name_or_path)


def load_device(name_or_path: str) -> DeviceSpec:
    """Return the data of a device, given by name or path. Raises `InputError`."""
    return _load(device_path(name_or_path).resolve())


@lru_cache(maxsize=64)
def _load(path: Path) -> DeviceSpec:
    section = load(path, _DeviceSection)
    for key, named in (("efficiency", section.efficiency), ("constants", section.constants)):
        if unknown := [name for name in named if name not in section.precisions]:
            raise InputError(
                f"{key} of {unknown[0]!r}, which is no precision of it",
                where=f"{path}: {key}",
                hint=near(unknown[0], section.precisions),
            )
    if "published_fp32" in section.model_fields_set and section.published_fp32 not in section.precisions:
        raise InputError(
            f"published_fp32 is {section.published_fp32!r}, which is no precision of it",
            where=f"{path}: published_fp32",
            hint=near(section.published_fp32, section.precisions),
        )
    if section.constants and section.launch is None:
        hint = "such as launch: {forward: 100us, backward: 25us, overlap: 1.25}"
        raise InputError("constants, but no `launch`", where=f"{path}: constants", hint=hint)
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
                model: ModelEfficiency(value=fit.value, timings=_timings(fit.timings))
                for model, fit in (efficiency.models if efficiency else {}).items()
            },
            constants=_constants(section.constants.get(name)),
        )
    launch = section.launch
    return DeviceSpec(
        name=section.name,
        description=section.description,
        memory_nbytes=section.memory,
        memory_bandwidth_Bps=section.memory_bandwidth,
        launch_overhead_s=section.launch_overhead,
        precisions=precisions,
        published_fp32=section.published_fp32,
        published=section.published,
        sources=section.sources,
        launch=LaunchCost(forward_s=launch.forward, backward_s=launch.backward, overlap=launch.overlap)
        if launch
        else None,
        form=section.form,
        reported=section.reported,
    )


def _timings(rows: tuple[_TimingSection, ...]) -> tuple[PublishedTiming, ...]:
    return tuple(PublishedTiming(**dict(row)) for row in rows)


def _constants(section: _ConstantsSection | None) -> WorkConstants | None:
    if section is None:
        return None
    return WorkConstants(
        source=section.source,
        flops=section.flops,
        nbytes=section.bytes,
        residuals=Residuals(**dict(section.residuals)) if section.residuals else None,
        models={
            name: ModelFactor(value=fit.factor, timings=_timings(fit.timings)) for name, fit in section.models.items()
        },
    )
