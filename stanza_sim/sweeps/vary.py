"""What a sweep varies: `--vary network.rate=1Gbps,10Gbps`, `--vary nodes=2..64`, `--vary nodes=2..64:2`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product

from stanza_sim import config, units
from stanza_sim.errors import InputError

MOST_POINTS = 100_000
"""A sweep of more points is taken to be a slip of the pen."""
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_RANGE = re.compile(
    rf"(?P<a>{_NUMBER})(?P<a_unit>[^0-9.\s][^.\s]*)?\.\.(?P<b>{_NUMBER})(?P<b_unit>[^0-9.:\s][^:\s]*)?"
    rf"(?::(?P<step>{_NUMBER})(?P<step_unit>[^0-9.\s]\S*)?)?"
)
_HINT = "write such as nodes=2..64, nodes=4..64:4 or network.rate=1Gbps..10Gbps:1Gbps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A key of the experiment and the values that it takes, as texts that `--set` takes too."""

    key: str
    values: tuple[str, ...]

    def override(self, value: str) -> str:
        """What `--set` is given for a value."""
        return f"{self.key}={value}"


Point = tuple[str, ...]
"""One value for each axis."""


def read_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Read the texts of all `--vary`. Raises `InputError` for none, a key given twice, and what `read_axis` refuses."""
    if not texts:
        raise InputError("a sweep needs something to vary", where="--vary", hint=_HINT)
    axes = tuple(read_axis(text) for text in texts)
    keys = [axis.key for axis in axes]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{twice[0]} is varied twice", where="--vary", hint="list all its values in one --vary")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_POINTS:
        raise InputError(f"{count} points are too many", where="--vary", hint=f"at most {MOST_POINTS} points")
    return axes


def read_axis(text: str) -> Axis:
    """Read `key=value,value` and `key=first..last:step`, also mixed; a value that is listed twice counts once.

    Raises `InputError` for what is neither, for an empty list and for a range that is wrong.
    """
    key, equals, listed = text.partition("=")
    where = f"--vary {text}"
    if not equals or not all(part.strip() for part in key.split(".")):
        raise InputError(f"{text!r} is not key=values", where="--vary", hint=_HINT)
    parts = [part.strip() for part in _split(listed)]
    if not all(parts):
        what = "no values" if len(parts) == 1 else "a value is missing between commas"
        raise InputError(what, where=where, hint=_HINT)
    values: list[str] = []
    for part in parts:
        values += _range(part, where) if ".." in part and part[0] not in "[{\"'" and "/" not in part else [part]
    return Axis(key=key.strip(), values=tuple(dict.fromkeys(values)))


def _split(text: str) -> list[str]:
    """Cut a text at commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _range(text: str, where: str) -> Iterator[str]:
    """Return the values of `first..last:step`."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a range", where=where, hint=_HINT)
    given = [match["a_unit"] or "", match["b_unit"] or ""] + ([match["step_unit"] or ""] if match["step"] else [])
    if len(set(given)) > 1:
        raise InputError(f"the units of {text!r} differ", where=where, hint="first, last and step need the same unit")
    first, last, unit = Decimal(match["a"]), Decimal(match["b"]), given[0]
    whole = not unit and first == first.to_integral_value() and last == last.to_integral_value()
    if match["step"] is None and not whole:
        raise InputError(f"{text!r} has no step", where=where, hint=f"write such as {text}:{match['a']}{unit}")
    step = Decimal(match["step"] or 1)
    if step <= 0 or last < first:
        what = "a step must be positive" if step <= 0 else f"{text!r} ends before it begins"
        raise InputError(what, where=where, hint=_HINT)
    count = int((last - first) / step) + 1
    if count > MOST_POINTS:
        raise InputError(f"{text!r} has {count} values", where=where, hint=f"at most {MOST_POINTS} points")
    return (f"{first + i * step:f}{unit}" for i in range(count))


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every combination of values, the last axis fastest."""
    return list(product(*(axis.values for axis in axes)))


# --- numbers on an axis ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How the values of an axis are numbers: `number` reads one, `text` writes one, `whole` says that they are counts.

    `unit` is that of the numbers; it is empty for what has none.
    """

    unit: str
    number: Callable[[str], float]
    text: Callable[[float], str]
    whole: bool = False


def _count(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]+", text):
        raise InputError(f"{text!r} is not a whole number")
    return int(text)


def _float(text: str) -> float:
    if not re.fullmatch(_NUMBER, text):
        raise InputError(f"{text!r} is not a number")
    return float(text)


SCALES = (
    Scale(unit="", number=_count, text=lambda value: f"{value:.0f}", whole=True),
    Scale(unit="", number=_float, text=lambda value: f"{value:.6g}"),
    Scale(unit="B/s", number=units.rate, text=lambda value: f"{value * 8e-9:.9f}Gbps"),
    Scale(unit="s", number=units.seconds, text=lambda value: f"{value * 1e9:.6f}ns"),
    Scale(unit="B", number=units.nbytes, text=lambda value: f"{value:.0f}B", whole=True),
    Scale(unit="FLOPS", number=units.flops, text=lambda value: f"{value * 1e-9:.9f}GFLOPS"),
)


def scale_of(axis: Axis) -> Scale | None:
    """How the values of an axis are numbers, if all of them are, of one kind."""
    for scale in SCALES:
        try:
            for value in axis.values:
                scale.number(value)
        except InputError:
            continue
        return scale
    return None


def shown(value: float, scale: Scale) -> str:
    """A number of an axis for a person, to three digits."""
    match scale.unit:
        case "B/s":
            return units.format_rate(value)
        case "s":
            return units.format_time(value)
        case "B":
            return units.format_bytes(value)
        case "FLOPS":
            return units.format_flops(value)
        case _:
            return scale.text(value)


def check_keys(axes: Sequence[Axis], try_key: Callable[[str], object]) -> None:
    """Raise `InputError` for the first value that the experiment refuses, whatever else is varied with it."""
    for axis in axes:
        config.parse_override(f"{axis.key}=x")
        for value in axis.values:
            try_key(axis.override(value))
