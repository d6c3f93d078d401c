"""Transports: what a NIC states of the software above it, with presets from data files that name their sources.

One YAML file per preset, in `stanza_sim/data/transports` or in `./transports`. A value that a NIC states itself
overrides the preset's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from stanza_sim.base.config import Fraction, Kind, Section, available, find, load
from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Rate, Seconds, format_rate
from stanza_sim.cluster.hardware import Transport
from stanza_sim.cluster.topology import TransportKeys

_T = TypeVar("_T")


class TransportSection(Section):
    """A data file of a transport; what it leaves out is as for a NIC without a preset."""

    name: str = Field(min_length=1)
    description: str
    efficiency: Fraction | None = None
    latency: Seconds | None = None
    overhead: Seconds | None = None
    stream_rate: Rate | None = None
    process_rate: Rate | None = None
    process_inside: bool | None = None
    message_core: Seconds | None = None
    byte_core: Seconds | None = None
    sources: tuple[str, ...] = Field(min_length=1)


def load_transport(name: str) -> TransportSection:
    """Return the data of a preset; raise `InputError`, with the names of all, where there is none."""
    names = available(Kind.TRANSPORTS)
    if "/" not in name and not name.endswith((".yaml", ".yml")) and name not in names:
        raise InputError(f"unknown preset {name!r}", hint=f"known: {', '.join(names)}")
    return _load(find(Kind.TRANSPORTS, name).resolve())


@lru_cache(maxsize=64)
def _load(path: Path) -> TransportSection:
    return load(path, TransportSection)


def preset_of(stated: TransportKeys) -> TransportSection | None:
    """Return the data of the preset that a NIC states, if it states one. Raises `InputError` for an unknown one."""
    return None if stated.preset is None else load_transport(stated.preset)


def first(*values: _T | None, default: _T) -> _T:
    """Return the first of `values` that is stated, or else `default`."""
    return next((value for value in values if value is not None), default)


def make_transport(stated: TransportKeys, raw_Bps: float, under: Transport) -> Transport:
    """Return what a NIC states, then what its preset does, over `under`.

    Raises `InputError` for a limit, stated beside the preset, that is above `raw_Bps`, the larger rate of the NIC's
    sides.
    """
    for key in ("stream_rate", "process_rate"):
        limit = getattr(stated, key)
        if limit is not None and limit > raw_Bps:
            hint = f"the port carries {format_rate(raw_Bps)}; leave {key} out where nothing else limits"
            raise InputError(f"{key} of {format_rate(limit)} is above the rate", hint=hint)
    preset = preset_of(stated)
    if preset is None:
        preset = TransportSection(name="none", description="", sources=("none",))
    else:
        under = Transport(preset=preset.name)
    return Transport(
        preset=under.preset,
        stream_Bps=first(stated.stream_rate, preset.stream_rate, default=under.stream_Bps),
        process_Bps=first(stated.process_rate, preset.process_rate, default=under.process_Bps),
        process_inside=first(stated.process_inside, preset.process_inside, default=under.process_inside),
        message_core_s=first(stated.message_core, preset.message_core, default=under.message_core_s),
        byte_core_s=first(stated.byte_core, preset.byte_core, default=under.byte_core_s),
    )
