"""Makes block times of a trace of PyTorch's profiler: what each block of a model took, forward and backward.

On a GPU a block's time is that for which the GPU ran what the block launched, without NCCL's kernels; where it waited
for the host to launch more, no block took it. On a CPU it is the time from one block to the next. Kernels are joined to
a block by where they were launched: forward by the block that had begun, backward by the node of autograd, whose
sequence number is that of the forward op that made it. Each time is the median over the passes in the trace.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

from stanza_sim.base.config import Kind, available
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.device import DeviceSpec, load_device
from stanza_sim.execute.start.fit import is_called
from stanza_sim.importers.kineto_comm import is_communication
from stanza_sim.importers.kineto_events import OnGpu, Span, Thread, Trace
from stanza_sim.importers.kineto_match import Pass, match_blocks, nodes_of
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.model.profile_json import fingerprint
from stanza_sim.profiles.blocks import BlockTime, Profile, ProfiledModel
from stanza_sim.simulate.costs import device_costs

LOSS = -2
"""The region of a pass that is the loss, and its gradient."""
_PROBE = 100_000_000
"""Bytes by which the rates of sums and updates are asked of a device's data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What a user says of a trace beside its model; None: as the trace says."""

    samples: int | None = None
    backward: float | None = None
    """How long backward takes, in forwards, for a trace without any."""
    precision: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A profile of block times, how its blocks were found, what should be known of it, and times to compare it with.

    `step_s` is the median of the profiler's steps, None without any; `blocks_s` are those of the blocks, the loss and
    the update together, of one pass.
    """

    profile: Profile
    how: str
    passes: int
    notes: tuple[str, ...]
    step_s: float | None
    blocks_s: float


@dataclass(slots=True)
class _Times:
    """Seconds of one pass, by block."""

    samples: int
    forward: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    backward: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))


def take(trace: Trace, model: ModelProfile, stated: Stated, *, source: str) -> Taken:
    """Return the block times of `model` in a trace.

    Raises `InputError` where its blocks are not in the trace, where there is no backward pass and none was `stated`,
    and where the trace is of samples of another shape.
    """
    matched = match_blocks(trace, model)
    notes: list[str] = []
    samples = _samples(trace, matched.passes, model, stated)
    launched = [span for span in trace.on_gpu if not is_communication(span.name, span.args)]
    on_gpu = any(_launched_in(span, matched.passes) for span in launched)
    if not on_gpu and stated.device is not None:
        raise trace.refuse("is of a CPU: nothing that a block launched ran on a GPU", "leave --device out")
    spec = _device(trace, stated) if on_gpu else load_device("cpu")
    timed = _timed(trace, model, matched.passes, samples, launched if on_gpu else None)
    has_backward = any(sum(times.backward.values()) for times in timed)
    ratio = _ratio(trace, stated, has_backward=has_backward)
    if ratio is not None:
        notes.append(f"the trace has no backward pass: {ratio:g} times the forward is taken, as stated")
    update_Bps, reduce_Bps, update_s = _rates(trace, model, spec, stated, on_gpu=on_gpu, notes=notes)
    rows = _rows(model, timed, ratio)
    if rows[-1].loss_s == 0:
        notes.append("no loss was found after the last block: its time is taken as 0")
    if not on_gpu:
        notes.append("times are of a CPU with the threads that the traced process had")
    profile = Profile(
        device=_called(trace, spec) if on_gpu else "cpu of the trace",
        host_cores=1,
        date=_date(trace),
        precision=stated.precision or _precision(matched.passes, launched if on_gpu else []),
        ranks_at_once=1,
        model=ProfiledModel(name=model.name, fingerprint=fingerprint(model)),
        blocks=tuple(rows),
        reduce_Bps=reduce_Bps,
        update_Bps=update_Bps,
        provenance={
            "source": source,
            "blocks": f"found {matched.how}, in {len(timed)} passes",
            **{f"note {k}": note for k, note in enumerate(notes, start=1)},
        },
    )
    if profile.precision not in spec.precisions:
        hint = f"state --precision, of: {', '.join(spec.precisions)}"
        raise trace.refuse(f"{spec.name} has no data for precision {profile.precision!r}", hint)
    most = max(timed, key=lambda times: times.samples)
    of_most = [row for row in rows if row.samples == most.samples]
    blocks_s = sum(row.forward_s + row.backward_s + (row.loss_s or 0) for row in of_most) + update_s
    return Taken(
        profile=profile,
        how=matched.how,
        passes=len(timed),
        notes=tuple(notes),
        step_s=median((s.end - s.start) * 1e-6 for s in trace.steps) if trace.steps else None,
        blocks_s=blocks_s,
    )


# ---- what is known -------------------------------------------------------------------------------------------------


def _samples(trace: Trace, passes: Sequence[Pass], model: ModelProfile, stated: Stated) -> list[int]:
    """The samples of each pass."""
    shape = next((p.sample_shape for p in passes if p.sample_shape is not None), None)
    if shape is not None and shape != tuple(model.input_shape):
        what = f"it ran on samples of {'x'.join(map(str, shape))}, {model.name} is of {_by(model.input_shape)}"
        raise trace.refuse(what, "trace it with samples of the model's shape: times of others are not its")
    found = []
    for p in passes:
        if stated.samples is not None and p.samples is not None and stated.samples != p.samples:
            what = f"a pass is of {p.samples} samples, --batch says {stated.samples}"
            raise trace.refuse(what, "leave --batch out: the trace has shapes")
        samples = p.samples or stated.samples
        if samples is None:
            hint = "state --batch, or use record_shapes=True"
            raise trace.refuse("does not say of how many samples a pass was", hint)
        found.append(samples)
    return found


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _ratio(trace: Trace, stated: Stated, *, has_backward: bool) -> float | None:
    if has_backward:
        if stated.backward is not None:
            raise trace.refuse("has a backward pass", "leave --backward out")
        return None
    if stated.backward is None:
        hint = "trace a step of training; or state how many forwards backward takes, such as --backward 2"
        raise trace.refuse("has no backward pass", hint)
    return stated.backward


def _device(trace: Trace, stated: Stated) -> DeviceSpec:
    """What is known of the GPU."""
    if stated.device is not None:
        return load_device(stated.device)
    if not trace.gpu:
        raise trace.refuse("does not say which GPU it is of (deviceProperties)", "state --device, such as A100")
    for name in available(Kind.DEVICES):
        spec = load_device(name)
        if name != "cpu" and is_called(spec, trace.gpu):
            return spec
    hint = f"state --device, or describe it in devices/; known: {', '.join(available(Kind.DEVICES))}"
    raise trace.refuse(f"is of the GPU {trace.gpu[:60]!r}, of which nothing is known", hint)


def _called(trace: Trace, spec: DeviceSpec) -> str:
    """The GPU as a profile names it: so that it is known to be of the device."""
    return f"cuda {trace.gpu}" if spec.name.lower() in trace.gpu.lower() else f"cuda {spec.name} {trace.gpu}".strip()


def _date(trace: Trace) -> str:
    return "unknown" if trace.started_s is None else datetime.fromtimestamp(trace.started_s, UTC).date().isoformat()


def _precision(passes: Sequence[Pass], kernels: Sequence[OnGpu]) -> str:
    """By the types of what layers took, else by what their kernels are called."""
    types = " ".join(kind for p in passes for kind in p.kinds)
    names = " ".join({span.name.lower() for span in kernels})
    if "BFloat16" in types or "bf16" in names:
        return "bf16"
    halves = ("hgemm", "h16816", "h1688", "h884", "f16f16", "gemm_fp16", "gemm_f16")
    if "Half" in types or any(word in names for word in halves):
        return "fp16"
    return "tf32" if "tf32" in names else "fp32"


def _rates(
    trace: Trace, model: ModelProfile, spec: DeviceSpec, stated: Stated, *, on_gpu: bool, notes: list[str]
) -> tuple[float, float, float]:
    """Bytes per second of updates and of sums, and the seconds of an update: measured where it is there."""
    precision = stated.precision if stated.precision in spec.precisions else next(iter(spec.precisions))
    costs = device_costs(spec, model, str(precision))
    reduce_Bps = _PROBE / costs.reduce_s(_PROBE, 1)
    nbytes = sum(block.numel for block in model.blocks) * model.itemsize
    steps, clears = (_marked(trace, f"Optimizer.{what}", on_gpu=on_gpu) for what in ("step", "zero_grad"))
    if steps:
        measured = median(steps) + (median(clears) if clears else 0.0)
        return nbytes / measured, reduce_Bps, measured
    notes.append(f"no update was found (Optimizer.step): as the data of {spec.name} have it")
    update_Bps = _PROBE / costs.update_s(_PROBE)
    return update_Bps, reduce_Bps, nbytes / update_Bps


def _marked(trace: Trace, name: str, *, on_gpu: bool) -> list[float]:
    """What each part that is marked so took: of the GPU, or of the CPU; without those that took nothing."""
    marks = [mark for mark in trace.marks if mark.name.startswith(name)]
    if not on_gpu:
        return [seconds for mark in marks if (seconds := (mark.end - mark.start) * 1e-6)]
    launched: defaultdict[Thread, list[OnGpu]] = defaultdict(list)
    for span in trace.on_gpu:
        if span.launched is not None:
            launched[span.launched[0]].append(span)
    found = [
        _busy(s for s in launched[mark.thread] if s.launched and mark.start <= s.launched[1] < mark.end)
        for mark in marks
    ]
    return [seconds for seconds in found if seconds]


# ---- times ---------------------------------------------------------------------------------------------------------


def _launched_in(span: OnGpu, passes: Sequence[Pass]) -> bool:
    if span.launched is None:
        return False
    thread, at = span.launched
    return any(p.thread == thread and p.starts[0] <= at < p.until for p in passes)


def _timed(
    trace: Trace, model: ModelProfile, passes: Sequence[Pass], samples: Sequence[int], kernels: Sequence[OnGpu] | None
) -> list[_Times]:
    """The times of each pass: of `kernels` on a GPU or, without them, on the host."""
    nodes = nodes_of(trace)
    starts = [node.start for node in nodes]
    by_thread: defaultdict[Thread, list[OnGpu]] = defaultdict(list)
    for span in kernels or ():
        if span.launched is not None:
            by_thread[span.launched[0]].append(span)
    for spans in by_thread.values():
        spans.sort(key=lambda span: span.launched[1] if span.launched else 0.0)
    times = []
    for p, n in zip(passes, samples, strict=True):
        mine = nodes[bisect_right(starts, p.starts[-1]) : bisect_right(starts, p.until)]
        owners = _owners(trace, model, p, mine)
        made = _Times(n)
        if kernels is None:
            _on_host(made, trace, model, p, mine, owners)
        else:
            _on_device(made, model, p, mine, owners, by_thread)
        times.append(made)
    return times


def _owners(trace: Trace, model: ModelProfile, p: Pass, nodes: Sequence[Span]) -> list[int]:
    """The block of each node of backward: that of the forward op with its sequence number, else of the node before.

    Several ops of forward may show a number: the last of them made the node.
    """
    made: dict[int, int] = {}
    first = bisect_right(trace.ops, p.starts[0], key=lambda op: op.start)
    turn = nodes[0].start if nodes else p.until
    for op in trace.ops[max(first - 1, 0) :]:
        if op.start >= turn:
            break
        number = op.number("Sequence number", "Sequence Number", "sequence number")
        if op.thread == p.thread and number is not None and number >= 0:
            region = p.region(op.start)
            made[number] = LOSS if region == len(model.blocks) else max(region, 0)
    found, last = [], LOSS
    for node in nodes:
        number = node.number("Sequence number", "Sequence Number", "sequence number")
        fits = number is not None and not node.name.endswith("AccumulateGrad")
        last = made.get(number, last) if fits and number is not None else last
        found.append(last)
    return found


def _on_host(
    made: _Times, trace: Trace, model: ModelProfile, p: Pass, nodes: Sequence[Span], owners: Sequence[int]
) -> None:
    """Times on a CPU: from one block, and one node, to the next."""
    for k, start in enumerate(p.starts):
        made.forward[k] = ((p.starts[k + 1] if k + 1 < len(p.starts) else p.end) - start) * 1e-6
    turn = nodes[0].start if nodes else p.until
    after = [op.end for op in trace.ops if op.thread == p.thread and p.end <= op.start < turn] if nodes else []
    made.forward[LOSS] = max(max(after, default=p.end) - p.end, 0.0) * 1e-6
    for i, (node, block) in enumerate(zip(nodes, owners, strict=True)):
        follows = nodes[i + 1] if i + 1 < len(nodes) and nodes[i + 1].thread == node.thread else None
        end = node.end if follows is None else max(node.end, follows.start)
        made.backward[block] += (end - node.start) * 1e-6


def _on_device(
    made: _Times,
    model: ModelProfile,
    p: Pass,
    nodes: Sequence[Span],
    owners: Sequence[int],
    by_thread: Mapping[Thread, Sequence[OnGpu]],
) -> None:
    """Times on a GPU: for how long what a block launched was running."""
    forward: defaultdict[int, list[OnGpu]] = defaultdict(list)
    backward: defaultdict[int, list[OnGpu]] = defaultdict(list)
    turn = nodes[0].start if nodes else p.until
    for span, at in _between(by_thread.get(p.thread, ()), p.starts[0], turn):
        region = p.region(at)
        if region < len(model.blocks) or nodes:  # without backward nobody knows what is after the last block
            forward[LOSS if region == len(model.blocks) else region].append(span)
    for thread in {node.thread for node in nodes}:
        mine = [(node.start, block) for node, block in zip(nodes, owners, strict=True) if node.thread == thread]
        last = max(node.end for node in nodes if node.thread == thread)
        begun = [start for start, _ in mine]
        for span, at in _between(by_thread.get(thread, ()), begun[0], last):
            backward[mine[bisect_right(begun, at) - 1][1]].append(span)
    for region, spans in forward.items():
        made.forward[region] = _busy(spans)
    for region, spans in backward.items():
        made.backward[region] = _busy(spans)


def _between(spans: Sequence[OnGpu], start: float, end: float) -> Iterable[tuple[OnGpu, float]]:
    """What was launched from `start` to `end`, and when."""
    first = bisect_right(spans, start - 1e-6, key=lambda span: span.launched[1] if span.launched else 0.0)
    for span in spans[first:]:
        if span.launched is None or span.launched[1] >= end:
            return
        yield span, span.launched[1]


def _busy(spans: Iterable[OnGpu]) -> float:
    """For how many seconds at least one of them was running."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((span.start, span.end) for span in spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total * 1e-6


def _rows(model: ModelProfile, timed: Sequence[_Times], ratio: float | None) -> list[BlockTime]:
    """The rows of a profile: medians over the passes with as many samples."""
    rows = []
    for samples in sorted({times.samples for times in timed}):
        mine = [times for times in timed if times.samples == samples]
        for k, block in enumerate(model.blocks):
            forwards = [times.forward[k] for times in mine]
            backwards = [times.backward[k] if ratio is None else ratio * times.forward[k] for times in mine]
            both = [f + b for f, b in zip(forwards, backwards, strict=True)]
            forward_s, backward_s = median(forwards), median(backwards)
            share = _input_share(block)
            last = k == len(model.blocks) - 1
            loss = median(times.forward[LOSS] + times.backward[LOSS] for times in mine) if last else None
            rows.append(
                BlockTime(
                    block=block.name,
                    samples=samples,
                    forward_s=forward_s,
                    backward_s=backward_s,
                    backward_input_s=share * backward_s,
                    backward_weight_s=(1 - share) * backward_s,
                    loss_s=loss,
                    spread=(max(both) - min(both)) / median(both) if median(both) else 0.0,
                )
            )
    return rows


def _input_share(block: Block) -> float:
    """The share of backward that is the gradient of a block's input, by FLOPs: a trace does not tell the two apart."""
    total = block.backward_input_flops + block.backward_weight_flops
    return block.backward_input_flops / total if total else 0.5


def check_stated(stated: Stated) -> None:
    """Raise `InputError` for a ratio that is none."""
    if stated.backward is not None and not 0 < stated.backward <= 10:
        raise InputError(f"{stated.backward:g} forwards", where="--backward", hint="about 2 is usual")
