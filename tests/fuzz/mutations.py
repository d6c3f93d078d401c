"""What is done to a good file to make it a bad one: cut, swapped, repeated, blown up, or given values that hurt."""

from __future__ import annotations

import random
import re

HURTFUL = (
    "",
    "null",
    "~",
    "true",
    "-1",
    "0",
    "1e300",
    "-1e300",
    "1e-300",
    "nan",
    "inf",
    ".nan",
    ".inf",
    "1e19",
    "0x7fffffff",
    "9" * 25,
    "9" * 4000,
    "9" * 400 + "Gbps",
    "-10Gbps",
    "0Gbps",
    "10Gb",
    "1e9GB/s",
    "10 parsecs",
    "[]",
    "{}",
    "[[[[[[]]]]]]",
    '"\\e[31mred"',
    '"\\x00"',
    "=HYPERLINK(1)",
    "../../../etc/passwd",
    "/dev/zero",
    "os:system",
    "a" * 300,
    "x" * 100_000,
    "&a [*a]",
    "*missing",
    "!!python/object/apply:os.system [ls]",
    "2001-13-45",
    "\u202e",
    "\ufeff",
    "é",
    "1:59:59",
)
"""In the place of a value."""

MOST_NBYTES = 10**7
"""Up to so many bytes are made of one line."""

_VALUE = re.compile(rb"(?<=[:=,\[ >\"])\s*([^\s:=,\[\]{}<>\"]+)(?=[\s,\]}<\"]|$)")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """`content` after one to three mutations."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(MUTATIONS)(content, draw)
    return content


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _cut_front(content: bytes, draw: random.Random) -> bytes:
    return content[draw.randrange(len(content) + 1) :]


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 3, 20))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _lines(content: bytes, draw: random.Random) -> bytes:
    """Drop, repeat, exchange or shift lines."""
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return content * 2
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    match draw.randrange(5):
        case 0:
            del lines[i]
        case 1:
            lines.insert(j, lines[i])
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines[i] = draw.choice((b" ", b"    ", b"\t", b"- ", b"# ")) + lines[i]
        case _:
            times = min(draw.choice((10, 1000)), MOST_NBYTES // len(lines[i]) + 1)
            lines = lines[: i + 1] + [lines[i]] * times + lines[i + 1 :]
    return b"".join(lines)


def _value(content: bytes, draw: random.Random) -> bytes:
    """Put something else in the place of a value."""
    found = list(_VALUE.finditer(content))
    if not found:
        return content + draw.choice(HURTFUL).encode()
    at = draw.choice(found)
    other = draw.choice(found)[1] if draw.random() < 0.3 else draw.choice(HURTFUL).encode()
    return content[: at.start(1)] + other + content[at.end(1) :]


def _number(content: bytes, draw: random.Random) -> bytes:
    """Change a number."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return content
    at = draw.choice(found)
    factor = draw.choice((0, -1, 2, 10, 1000, 10**9, 10**18, 10**40))
    return content[: at.start()] + str(int(at[0][:20]) * factor).encode() + content[at.end() :]


def _inserted(content: bytes, draw: random.Random) -> bytes:
    """Put something between two bytes."""
    at = draw.randrange(len(content) + 1)
    what = draw.choice(
        (
            b"\x00",
            b"\x1b[2J",
            b"\r\n",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"---\n",
            b"}",
            b"{" * 2000,
            b"[" * 5000,
            b'"',
            b"\n\n",
        )
    )
    return content[:at] + what + content[at:]


def _other_kind(content: bytes, draw: random.Random) -> bytes:
    """Something that is no file of this kind at all."""
    bomb = "k0: &k0 [1,1,1,1,1,1,1,1,1]\n" + "".join(f"k{i}: &k{i} [{f'*k{i - 1},' * 9}]\n" for i in range(1, 10))
    return draw.choice(
        (
            b"",
            b"\n",
            b"null",
            b"[]",
            b"{}",
            b"42",
            b'"text"',
            b"<xml/>",
            b"a: b",
            b"\x7fELF\x02\x01",
            b"PK\x03\x04",
            b"%PDF-1.7",
            b"a,b,c\n1,2,3\n",
            bytes(range(256)),
            b"x" * 1_000_000,
            b"\n" * 1_000_000,
            bomb.encode(),
            b"<!DOCTYPE a [<!ENTITY b 'b'>]><system>&b;</system>",
            content + content,
            content[::-1],
        )
    )


MUTATIONS = (
    _cut,
    _cut_front,
    _flip,
    _lines,
    _lines,
    _value,
    _value,
    _value,
    _value,
    _number,
    _number,
    _inserted,
    _other_kind,
)
