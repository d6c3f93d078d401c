"""What a foreign file does not hold and a user adds by options: rates by level, devices, cores, the number of hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stanza_sim.base import units
from stanza_sim.base.config import Kind, available, find
from stanza_sim.base.errors import InputError
from stanza_sim.importers.native import rate_text

NONE = 0.0
"""The rate of `--rate LEVEL=none`: there is no such link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of an import, as far as a format takes them."""

    name: str | None = None
    device: str | None = None
    devices_per_host: int | None = None
    hosts: int | None = None
    cores: int | None = None
    nics: int | None = None
    matrix: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    """Bytes per second by level; `NONE` where the user says that there is none."""

    def check_levels(self, levels: Iterable[str], where: str) -> None:
        """Raise `InputError` for a rate of a level that the file has not."""
        known = list(levels)
        for level in self.rates:
            if level not in known:
                what = f"there is no level {level!r}"
                raise InputError(what, where=f"--rate {level}=...", hint=f"{where} has: {', '.join(known)}")


def parse_rates(texts: Iterable[str], *, none: Iterable[str] = ()) -> dict[str, float]:
    """Read `LEVEL=RATE` of several `--rate`; the levels in `none` may also be `none`.

    Raises `InputError` for what is written otherwise, and for a level that is stated twice.
    """
    rates: dict[str, float] = {}
    for text in texts:
        level, equals, value = (part.strip() for part in text.partition("="))
        if not (level and equals and value):
            raise InputError(f"{text!r} is not LEVEL=RATE", where="--rate", hint="write such as --rate nic=200Gbps")
        if level in rates:
            raise InputError(f"{level} is stated twice", where="--rate")
        rates[level] = NONE if value == "none" and level in none else units.rate(value, where=f"--rate {text}")
    return rates


def device_name(asked: str) -> str:
    """A device as a native file names it: a name that is known or the whole path of a file.

    Raises `InputError` for one that there is not.
    """
    if asked == "cpu":
        raise InputError("cpu is not a device to list", where="--device", hint="leave --device out")
    try:
        path = find(Kind.DEVICES, asked)
    except InputError as error:
        raise InputError(error.message, where="--device", hint=error.hint) from None
    is_path = "/" in asked or asked.endswith((".yaml", ".yml"))
    return str(Path(path).resolve()) if is_path else asked


def devices_known() -> str:
    """The devices that there are data of, for a hint."""
    return ", ".join(name for name in available(Kind.DEVICES) if name != "cpu" and not name.startswith("emulated"))


def said_rate(level: str, bandwidth_Bps: float) -> str:
    """A comment for a rate that the user gave."""
    return f"--rate {level}={rate_text(bandwidth_Bps, bits=level == 'nic')}"
