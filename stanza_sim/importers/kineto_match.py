"""Finds a model's blocks in a trace: when each began in every forward pass.

Blocks run from where their first module begins to where that of the next one does, as in the model's table, so it is
enough to know when each begins. That is told by what `record_function` named after them or after modules within them;
else by the convolutions, linear layers and the like in the order in which they ran, if their kinds (and shapes, where
the trace has these) are the model's, block by block. Calls of `nn.Module` (`with_stack=True`), then say where a block
of several modules begins before its first such op.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stanza_sim.importers.kineto_events import Span, Thread, Trace
from stanza_sim.model.profile import Block, ModelProfile

_CONV = re.compile(r"aten::(conv[123]d|conv_transpose[123]d|convolution|_convolution|conv_tbc)$")
_MATRIX = re.compile(r"aten::(linear|addmm|embedding|embedding_bag)$")
_RECURRENT = re.compile(r"aten::(lstm|gru|rnn_tanh|rnn_relu)$")
_BACKWARD = re.compile(r"autograd::engine::evaluate_function|\w*Backward\d*$")
_ROOTS = re.compile(r"(?:(?:module|model|_orig_mod|net|nn\.Module: )\.?)+(?=\w)")
_AFTER = re.compile(r"aten::\w*loss\w*$|aten::(?:_?log_softmax|_?softmax)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A forward pass: the thread, when each block began, when the last ended, and how many samples it was of."""

    thread: Thread
    starts: tuple[float, ...]
    end: float
    until: float
    """When the next pass, or the next step, begins: what is between `end` and this is loss, backward and update."""
    samples: int | None
    sample_shape: tuple[int, ...] | None
    kinds: tuple[str, ...]
    """The types of the inputs of the ops that were found, as the trace calls them; empty without shapes."""

    def region(self, at: float) -> int:
        """The block at an instant: its number; -1 before the first, the number of blocks after the last."""
        return len(self.starts) if at >= self.end else bisect_right(self.starts, at) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The forward passes of a trace, and how the blocks were found in them, in words."""

    passes: tuple[Pass, ...]
    how: str


def match_blocks(trace: Trace, model: ModelProfile) -> Matched:
    """Find the blocks of `model`; raise `InputError`, which says what the trace has, where that cannot be done."""
    nested = _nodes(trace)
    found = _by_marks(trace, model, nested)
    how = "by the names that record_function gave"
    if not found:
        found, how = _by_ops(trace, model, nested)
    if not found:
        raise trace.refuse(_what_it_has(trace, model, nested), _HINT)
    return Matched(passes=tuple(found), how=how)


_HINT = (
    "profile with record_function(name of the block) around each block, or with with_stack=True and record_shapes=True;"
    " --model may be another one"
)


def nodes_of(trace: Trace) -> list[Span]:
    """The nodes that autograd's backward pass ran, outermost ones only, in order."""
    spans = [op for op in trace.ops if op.name.startswith("autograd::engine::evaluate_function")]
    if not spans:  # older versions name the node alone
        spans = [op for op in trace.ops if re.match(r"\w*Backward\d*$", op.name) and "aten::" not in op.name]
    return _outermost(spans)


def _nodes(trace: Trace) -> dict[Thread, list[Span]]:
    found: defaultdict[Thread, list[Span]] = defaultdict(list)
    for node in nodes_of(trace):
        found[node.thread].append(node)
    return dict(found)


def _outermost(spans: Iterable[Span]) -> list[Span]:
    """Those that are within no other of the same thread; `spans` are in order."""
    ends: dict[Thread, float] = {}
    found = []
    for span in spans:
        if span.start >= ends.get(span.thread, float("-inf")) - 1e-3:
            found.append(span)
            ends[span.thread] = max(span.end, ends.get(span.thread, span.end))
    return found


def _in_backward(span: Span, nodes: dict[Thread, list[Span]]) -> bool:
    here = nodes.get(span.thread, ())
    k = bisect_right(here, span.start, key=lambda node: node.start) - 1
    return k >= 0 and span.end <= here[k].end + 1e-3


# ---- by names ------------------------------------------------------------------------------------------------------


def bare(name: str) -> str:
    """What a mark names, without what wraps a module (`module.`, `## … ##`, `forward`)."""
    words = [word for word in re.split(r"[\s#|]+", name) if word.lower().strip(":") not in ("", "forward", "fwd")]
    return _ROOTS.sub("", words[0].removeprefix("forward:").strip(":"), count=1) if len(words) == 1 else ""


def _block_of(name: str, numbers: dict[str, int]) -> int | None:
    """The block that a module is, or is in."""
    while name:
        if name in numbers:
            return numbers[name]
        name = name.rpartition(".")[0]
    return None


def _by_marks(trace: Trace, model: ModelProfile, nested: dict[Thread, list[Span]]) -> list[Pass]:
    numbers = {block.name: k for k, block in enumerate(model.blocks)}
    by_thread: defaultdict[Thread, list[tuple[int, Span]]] = defaultdict(list)
    for mark in trace.marks:
        k = _block_of(bare(mark.name), numbers)
        if k is not None and not _in_backward(mark, nested) and "backward" not in mark.name.lower():
            seen = by_thread[mark.thread]
            if not seen or seen[-1][0] != k:
                seen.append((k, mark))
    wanted = [*range(len(model.blocks))]
    starts: list[tuple[Thread, list[Span], int]] = []
    for thread, seen in by_thread.items():
        for i in range(len(seen)):
            if [k for k, _ in seen[i : i + len(wanted)]] == wanted:
                starts.append((thread, [mark for _, mark in seen[i : i + len(wanted)]], 0))
    ops = _layers(trace, nested)
    return _passes(trace, nested, [(t, [m.start for m in marks], _first_in(ops, t, marks)) for t, marks, _ in starts])


def _first_in(ops: Sequence[Span], thread: Thread, marks: Sequence[Span]) -> list[Span]:
    """The layers within a pass's marks, of which the first tells the batch."""
    return [op for op in ops if op.thread == thread and marks[0].start <= op.start <= marks[-1].end]


# ---- by ops --------------------------------------------------------------------------------------------------------


def _layers(trace: Trace, nested: dict[Thread, list[Span]]) -> list[Span]:
    """Ops of layers that have weights, outermost ones only, outside backward."""
    linear = any(op.name == "aten::linear" for op in trace.ops)
    named = [op for op in trace.ops if _kind(op.name) and not (linear and op.name == "aten::addmm")]
    return _outermost(op for op in named if not _in_backward(op, nested))


def _kind(name: str) -> str:
    if _CONV.match(name):
        return "convolution"
    if _MATRIX.match(name):
        return "linear"
    return "recurrent" if _RECURRENT.match(name) else ""


def _wanted(block: Block) -> list[tuple[str, tuple[int, ...] | None]]:
    """The layers of a block that have an op: what kind, and the weight's shape (None of a recurrent one)."""
    found: list[tuple[str, tuple[int, ...] | None]] = []
    recurrent: set[str] = set()
    for tensor in block.tensors:
        module, _, last = tensor.name.rpartition(".")
        if re.match(r"weight_(ih|hh)_l\d", last):
            if module not in recurrent:
                found.append(("recurrent", None))
            recurrent.add(module)
        elif last in ("weight", "in_proj_weight") and len(tensor.shape) >= 2:
            found.append(("convolution" if len(tensor.shape) > 2 else "linear", tensor.shape))
    return found


def _weight(op: Span) -> tuple[int, ...] | None:
    """The shape of an op's weight; None where the trace has none."""
    dims = op.args.get("Input Dims", op.args.get("Input dims"))
    at = {"aten::embedding": 0, "aten::embedding_bag": 0, "aten::addmm": 2}.get(op.name, 1)
    held = dims[at] if isinstance(dims, list) and len(dims) > at else None
    if not isinstance(held, list) or not held or not all(isinstance(n, int) for n in held):
        return None
    return tuple(held[::-1] if op.name == "aten::addmm" else held)


def _fits(ops: Sequence[Span], wanted: Sequence[tuple[str, tuple[int, ...] | None]]) -> bool:
    """Whether ops are those of a block, in any order; shapes count where both sides have them."""
    if Counter(_kind(op.name) for op in ops) != Counter(kind for kind, _ in wanted):
        return False
    have = [_weight(op) for op in ops if _kind(op.name) != "recurrent"]
    if any(shape is None for shape in have):
        return True
    return Counter(have) == Counter(shape for kind, shape in wanted if kind != "recurrent")


def _by_ops(trace: Trace, model: ModelProfile, nested: dict[Thread, list[Span]]) -> tuple[list[Pass], str]:
    wanted = [_wanted(block) for block in model.blocks]
    if not all(wanted):
        return [], ""
    by_thread: defaultdict[Thread, list[Span]] = defaultdict(list)
    for op in _layers(trace, nested):
        by_thread[op.thread].append(op)
    total = sum(map(len, wanted))
    found: list[tuple[Thread, list[float], list[Span]]] = []
    refined = False
    for thread, ops in by_thread.items():
        modules = [m for m in trace.modules if m.thread == thread]
        i = 0
        while i + total <= len(ops):
            cuts = _cut(ops[i : i + total], wanted)
            if cuts is None:
                i += 1
                continue
            run = ops[i : i + total]
            starts = [_begin(k, run, cuts, model.blocks[k], modules) for k in range(len(cuts))]
            refined = refined or bool(modules)
            found.append((thread, starts, run))
            i += total
    passes = _passes(trace, nested, found)
    shapes = all(_weight(op) is not None for _, _, run in found for op in run if _kind(op.name) != "recurrent")
    kinds = Counter(kind for block in wanted for kind, _ in block)
    order = " and ".join(f"{n} {kind} ops" for kind, n in kinds.items())
    how = f"by the order of {order}{', whose weights have the shapes of the model' if shapes else ''}"
    return passes, how + (", and by the calls of nn.Module around them" if refined else "")


def _cut(ops: Sequence[Span], wanted: Sequence[Sequence[tuple[str, tuple[int, ...] | None]]]) -> list[int] | None:
    """Where each block's ops begin among those of a pass; None if they are not the model's."""
    cuts, at = [], 0
    for block in wanted:
        if not _fits(ops[at : at + len(block)], block):
            return None
        cuts.append(at)
        at += len(block)
    return cuts


def _begin(k: int, run: Sequence[Span], cuts: Sequence[int], block: Block, modules: Sequence[Span]) -> float:
    """When a block began: its first op or, of several modules, the outermost call with it but no op before it."""
    op = run[cuts[k]]
    before = run[cuts[k] - 1].start if cuts[k] else float("-inf")
    holding = [m for m in modules if m.start <= op.start and op.end <= m.end and m.start > before]
    if not holding:
        return op.start
    alone = any(tensor.name.rpartition(".")[0] == block.name for tensor in block.tensors)
    return holding[-1 if alone else 0].start


# ---- passes --------------------------------------------------------------------------------------------------------


def _passes(
    trace: Trace, nested: dict[Thread, list[Span]], found: Sequence[tuple[Thread, list[float], list[Span]]]
) -> list[Pass]:
    """The passes that were found, each with when it ended and how long what follows may last."""
    found = sorted(found, key=lambda entry: entry[1][0])
    backward = sorted(node.start for nodes in nested.values() for node in nodes)
    made = []
    for i, (thread, starts, ops) in enumerate(found):
        last = max([starts[-1], *(op.end for op in ops)])
        until = found[i + 1][1][0] if i + 1 < len(found) else float("inf")
        step = next((s for s in trace.steps if s.start <= starts[0] < s.end), None)
        if step is not None:
            until = min(until, step.end)
        after = bisect_right(backward, last)
        turn = min(backward[after] if after < len(backward) else until, until)
        made.append(
            Pass(
                thread=thread,
                starts=tuple(starts),
                end=_end(trace, thread, starts, last, turn),
                until=until,
                samples=_samples(ops),
                sample_shape=_sample_shape(ops),
                kinds=_types(ops),
            )
        )
    return made


def _end(trace: Trace, thread: Thread, starts: Sequence[float], last: float, turn: float) -> float:
    """When the last block ended: with the model's module, else where a loss begins, else where the next thing does."""
    whole = [m for m in trace.modules if m.thread == thread and m.start <= starts[0] and last <= m.end <= turn]
    if whole:
        return whole[0].end
    begun = bisect_right(trace.ops, last, key=lambda op: op.start)
    ops = _outermost(op for op in trace.ops[begun:] if op.thread == thread and op.start < turn)
    loss = next((op.start for op in ops if _AFTER.match(op.name)), None)
    if loss is not None:
        return loss
    marks = [m for m in trace.marks if m.thread == thread and m.start > last and m.name.startswith("Optimizer.")]
    turn = min([turn, *(m.start for m in marks)])
    return max([last, *(op.end for op in ops if op.start < turn)])


def _samples(ops: Sequence[Span]) -> int | None:
    """The samples of a pass, by the input of its first layer."""
    dims = ops[0].args.get("Input Dims", ops[0].args.get("Input dims")) if ops else None
    at = 1 if ops and ops[0].name.startswith("aten::embedding") else 0
    held = dims[at] if isinstance(dims, list) and len(dims) > at else None
    good = isinstance(held, list) and held and isinstance(held[0], int) and held[0] > 0
    return held[0] if good and isinstance(held, list) else None


def _sample_shape(ops: Sequence[Span]) -> tuple[int, ...] | None:
    """The shape of one sample, where the first layer is a convolution and the trace has shapes."""
    dims = ops[0].args.get("Input Dims", ops[0].args.get("Input dims")) if ops else None
    if not isinstance(dims, list) or not dims or _kind(ops[0].name) != "convolution":
        return None
    held = dims[0]
    good = isinstance(held, list) and len(held) > 1 and all(isinstance(n, int) for n in held)
    return tuple(held[1:]) if good else None


def _types(ops: Sequence[Span]) -> tuple[str, ...]:
    found: list[str] = []
    for op in ops:
        held = op.args.get("Input type")
        found += [str(held[0])] if isinstance(held, list) and held else []
    return tuple(found)


def _what_it_has(trace: Trace, model: ModelProfile, nested: dict[Thread, list[Span]]) -> str:
    """What the trace has in the place of the model's blocks."""
    names = list(dict.fromkeys(mark.name for mark in trace.marks))
    modules = list(dict.fromkeys(m.name.removeprefix("nn.Module: ") for m in trace.modules))
    ops = Counter(_kind(op.name) for op in _layers(trace, nested))
    wanted = Counter(kind for block in model.blocks for kind, _ in _wanted(block))
    per = f" in {len(trace.steps)} steps" if trace.steps else ""
    parts = [
        f"record_function names {_some(names)}" if names else "no names of record_function",
        f"nn.Module calls {_some(modules)}" if modules else "no calls of nn.Module",
        f"{_counted(ops)}{per}" if ops else "no ops of layers",
    ]
    return f"the blocks of {model.name} ({_counted(wanted)}) are not in it; it has {'; '.join(parts)}"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no layers"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown
