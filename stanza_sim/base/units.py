"""Quantities with units: what a user writes, and how a number is shown.

Inside the program rates are bytes per second, times seconds, sizes bytes and speeds FLOP per second, as plain
numbers. A user writes `10Gbps`, `25us`, `64MiB`, `15.7TFLOPS`, always with a unit and in exactly one spelling:
`Gbps` is 10^9 bits per second, `GB/s` 10^9 bytes per second, `GiB` 2^30 bytes. quantiphy does the arithmetic of
scale factors; which spellings exist is decided here, because it would read `10mbps` as 10 millibits per second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, get_args

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from quantiphy import Quantity

from stanza_sim.base.errors import InputError

LEAST_RATE_BPS, MOST_RATE_BPS = 1e-3, 1e18
"""No rate is beyond these: what a simulation computes with it would lose all its digits."""
MOST_TIME_S = 1e9
"""Nor any time."""
MOST_NBYTES = 10**18
"""Nor any size: with 2^53 bytes a double no longer holds each byte, and no cluster holds as many as these."""
MOST_FLOPS = 1e24
"""Nor any compute speed; the fastest cluster there is reaches 1e19."""
LONGEST = 500
"""Characters of a quantity: what is longer is no number that anyone reads, and takes long to analyse."""

_DECIMAL = ("", "k", "M", "G", "T")
_BINARY = ("Ki", "Mi", "Gi", "Ti")
_TEXT = re.compile(r"(?P<sign>[-+]?)(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+)\s*(?P<unit>[^0-9\s].*)?", re.DOTALL)
_BITS = re.compile(r"([kmgtKMGT]?)(?:b|bit|bits)(?:/s|/sec|ps|)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dimension:
    """A kind of quantity: its name in messages, the spellings it accepts, and what to show as an example."""

    noun: str
    units: frozenset[str]
    example: str


_RATE = _Dimension(
    noun="rate",
    units=frozenset([p + "bps" for p in _DECIMAL] + [p + "B/s" for p in (*_DECIMAL, *_BINARY)]),
    example="10Gbps (bits) or 1.25GB/s (bytes)",
)
_TIME = _Dimension(
    noun="time", units=frozenset(["s", "ms", "us", "\u00b5s", "\u03bcs", "ns"]), example="25us, 1.5ms or 60s"
)
_SIZE = _Dimension(noun="size", units=frozenset(p + "B" for p in (*_DECIMAL, *_BINARY)), example="64MiB or 25MB")
_FLOPS = _Dimension(
    noun="compute speed", units=frozenset(p + "FLOPS" for p in (*_DECIMAL[1:], "P")), example="15.7TFLOPS"
)


def _show(value: object) -> str:
    """Return `value` as shown in a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…{text[-1]}"


def _unit_hint(unit: str, dimension: _Dimension) -> str:
    """Return what would be right instead of `unit`."""
    if dimension is _RATE and unit in _SIZE.units:
        return f"{unit} is a size; a rate is per second, such as {unit}/s or, in bits, {unit[:-1]}bps"
    if dimension is _RATE and unit.endswith("Bps"):
        return f"write {unit[:-2]}/s for bytes per second, {unit[:-3]}bps for bits per second"
    if dimension is _SIZE and unit in _RATE.units:
        return f"{unit} is a rate; a size is written such as {dimension.example}"
    if dimension is _RATE and (bits := _BITS.fullmatch(unit)):
        return f"did you mean {bits[1].upper().replace('K', 'k')}bps (10^n bits per second)?"
    by_case = {u.lower(): u for u in sorted(dimension.units, reverse=True)}
    if near := [by_case[n] for n in difflib.get_close_matches(unit.lower(), by_case, n=1)]:
        return f"did you mean {near[0]}? A {dimension.noun} is written such as {dimension.example}"
    return f"a {dimension.noun} is written such as {dimension.example}"


def _parse(value: object, dimension: _Dimension, *, where: str | None, zero: bool) -> tuple[float, str]:
    """Return (number in the unit without its scale factor, that unit) or raise `InputError`."""
    noun, write = f"a {dimension.noun}", f"a {dimension.noun} is written with its unit, such as {dimension.example}"
    if not isinstance(value, str):
        shown = "nothing" if value is None else _show(value)
        bare = isinstance(value, int | float) and not isinstance(value, bool)
        what = f"{shown} has no unit" if bare else f"{shown} is not {noun}"
        raise InputError(what, where=where, hint=write)
    match = _TEXT.fullmatch(value.strip()) if len(value) <= LONGEST else None
    if match is None:
        raise InputError(f"{_show(value)} is not {noun}", where=where, hint=write)
    unit = (match["unit"] or "").strip()
    if not unit:
        raise InputError(f"{_show(value)} has no unit", where=where, hint=write)
    if unit not in dimension.units:
        hint = _unit_hint(unit, dimension)
        raise InputError(f"{_show(value)} is not {noun}: unknown unit {unit!r}", where=where, hint=hint)
    quantity = Quantity(match["number"] + unit, binary=True)
    number, base = float(quantity), quantity.units
    if not isfinite(number):
        raise InputError(f"{_show(value)} is too large", where=where)
    if match["sign"] == "-" and number > 0:
        least = "zero or positive" if zero else "positive"
        raise InputError(f"{_show(value)} is negative", where=where, hint=f"{noun} must be {least}")
    if number == 0 and not zero:
        raise InputError(f"{_show(value)} is zero", where=where, hint=f"this {dimension.noun} must be positive")
    return number, base


def rate(value: object, *, where: str | None = None, zero: bool = False) -> float:
    """Return bytes per second for a text such as `10Gbps` or `900GB/s`.

    Raises `InputError` (at `where`) for anything else, and for 0 unless `zero` allows it.
    """
    number, base = _parse(value, _RATE, where=where, zero=zero)
    bandwidth_Bps = number / 8 if base == "bps" else number
    if 0 < bandwidth_Bps < LEAST_RATE_BPS:
        raise InputError(f"{_show(value)} is too small", where=where, hint="no link is as slow as that")
    if bandwidth_Bps > MOST_RATE_BPS:
        raise InputError(f"{_show(value)} is too large", where=where, hint="no link is as fast as that")
    return bandwidth_Bps


def seconds(value: object, *, where: str | None = None, zero: bool = True) -> float:
    """Return seconds for a text such as `25us`. Raises `InputError` as `rate` does; 0 (`0s`) is allowed by default."""
    time_s = _parse(value, _TIME, where=where, zero=zero)[0]
    if time_s > MOST_TIME_S:
        raise InputError(f"{_show(value)} is too large", where=where, hint="use less than 30 years")
    return time_s


def nbytes(value: object, *, where: str | None = None, zero: bool = False) -> int:
    """Return whole bytes for a text such as `64MiB`. Raises `InputError` as `rate` does, and for part of a byte."""
    number, _ = _parse(value, _SIZE, where=where, zero=zero)
    if number > MOST_NBYTES:
        raise InputError(f"{_show(value)} is too large", where=where, hint="no cluster holds as much as that")
    whole = round(number)
    if abs(number - whole) > 1e-6:
        raise InputError(f"{_show(value)} is not a whole number of bytes", where=where)
    return whole


def flops(value: object, *, where: str | None = None) -> float:
    """Return FLOP per second for a text such as `15.7TFLOPS`. Raises `InputError` as `rate` does."""
    speed = _parse(value, _FLOPS, where=where, zero=False)[0]
    if speed > MOST_FLOPS:
        raise InputError(f"{_show(value)} is too large", where=where, hint="no device is as fast as that")
    return speed


def format_rate(bandwidth_Bps: float, *, digits: int = 3) -> str:
    """Return a rate in bits per second, such as `10 Gbps`, with `digits` significant digits."""
    return Quantity(bandwidth_Bps * 8, "bps").render(prec=digits - 1)


def format_time(time_s: float, *, digits: int = 3) -> str:
    """Return a time with the fitting unit, such as `12.3 ms`, with `digits` significant digits."""
    return Quantity(time_s, "s").render(prec=digits - 1)


def format_bytes(size: float, *, digits: int = 3) -> str:
    """Return a size in decimal units, such as `553 MB`, with `digits` significant digits."""
    return Quantity(size, "B").render(prec=digits - 1)


def format_flops(speed: float, *, digits: int = 3) -> str:
    """Return a compute speed, such as `15.7 TFLOPS`, with `digits` significant digits."""
    return Quantity(speed, "FLOPS").render(prec=digits - 1)


def _validator(parse: Callable[[object], float]) -> BeforeValidator:
    """Make `parse` a pydantic validator whose message and hint survive in the validation error."""

    def check(value: object) -> float:
        try:
            return parse(value)
        except InputError as error:
            context = {"message": error.message, "hint": error.hint or ""}
            raise PydanticCustomError("unit", "{message}", context) from None

    return BeforeValidator(check)


Rate = Annotated[float, _validator(rate)]
"""A positive rate in bytes per second, for pydantic models of what a user writes."""
Seconds = Annotated[float, _validator(seconds)]
"""A time in seconds, zero allowed."""
PositiveSeconds = Annotated[float, _validator(lambda v: seconds(v, zero=False))]
"""A time in seconds above zero."""
Size = Annotated[int, _validator(nbytes)]
"""A size in bytes above zero."""
SizeOrZero = Annotated[int, _validator(lambda v: nbytes(v, zero=True))]
"""A size in bytes, zero allowed."""
Flops = Annotated[float, _validator(flops)]
"""A positive compute speed in FLOP per second."""


def is_size(metadata: Sequence[object]) -> bool:
    """Whether a field with this pydantic metadata is a `Size` or a `SizeOrZero`."""
    return any(m in metadata for kind in (Size, SizeOrZero) for m in get_args(kind)[1:])


def may_be_size(annotation: object) -> bool:
    """Whether a field that is annotated so may be a `Size`, such as `Size | None`."""
    return any(is_size(getattr(kind, "__metadata__", ())) for kind in get_args(annotation))


def exact_size(size: int) -> str:
    """A whole number of bytes as a user writes it, such as `25MiB` or `100kB`: nothing is rounded."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("GB", 10**9), ("MB", 10**6), ("KiB", 2**10), ("kB", 10**3)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
