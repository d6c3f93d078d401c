"""Reads a trace of PyTorch's profiler (Kineto writes it, as a Chrome trace), and sorts its events by what they are.

A trace is JSON, packed by gzip or not: `traceEvents`, of which those with a duration (`"ph": "X"`) are looked at, each
with a category (`cat`), a process and thread, a start and a duration in microseconds. What runs on a GPU is joined to
what launched it by a `correlation` number, or by the `External id` of an operator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.reading import check_kind, read_raw

MOST_BYTES = 256 * 2**20
"""A larger trace, unpacked, is refused: one of a few steps is enough, and is smaller."""

EXTERNAL = ("External id", "external id")
Thread = tuple[str | int | None, str | int | None]
"""A process and a thread of it, as the trace calls them."""

_OPERATOR = re.compile(r"aten::|autograd::|\w+Backward\d*$|torch::|record_param|detach$")
_STEP = re.compile(r"ProfilerStep#?\s*(\d+)")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCH = ("cuda_runtime", "cuda_driver", "hip_runtime", "runtime", "driver")
_SPANS = ("user_annotation", "python_function", "cpu_op", "operator", "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An event that lasts: its name, where it ran, from when to when in microseconds, and what else is said of it."""

    name: str
    thread: Thread
    start: float
    end: float
    args: Mapping[str, object]

    def holds(self, other: Span) -> bool:
        """Whether `other` ran within this one, on the same thread."""
        return self.thread == other.thread and self.start <= other.start and other.end <= self.end + 1e-3

    def named(self, *keys: str) -> str | int | None:
        """The first of some args that names something else: an operator, a launch, a device."""
        return next((value for key in keys if (value := plain(self.args.get(key))) is not None), None)

    def number(self, *keys: str) -> int | None:
        """The first of some args that is a whole number."""
        for key in keys:
            value = self.args.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """What ran on a GPU, and when and where on the host it was launched (None where the trace does not tell)."""

    name: str
    start: float
    end: float
    launched: tuple[Thread, float] | None
    args: Mapping[str, object]


@dataclass(slots=True, kw_only=True)
class Trace:
    """A trace, every list in the order of the starts. `steps` are those of the profiler; `ops` are operators of ATen
    and of autograd, `modules` calls of `nn.Module`, `marks` what `record_function` named."""

    path: str
    steps: list[Span] = field(default_factory=list)
    ops: list[Span] = field(default_factory=list)
    modules: list[Span] = field(default_factory=list)
    marks: list[Span] = field(default_factory=list)
    on_gpu: list[OnGpu] = field(default_factory=list)
    gpu: str = ""
    rank: int | None = None
    world_size: int | None = None
    started_s: float | None = None
    """When it was taken, in seconds since 1970; None where the trace does not tell."""

    def refuse(self, what: str, hint: str | None = None) -> InputError:
        """An error that names this file."""
        return InputError(what, where=self.path, hint=hint)


def read_trace(path: Path) -> Trace:
    """Return the trace in a file.

    Raises `InputError` for a file that cannot be read, is too large, is cut short, or is of another kind, which the
    message names.
    """
    raw = read_raw(path, most=MOST_BYTES)
    check_kind(raw, path, Foreign.KINETO)
    try:
        data = json.loads(raw.decode("utf-8", errors="replace"))
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        cut = isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip()) - 1
        )
        what = "is cut short" if cut else f"is not JSON: {getattr(error, 'msg', 'it is nested too deeply')}"
        where = str(path) if line is None else f"{path}:{line}"
        raise InputError(what, where=where, hint=f"{Foreign.KINETO.what} is expected") from None
    events = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(events, list) or not any(isinstance(e, dict) and "ph" in e for e in events[:1000]):
        hint = "it is what torch.profiler's export_chrome_trace or tensorboard_trace_handler writes"
        raise InputError("has no traceEvents", where=str(path), hint=hint)
    trace = Trace(path=str(path))
    _sort(trace, events)
    if isinstance(data, dict):
        _about(trace, data)
    return trace


def _sort(trace: Trace, events: Sequence[object]) -> None:
    """Fill the lists of a trace."""
    launches: dict[str | int | None, tuple[Thread, float]] = {}
    by_op: dict[str | int | None, tuple[Thread, float]] = {}
    later: list[tuple[Span, str]] = []
    for k, event in enumerate(events):
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        kind = str(event.get("cat", "")).lower()
        if kind not in (*_ON_GPU, *_LAUNCH, *_SPANS):
            continue
        span = _span(trace, event, k)
        if kind in _ON_GPU:
            later.append((span, kind))
        elif kind in _LAUNCH:
            launches.setdefault(span.named("correlation"), (span.thread, span.start))
        else:
            _file(trace, span, kind)
            if kind in ("cpu_op", "operator"):
                by_op.setdefault(span.named(*EXTERNAL), (span.thread, span.start))
    for span, _ in later:
        where = None
        if (number := span.named("correlation")) is not None:
            where = launches.get(number)
        if where is None and (number := span.named(*EXTERNAL)) is not None:
            where = by_op.get(number)
        on_gpu = OnGpu(name=span.name, start=span.start, end=span.end, launched=where, args=span.args)
        trace.on_gpu.append(on_gpu)
    for spans in (trace.steps, trace.ops, trace.modules, trace.marks):
        spans.sort(key=lambda s: (s.start, -s.end))
    trace.on_gpu.sort(key=lambda s: (s.start, s.end))


def _span(trace: Trace, event: Mapping[str, object], k: int) -> Span:
    start, duration = event.get("ts"), event.get("dur", 0)
    numbers = [float(str(v)) if _is_number(v) else float("nan") for v in (start, duration)]
    if not all(map(isfinite, numbers)) or numbers[1] < 0:
        raise trace.refuse(f"event {k}, {str(event.get('name'))[:40]!r}, has no start and duration (ts, dur)")
    args = event.get("args")
    return Span(
        name=str(event.get("name", "")),
        thread=(plain(event.get("pid")), plain(event.get("tid"))),
        start=numbers[0],
        end=numbers[0] + numbers[1],
        args=args if isinstance(args, dict) else {},
    )


def plain(value: object) -> str | int | None:
    """A value of a trace that names something, where it is a number or a text; None for anything else."""
    return value if isinstance(value, str | int) else None


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\d{1,20}(\.\d{1,9})?", value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e20


def _file(trace: Trace, span: Span, kind: str) -> None:
    """Put a span of the host into the list where it belongs."""
    if _STEP.match(span.name):
        trace.steps.append(span)
    elif kind in ("python_function", "python"):
        if span.name.startswith("nn.Module: "):
            trace.modules.append(span)
    elif kind == "user_annotation" or not _OPERATOR.match(span.name):
        trace.marks.append(span)
        trace.ops.extend([span] if kind in ("cpu_op", "operator") else [])
    else:
        trace.ops.append(span)


def _about(trace: Trace, data: Mapping[str, object]) -> None:
    """What the head of a trace says: the GPU, the rank, and when it was taken."""
    used = {plain(span.args.get("device")) for span in trace.on_gpu}
    listed = data.get("deviceProperties")
    for device in listed if isinstance(listed, list) else []:
        if isinstance(device, dict) and plain(device.get("id")) in used and isinstance(device.get("name"), str):
            trace.gpu = trace.gpu or "".join(c if c.isprintable() else " " for c in device["name"])
    info = data.get("distributedInfo")
    if isinstance(info, dict):
        rank, size = info.get("rank"), info.get("world_size")
        trace.rank = rank if isinstance(rank, int) else None
        trace.world_size = size if isinstance(size, int) else None
    base = data.get("baseTimeNanoseconds", 0)
    first = min((spans[0].start for spans in (trace.ops, trace.marks) if spans), default=None)
    if first is not None and _is_number(base):
        seconds = float(str(base)) / 1e9 + first / 1e6
        trace.started_s = seconds if 1.4e9 < seconds < 4.1e9 else None
