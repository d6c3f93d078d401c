"""Host lists as Slurm writes them, such as `tux[0-3,12,018-020],login1`: taken apart, and put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

MOST_HOSTS = 100_000
MOST_LETTERS = 255
"""A name of a host is no longer (RFC 1035)."""
MOST_PREFIXES = 500
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_NUMBERED = re.compile(r"(.*?)(\d{1,9})")


class HostlistError(ValueError):
    """A host list that cannot be read; the message says why, and `hint` what would be right."""

    def __init__(self, message: str, hint: str = "such as tux[0-3,12],login1") -> None:
        super().__init__(message)
        self.hint = hint


def expand(text: str) -> list[str]:
    """Return the names in a list, in its order. Raises `HostlistError`."""
    names: list[str] = []
    for item in _items(text):
        parts = re.split(r"\[([^\[\]]*)\]", item)  # text, range, text, range, ..., text
        if any("[" in part or "]" in part for part in parts[::2]):
            raise HostlistError(f"{item!r} has a bracket without another")
        if len(parts) > 1 and not parts[0]:
            raise HostlistError(f"{item!r} has no name in front of its range", "a prefix is missing, as in tux[0-3]")
        choices: list[list[str]] = []
        count = 1
        for i, part in enumerate(parts):
            choices.append([part] if i % 2 == 0 else list(_numbers(part, item)))
            count *= len(choices[-1])
            if len(names) + count > MOST_HOSTS:  # before the next bracket is taken apart
                raise HostlistError(f"{text[:40]!r} are more than {MOST_HOSTS:,} names", "that is the most")
        if sum(max(map(len, choice)) for choice in choices) > MOST_LETTERS:
            raise HostlistError(f"{item[:40]!r} is too long for a name", f"{MOST_LETTERS} letters are the most")
        names += ("".join(chosen) for chosen in product(*choices))
    return names


def _items(text: str) -> Iterator[str]:
    """The parts between commas that are in no bracket."""
    depth, item = 0, ""
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == "," and depth == 0:
            if not item:
                raise HostlistError(f"{text[:60]!r} has nothing before a comma")
            yield item
            item = ""
        else:
            item += c
    if depth > 0:
        raise HostlistError(f"{text[-60:]!r} is cut short: a bracket does not end")
    if not item:
        raise HostlistError(f"{text[:60]!r} has nothing behind a comma" if text else "is empty")
    yield item


def _numbers(text: str, item: str) -> Iterator[str]:
    """The numbers of a bracket's ranges, padded as they are; no more than `MOST_HOSTS`."""
    count = 0
    for part in text.split(","):
        ends = _RANGE.fullmatch(part.strip())
        if ends is None:
            raise HostlistError(f"{part!r} in {item!r} is no range")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise HostlistError(f"{part!r} in {item!r} ends before it begins")
        count += last - first + 1
        if count > MOST_HOSTS:
            raise HostlistError(f"{item[:40]!r} are more than {MOST_HOSTS:,} names", "that is the most")
        for number in range(first, last + 1):
            yield str(number).rjust(len(ends[1]), "0")


def fold(names: Iterable[str]) -> str:
    """Return names as a list, the shorter for numbers that follow each other."""
    found: list[list[str]] = []  # prefix, first, last
    for name in names:
        numbered = _NUMBERED.fullmatch(name)
        if numbered is None:
            found.append([name, "", ""])
            continue
        prefix, number = numbered[1], numbered[2]
        last = found[-1] if found else ["", "", ""]
        follows = last[2] and last[0] == prefix and int(last[2]) + 1 == int(number) and _as_wide(last[2], number)
        if follows:
            last[2] = number
        else:
            found.append([prefix, number, number])
    texts: list[str] = []
    for i, (prefix, first, final) in enumerate(found):
        part = first if first == final else f"{first}-{final}"
        before = found[i - 1] if i else None
        if before and before[1] and first and before[0] == prefix:
            texts[-1] = f"{texts[-1][:-1]},{part}]" if texts[-1].endswith("]") else f"{prefix}[{before[1]},{part}]"
        else:
            texts.append(f"{prefix}[{part}]" if first != final else prefix + first)
    return ",".join(texts)


def _as_wide(before: str, number: str) -> bool:
    return len(before) == len(number) or (before[0] != "0" and number[0] != "0")


def without_prefix(names: Sequence[str]) -> dict[str, str]:
    """Return the names whose prefix seems to be cut short, with what each may have been.

    Such a prefix is the end of that of most others, which have no host of its number: `n19` beside `circe-n1` and so on
    to `circe-n40`. Nothing is returned where there are more than `MOST_PREFIXES`, which tell nothing.
    """
    numbers: dict[str, dict[int, str]] = {}
    for name in names:
        if numbered := _NUMBERED.fullmatch(name):
            numbers.setdefault(numbered[1], {})[int(numbered[2])] = numbered[2]
    found: dict[str, str] = {}
    if len(numbers) > MOST_PREFIXES:
        return found
    for prefix, few in numbers.items():
        for longer, many in numbers.items():
            if longer == prefix or not longer.endswith(prefix) or len(few) * 2 > len(many) or few.keys() & many.keys():
                continue
            least, most = min(many), max(many)
            for number, digits in few.items():
                if least <= number <= most + 2:
                    found[f"{prefix}{digits}"] = f"{longer}{digits}"
    return found
