"""What a sweep varies: `--vary network.rate=1Gbps,10Gbps`, `--vary nodes=2..64`, `--vary nodes=2..64:2`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import product
from random import Random

from stanza_sim.base import config, units
from stanza_sim.base.errors import InputError, at

MOST_POINTS = 100_000
"""A sweep of more points is taken to be a slip of the pen."""
MOST_TRIED = 256
"""So many combinations are tried before a value is refused."""
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_FLOAT = re.compile(rf"{_NUMBER}(?:[eE][-+]?[0-9]+)?")
_QUANTITY = re.compile(rf"({_NUMBER})\s*([^0-9.\s]\S*)")
_USUAL = re.compile(r"0|-?[1-9][0-9]*")
_PERHAPS = re.compile(r"[-+.0-9][-+._0-9a-fA-Fxo]*")
_RANGE = re.compile(r"(?P<first>[^:]+?)\.\.(?P<last>[^:]+)(?::(?P<step>[^:]+))?")
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

    Numbers are what they are to `--set` and are kept in one spelling: `0x4` and `1_000` as `4` and `1000`. Raises
    `InputError` for what is neither, for an empty list and for a range that is wrong.
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
    with at(where):
        for part in parts:
            spread = ".." in part and part[0] not in "[{\"'" and "/" not in part
            values += map(_spelled, _range(part, where) if spread else [part])
    return Axis(key=key.strip(), values=tuple(dict.fromkeys(values)))


def _spelled(text: str) -> str:
    """The usual spelling of what `--set` reads as a number; all else as it is."""
    if not _PERHAPS.fullmatch(text) or _USUAL.fullmatch(text):
        return text
    value = config.parse_override(f"value={text}")[1]
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    return text


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
    ends = None if match is None else [_end(match[part]) for part in ("first", "last", "step") if match[part]]
    if match is None or ends is None or None in ends:
        raise InputError(f"{text!r} is not a range", where=where, hint=_HINT)
    numbers = [end for end in ends if end is not None]
    if len({unit for _, unit in numbers}) > 1:
        raise InputError(f"the units of {text!r} differ", where=where, hint="first, last and step need the same unit")
    (first, unit), (last, _) = numbers[:2]
    whole = not unit and first == first.to_integral_value() and last == last.to_integral_value()
    if len(numbers) < 3 and not whole:
        raise InputError(f"{text!r} has no step", where=where, hint=f"write such as {text}:{match['first'].strip()}")
    step = numbers[2][0] if len(numbers) > 2 else Decimal(1)
    if step <= 0 or last < first:
        what = "a step must be positive" if step <= 0 else f"{text!r} ends before it begins"
        raise InputError(what, where=where, hint=_HINT)
    count = int((last - first) / step) + 1
    if count > MOST_POINTS:
        raise InputError(f"{text!r} has {count} values", where=where, hint=f"at most {MOST_POINTS} points")
    return (f"{first + i * step:f}{unit}" for i in range(count))


def _end(text: str) -> tuple[Decimal, str] | None:
    """Return (number, unit) of one part of a range; None for what is no number."""
    plain = _spelled(text.strip())
    if _FLOAT.fullmatch(plain):
        return Decimal(plain), ""
    quantity = _QUANTITY.fullmatch(plain)
    return None if quantity is None else (Decimal(quantity[1]), quantity[2])


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
    if not _FLOAT.fullmatch(text):
        raise InputError(f"{text!r} is not a number")
    return float(text)


SCALES = (
    Scale(unit="", number=_count, text=lambda value: f"{value:.0f}", whole=True),
    Scale(unit="", number=_float, text=lambda value: f"{value:.6g}"),
    Scale(unit="B/s", number=partial(units.rate, zero=True), text=lambda value: f"{value * 8e-9:.9f}Gbps"),
    Scale(unit="s", number=units.seconds, text=lambda value: f"{value * 1e9:.6f}ns"),
    Scale(unit="B", number=partial(units.nbytes, zero=True), text=lambda value: f"{value:.0f}B", whole=True),
    Scale(unit="FLOPS", number=units.flops, text=lambda value: f"{value * 1e-9:.9f}GFLOPS"),
)


def scale_of(axis: Axis) -> Scale | None:
    """How the values of an axis are numbers, if all of them are, of one kind."""
    return next((scale for scale in SCALES if all(_reads(scale, value) for value in axis.values)), None)


def _reads(scale: Scale, text: str) -> bool:
    try:
        scale.number(text)
    except InputError:
        return False
    return True


def why_no_scale(axis: Axis) -> str:
    """Why there is nothing between the values of an axis; empty where there is."""
    if len(axis.values) < 2:
        return "it has one value only"
    if scale_of(axis) is not None:
        return ""
    for value in axis.values:
        if not any(_reads(scale, value) for scale in SCALES):
            return f"{value if len(value) <= 40 else value[:39] + '…'} is no number"
    return "its values are not numbers of one kind"


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


def check_values(axes: Sequence[Axis], try_changes: Callable[[Sequence[str]], object]) -> None:
    """Raise `InputError` for the first value that the experiment refuses, whatever else is varied with it.

    A value may need values of other keys of its section, such as `jitter.kind` one of `jitter.spread`: it is good if it
    goes with some of those that these are given. Where these are many only a sample of their combinations is tried.
    """
    for i, axis in enumerate(axes):
        same = [j for j, other in enumerate(axes) if j == i or _section(other) == _section(axis)]
        for value in axis.values:
            if _refused([axis.override(value)], try_changes) is None:
                continue
            near = [Axis(key=axis.key, values=(value,)) if j == i else axes[j] for j in same]
            first: InputError | None = None
            for changes in combinations(near):
                if (error := _refused(changes, try_changes)) is None:
                    break
                first = first or error
            else:
                if first is not None:
                    raise first


def combinations(axes: Sequence[Axis]) -> Iterator[list[str]]:
    """Yield what `--set` is given for combinations of values: of many a sample, always the same."""
    count = math.prod(len(axis.values) for axis in axes)
    some = range(count) if count <= MOST_TRIED else sorted(Random(0).sample(range(count), MOST_TRIED))
    for index in some:
        changes: list[str] = []
        for axis in reversed(axes):
            index, digit = divmod(index, len(axis.values))
            changes.append(axis.override(axis.values[digit]))
        yield changes[::-1]


def _section(axis: Axis) -> str:
    return axis.key.partition(".")[0].strip()


def _refused(changes: Sequence[str], try_changes: Callable[[Sequence[str]], object]) -> InputError | None:
    """What is wrong with `changes`, said of `--vary`."""
    try:
        try_changes(changes)
    except InputError as error:
        where = error.where or ""
        if any(where.startswith(f"--set {change}") for change in changes):
            where = where.replace("--set", "--vary", 1)
        else:
            where = f"--vary {' --vary '.join(changes)}" + (f": {where}" if where else "")
        return InputError(error.message, where=where, hint=error.hint)
    return None
