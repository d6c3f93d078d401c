"""Reads the printed form of a schedule, which `schedule.printing` writes.

Printed form = parse form = trace label = join key:

    schedule allreduce model=lenet world=4 batch=32 microbatches=1 itemsize=4
    group worker 0-3
    cut fc0 @worker rows inputs=128 outputs=32
    bundle b0 numel=1690 owners=worker layout=replicated tensors=fc.weight,fc.bias
    bundle b2 numel=1000 owners=worker layout=replicated start=500 tensors=c2.weight
    fwd.fc: forward fc @worker after_previous=upd.b0
    ar.b0: all_reduce grad(b0) @worker nbytes=6760 algorithm=ring after=bwd.fc
    ar.b1: all_reduce grad(b1) @worker nbytes=9600 algorithm=hierarchical by=steps local=2 after=bwd.fc
    fac.b2: transfer factors(b2) worker->worker all-pairs nbytes=4096 channel=factors after=bwdi.fc
    push.b0: transfer grad(b0) worker->server fan-in nbytes=6760 channel=push priority=3 after=bwd.fc

A default is not printed, such as `moments=1` in the first line. Lines that are empty or begin with `#` are skipped when
parsing.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TypeVar

from stanza_sim.base.errors import ScheduleError, at
from stanza_sim.schedule.ops import (
    CHUNK_BYTES,
    NO_PRIORITY,
    Algorithm,
    Axis,
    Bundle,
    Carrier,
    Collective,
    CollectiveKind,
    Compute,
    Cut,
    Group,
    Keep,
    Layout,
    Op,
    Pattern,
    Phase,
    Transfer,
    Value,
    ValueKind,
    Wire,
)
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

_VALUE = re.compile(r"([a-z]+)(?:\(([^()]*)\))?")
_PAIR = re.compile(r"([0-9]{1,18})>([0-9]{1,18})")
E_ = TypeVar("E_", bound=StrEnum)


class _TextLine:
    """One line being parsed: positional words first, then key=value options, each to be taken once."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = text.split()
        self.words = [p for p in parts if "=" not in p]
        self.options: dict[str, str] = {}
        for p in parts:
            if "=" in p:
                key, value = p.split("=", 1)
                if key in self.options:
                    raise self.error(f"{key} is given twice")
                self.options[key] = value

    def error(self, message: str, hint: str | None = None) -> ScheduleError:
        return ScheduleError(f"{message}\n  in: {self.text}", hint=hint)

    def word(self, what: str) -> str:
        if not self.words:
            raise self.error(f"{what} is missing")
        return self.words.pop(0)

    def marked(self, mark: str, what: str) -> str:
        word = self.word(what)
        if not word.startswith(mark):
            raise self.error(f"{word!r} should be {what}, written {mark}NAME")
        return word[len(mark) :]

    def number(self, key: str, default: int | None = None) -> int:
        text = self.options.pop(key, None)
        if text is None:
            if default is None:
                raise self.error(f"{key}= is missing")
            return default
        if re.fullmatch(r"-?[0-9]{1,18}", text) is None:
            raise self.error(f"{key}={text} is not a whole number")
        return int(text)

    def option(self, key: str, default: str | None = None) -> str:
        text = self.options.pop(key, default)
        if text is None:
            raise self.error(f"{key}= is missing")
        return text

    def names(self, key: str) -> tuple[str, ...]:
        return tuple(filter(None, self.options.pop(key, "").split(",")))

    def choice(self, kind: type[E_], text: str) -> E_:
        try:
            return kind(text)
        except ValueError:
            raise self.error(f"{text!r} is not one of {', '.join(kind)}") from None

    def end(self) -> None:
        if self.words or self.options:
            raise self.error(f"{' '.join([*self.words, *self.options])!r} does not belong here")


def _value(line: _TextLine, text: str) -> Value:
    m = _VALUE.fullmatch(text)
    if m is None:
        hint = "write grad(b), factors(b), param(b), act(b), actgrad(b), logsum(b) or labels"
        raise line.error(f"{text!r} is not a value", hint=hint)
    return Value(line.choice(ValueKind, m[1]), m[2] or "")


def parse_op(text: str) -> Op:
    """Read one op back from its printed form; raises `ScheduleError` with the line."""
    line = _TextLine(text)
    name = line.word("the op's name")
    if not name.endswith(":") or len(name) == 1:
        raise line.error(f"{name!r} should be the op's name with a colon")
    name = name[:-1]
    kind = line.word("the op's kind")
    op: Op
    if kind in list(Phase):
        op = Compute(
            name=name,
            phase=Phase(kind),
            target=line.word("the block or bundle"),
            ranks=line.marked("@", "the group"),
            microbatch=line.number("microbatch", 0),
            lane=line.option("lane", "main"),
            after=line.names("after"),
            after_previous=line.names("after_previous"),
        )
    elif kind == "transfer":
        values = tuple(_value(line, v) for v in line.word("the values").split("+"))
        ends = line.word("source->destination").split("->")
        if len(ends) != 2 or not all(ends):
            raise line.error("a transfer goes from one group to another, written SOURCE->DESTINATION")
        pairs = []
        pattern = line.choice(Pattern, line.word("the pattern"))
        for pair in line.names("pairs"):
            m = _PAIR.fullmatch(pair)
            if m is None:
                raise line.error(f"{pair!r} is not a pair", hint="write 0>3,1>3")
            pairs.append((int(m[1]), int(m[2])))
        op = Transfer(
            name=name,
            values=values,
            src=ends[0],
            dst=ends[1],
            pattern=pattern,
            nbytes=line.number("nbytes"),
            channel=line.option("channel", "p2p"),
            priority=line.number("priority", 0),
            credit=line.number("credit", 0),
            microbatch=line.number("microbatch", 0),
            arrives_as=line.number("arrives_as") if "arrives_as" in line.options else None,
            wire=line.choice(Wire, line.option("wire", Wire.NATIVE)),
            pairs=tuple(pairs),
            slices=line.option("slices", ""),
            after=line.names("after"),
            after_previous=line.names("after_previous"),
        )
    else:
        if "priority" in line.options:
            raise line.error("a collective has no priority", hint=NO_PRIORITY)
        op = Collective(
            name=name,
            kind=line.choice(CollectiveKind, kind),
            value=_value(line, line.word("the value")),
            ranks=line.marked("@", "the group"),
            nbytes=line.number("nbytes"),
            algorithm=line.choice(Algorithm, line.option("algorithm")),
            by=line.choice(Carrier, line.option("by", Carrier.BACKEND)),
            local=line.number("local", 0),
            chunk=line.number("chunk", CHUNK_BYTES),
            microbatch=line.number("microbatch", 0),
            root=line.number("root") if "root" in line.options else None,
            wire=line.choice(Wire, line.option("wire", Wire.NATIVE)),
            after=line.names("after"),
            after_previous=line.names("after_previous"),
        )
    line.end()
    return op


def parse(text: str) -> Schedule:
    """Read a schedule back from its printed form; raises `ScheduleError` with the line that is wrong."""
    header: dict[str, str | int] | None = None
    groups: list[Group] = []
    cuts: list[Cut] = []
    bundles: list[Bundle] = []
    ops: list[Op] = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        line = _TextLine(raw.strip())
        first = line.words[0] if line.words else ""
        with at(f"line {number}", kind=ScheduleError):
            if first == "schedule":
                line.word("schedule")
                if header is not None:
                    raise line.error("there are two headers")
                header = {
                    "name": line.word("the schedule's name"),
                    "model": line.option("model"),
                    "world_size": line.number("world"),
                    "batch_per_worker": line.number("batch"),
                    "microbatches": line.number("microbatches", 1),
                    "itemsize": line.number("itemsize", 4),
                    "moments": line.number("moments", 1),
                }
            elif first == "group":
                line.word("group")
                name = line.word("the group's name")
                groups.append(Group(name=name, ranks=Ranks.parse(line.words.pop(0) if line.words else "")))
            elif first == "cut":
                line.word("cut")
                cuts.append(
                    Cut(
                        block=line.word("the block's name"),
                        ranks=line.marked("@", "the group"),
                        axis=line.choice(Axis, line.word("columns or rows")),
                        inputs=line.number("inputs"),
                        outputs=line.number("outputs"),
                        positions=line.number("positions", 1),
                    )
                )
            elif first == "bundle":
                line.word("bundle")
                bundles.append(
                    Bundle(
                        name=line.word("the bundle's name"),
                        numel=line.number("numel"),
                        owners=line.option("owners"),
                        layout=line.choice(Layout, line.option("layout", "replicated")),
                        start=line.number("start", 0),
                        replicas=line.number("replicas", 1),
                        keep=line.choice(Keep, line.option("keep", "all")),
                        tensors=line.names("tensors"),
                    )
                )
            else:
                ops.append(parse_op(raw.strip()))
                continue
            line.end()
    if header is None:
        raise ScheduleError("the schedule has no header", hint="begin with: schedule NAME model=M world=N batch=B")
    parts = {"groups": tuple(groups), "cuts": tuple(cuts), "bundles": tuple(bundles), "ops": tuple(ops)}
    return Schedule(**parts, **header)  # type: ignore[arg-type]
