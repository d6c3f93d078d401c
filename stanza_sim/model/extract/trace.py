"""One graph of a module that holds in training and in evaluation, and for any number of samples.

The module is recorded three times (`tracer.Tracer`): in training with two batch sizes, and in evaluation. The graphs
are laid side by side (`merge.Merger`): a constant that differs between batch sizes is a multiple of the batch, one
that differs between the modes becomes a small submodule that follows the mode. A submodule that does something else in
either mode (drops a residual branch by chance) is called as it is. Every dropout becomes a submodule of its own, so
that it can be replaced (`split.replace_dropout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.calls import as_changed
from stanza_sim.model.extract.factory import USER_ERRORS, describe
from stanza_sim.model.extract.inputs import (
    Input,
    arguments_of,
    dtypes_to_try,
    more_arguments,
    options_of,
    shape_words,
)
from stanza_sim.model.extract.merge import AlwaysDropout, Differs, Merger, ModeSwitch, fresh_name
from stanza_sim.model.extract.outputs import chosen_output
from stanza_sim.model.extract.tracer import CannotRecord, Tracer
from stanza_sim.model.extract.twin import meta_twin

TRACED_BATCHES = (3, 5)
"""Neither divides the other, so that what is half the batch is not taken for a constant."""

_DROPOUT_FUNCTIONS: dict[object, tuple[str, str]] = {
    functional.dropout: ("p", "training"),
    torch.dropout: ("p", "train"),
}
_DROPOUT_DEFAULTS = {"p": 0.5, "training": True, "train": True}
_LOOKUPS = (functional.embedding, functional.embedding_bag)
_SAME_VALUES = ("view", "reshape", "long", "to", "int", "contiguous", "flatten", "unsqueeze", "squeeze", "clone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a module does: `graph` refers to the module's attributes and to `extras` by name.

    `batch` and `device` are the nodes that hold the number and the place of the samples, if any node needs them.
    `output` names the part of what `forward` returns that the graph returns, if it is but a part.
    """

    graph: fx.Graph
    extras: dict[str, nn.Module | torch.Tensor]
    inputs: tuple[Input, ...]
    batch: fx.Node | None
    device: fx.Node | None
    output: str | None

    @property
    def placeholders(self) -> list[fx.Node]:
        """The nodes of the inputs, in order."""
        return [n for n in self.graph.nodes if n.op == "placeholder"]

    def switch(self, node: fx.Node) -> ModeSwitch | None:
        """Return the switch that `node` reads, if it reads one."""
        extra = self.extras.get(str(node.target)) if node.op == "call_module" else None
        return extra if isinstance(extra, ModeSwitch) else None

    def module_of(self, root: nn.Module, node: fx.Node) -> nn.Module | None:
        """Return the submodule (of `root` or of the extras) that `node` calls, if it calls one."""
        if node.op != "call_module":
            return None
        extra = self.extras.get(str(node.target))
        return extra if isinstance(extra, nn.Module) else root.get_submodule(str(node.target))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    graph: fx.Graph
    extras: dict[str, torch.Tensor]
    device: fx.Node | None
    output: str | None


def trace(module: nn.Module, inputs: tuple[Input, ...], where: str) -> Trace:
    """Trace `module` (its parameters are neither read nor copied) on `inputs`; their types are found if not given.

    Raises `InputError`, with `where` as its place, if `forward` does not take the inputs, fails on them, reads values
    of tensors that depend on the samples, or takes another path in evaluation than in training.
    """
    typed, compiling, first = _typed(module, inputs, where)
    leaves: frozenset[type] = frozenset()

    def record(batch: int, *, training: bool) -> _Recording:
        return _record(module, typed, batch, leaves, where, training=training, compiling=compiling)

    while True:
        small = record(TRACED_BATCHES[0], training=True) if leaves else first
        large, evaluated = record(TRACED_BATCHES[1], training=True), record(TRACED_BATCHES[0], training=False)
        extras: dict[str, nn.Module | torch.Tensor] = {**small.extras}
        graphs, constants = (small.graph, large.graph, evaluated.graph), (large.extras, evaluated.extras)
        merger = Merger(module, graphs, extras, constants, TRACED_BATCHES)
        try:
            batch = merger.merge()
        except Differs as found:
            more = found.leaf(leaves)
            if more is not None:
                leaves |= {more}
                continue
            raise _refused(module, found, small, where) from None
        break
    device = small.device
    if device is not None and not device.users:
        small.graph.erase_node(device)
        device = None
    result = Trace(graph=small.graph, extras=extras, inputs=typed, batch=batch, device=device, output=small.output)
    _dropouts_to_modules(module, result)
    result.graph.lint()
    return result


def vocabulary_of(module: nn.Module, trace: Trace, given: Input) -> int | None:
    """Return the rows of the smallest table that the values of an input index directly; None if they are floats.

    It is 0 for integers of which that is not known.
    """
    if given.dtype is None or given.dtype.is_floating_point:
        return None
    found: list[int] = []
    todo = [n for n in trace.placeholders if n.target == given.name]
    seen = set(todo)
    while todo:
        node = todo.pop()
        for user in node.users:
            called = trace.module_of(module, user)
            if isinstance(called, nn.Embedding | nn.EmbeddingBag):
                found.append(called.num_embeddings)
            elif user.target in _LOOKUPS and user.args[:1] == (node,):
                table = user.args[1] if len(user.args) > 1 else user.kwargs.get("weight")
                if isinstance(table, fx.Node) and table.op == "get_attr":
                    found.append(dict(module.named_parameters(remove_duplicate=False))[str(table.target)].shape[0])
            elif user.op == "call_method" and user.target in _SAME_VALUES and user not in seen:
                seen.add(user)
                todo.append(user)
    return min(found, default=0)


def _refused(module: nn.Module, found: Differs, small: _Recording, where: str) -> InputError:
    name = type(module).__name__
    if found.batches:
        return InputError(
            f"forward of {name} does something else with {TRACED_BATCHES[1]} samples than with {TRACED_BATCHES[0]} "
            f"(first at {found.words})",
            where=where,
            hint="what it does may depend on the number of samples only by multiples of it, and it may not make "
            "constants at random (transformers: apply_spec_augment=False)",
        )
    return InputError(
        f"forward of {name} takes another path in evaluation than in training (first at {found.words})",
        where=where,
        hint="return one tensor, made alike in both modes, and no auxiliary output (torchvision: aux_logits false)",
    )


def _typed(module: nn.Module, inputs: tuple[Input, ...], where: str) -> tuple[tuple[Input, ...], bool, _Recording]:
    """Return `inputs` with their types, and whether to tell `forward` that it is compiled: the first not to fail.

    The recording is one in training with the smaller batch.
    """
    named = arguments_of(module, inputs, where)
    errors = []
    for typed in dtypes_to_try(module, named):
        for compiling in (False, True):
            try:
                batch = TRACED_BATCHES[0]
                first = _record(module, typed, batch, frozenset(), where, training=True, compiling=compiling)
            except InputError as error:
                errors.append(error)
                if not isinstance(error.__cause__, CannotRecord):
                    break
            else:
                return typed, compiling, first
    integers = [e for e in errors if isinstance(e.__cause__, CannotRecord)]
    if "indices" in str(errors[0]) or "Long" in str(errors[0]):
        integers += errors[1:]
    raise (*integers, *errors)[0]


def _record(
    module: nn.Module,
    inputs: tuple[Input, ...],
    batch: int,
    leaves: frozenset[type],
    where: str,
    *,
    training: bool,
    compiling: bool,
) -> _Recording:
    twin = meta_twin(module, where)
    twin.train(training)
    tracer = Tracer(twin, leaves, compiling=compiling)
    samples: Mapping[str, torch.Tensor] = {i.name: i.samples(batch) for i in inputs}
    options = options_of(twin)
    first, *others = samples.values()
    keywords = dict(zip([i.name for i in inputs[1:]], others, strict=True))
    try:
        returned = tracer.run(samples, lambda: twin(first, **keywords, **options))
        chosen, output = chosen_output(returned, module, where)
        tracer.finish(chosen)
    except (CannotRecord, *USER_ERRORS) as error:
        raise _failed(module, tracer, error, inputs, where) from error
    _drop_unused(tracer.graph, tracer.device)
    return _Recording(graph=tracer.graph, extras=tracer.extras, device=tracer.device, output=output)


def _failed(
    module: nn.Module, tracer: Tracer, error: BaseException, inputs: tuple[Input, ...], where: str
) -> InputError:
    place = tracer.failed_in or type(module).__name__
    if isinstance(error, CannotRecord | NotImplementedError) or " meta " in f"{error}":
        told = describe(error).removeprefix("CannotRecord: ")
        if isinstance(error, NotImplementedError):
            told = f"the shape of a result depends on values ({told.rpartition(' (')[2]}"
        return InputError(
            f"forward of {place} cannot be followed: {told}",
            where=where,
            hint="forward may not branch, loop or index on values of tensors, nor convert them to Python numbers; "
            "shapes are known. Compute both paths and choose with torch.where, or leave this part out of the model",
        )
    return InputError(
        f"{place} fails on samples of {shape_words(inputs)}: {describe(error)}",
        where=where,
        hint=f"set input_shape to the shape of one sample, without the batch{more_arguments(module, inputs)}. It ran "
        "on torch's meta device: an op that fails there whatever the shape must be left out of the model",
    )


def _drop_unused(graph: fx.Graph, device: fx.Node | None) -> None:
    """Drop views that nobody uses, and what was only computed to be read while tracing."""
    of_samples: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or "changes" in node.meta or any(n in of_samples for n in node.all_input_nodes):
            of_samples.add(node)
    for node in reversed(list(graph.nodes)):
        if node.users or node is device or node.op in ("output", "placeholder", "call_module"):
            continue
        if node not in of_samples or node.target in (as_changed, "detach", getattr):
            graph.erase_node(node)


def _dropouts_to_modules(module: nn.Module, trace: Trace) -> None:
    """Give each call of dropout, by function or by module, a submodule of its own."""
    called: set[str] = set()
    for node in list(trace.graph.nodes):
        replacement: nn.Dropout | None = None
        if node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS:
            replacement = _as_module(node, trace)
        elif type(original := trace.module_of(module, node)) is nn.Dropout and isinstance(original, nn.Dropout):
            if node.target in called:
                replacement = nn.Dropout(original.p, original.inplace)
            called.add(str(node.target))
        if replacement is None:
            continue
        replacement.training = module.training
        name = fresh_name(module, trace.extras, node.name)
        trace.extras[name] = replacement
        value = node.args[0] if node.args else node.kwargs["input"]
        with trace.graph.inserting_before(node):
            call = trace.graph.call_module(name, (value,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        trace.graph.erase_node(node)
    for node in list(trace.graph.nodes):
        if trace.switch(node) and not node.users:
            trace.graph.erase_node(node)
            del trace.extras[str(node.target)]


def _as_module(node: fx.Node, trace: Trace) -> nn.Dropout | None:
    """Return the module that does what a call of a dropout function does; None if its rate is computed."""
    given = dict(zip(("input", *_DROPOUT_FUNCTIONS[node.target], "inplace"), node.args, strict=False)) | node.kwargs
    rates = []
    for training in (True, False):
        settings = {}
        for key in _DROPOUT_FUNCTIONS[node.target]:
            value = given.get(key, _DROPOUT_DEFAULTS[key])
            if isinstance(value, fx.Node):
                switch = trace.switch(value)
                if switch is None:
                    return None
                value = switch.train_value if training else switch.eval_value
            settings[key] = value
        p, active = settings.values()
        rates.append(float(p) if active and isinstance(p, int | float) else 0.0)
    inplace = bool(given.get("inplace", False))
    if rates[1] == 0.0:
        return nn.Dropout(rates[0], inplace)
    return AlwaysDropout(rates[0], inplace) if rates[0] == rates[1] else None
