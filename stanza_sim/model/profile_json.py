"""A `ModelProfile` as JSON text: one line per block, so that two tables can be compared by eye.

The block's kind is not written: it follows from the boundary, which is the name of the first FC block, or
null for a model without an FC part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.model.labels import Labels, Loss
from stanza_sim.model.profile import (
    Block,
    BlockKind,
    ModelInput,
    ModelProfile,
    OpWork,
    ParamTensor,
    PassWork,
    Throughput,
)

FORMAT = "stanza-sim-model/1"
MOST = 10**16
"""No size, no work and no count of a block is larger: sums of them stay whole numbers of 64 bits."""
_WORK = ("forward_flops", "backward_input_flops", "backward_weight_flops", "bytes_touched", "kernels")
_HEAD = ("name", "factory", "factory_kwargs", "input_shape", "num_classes", "itemsize", "boundary")


def to_json(profile: ModelProfile) -> str:
    """Return `profile` as JSON text that `from_json` reads back to an equal profile."""
    head: dict[str, object] = {
        "format": FORMAT,
        "name": profile.name,
        "factory": profile.factory,
        "factory_kwargs": dict(profile.factory_kwargs),
        "input_shape": profile.input_shape,
        "num_classes": profile.num_classes,
        "itemsize": profile.itemsize,
        "boundary": profile.fc_blocks[0].name if profile.fc_blocks else None,
    }
    if profile.scaled_from is not None:
        head["scaled_from"] = profile.scaled_from
    if profile.throughput:
        head["throughput"] = {
            t.device: {"samples_per_s": t.samples_per_s, "batch": t.batch} for t in profile.throughput
        }
    if profile.vocabulary is not None:
        head["vocabulary"] = profile.vocabulary
    if profile.more_inputs:
        head["more_inputs"] = [
            {"name": i.name, "shape": i.shape, "vocabulary": i.vocabulary} for i in profile.more_inputs
        ]
    if profile.output is not None:
        head["output"] = profile.output
    if (labels := profile.stated_labels) is not None:
        head["labels"] = {
            "loss": labels.loss,
            "shape": labels.shape,
            "class_axis": labels.class_axis,
            "probabilities": labels.probabilities,
        }
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    blocks = ",\n".join(f"    {json.dumps({**_block_data(b), **_work_data(b)})}" for b in profile.blocks)
    return f'{{\n{lines},\n  "blocks": [\n{blocks}\n  ]\n}}\n'


def fingerprint(profile: ModelProfile) -> str:
    """Return 16 hexadecimal digits that differ if the blocks, their tensors or their work differ.

    Neither the model's name nor its boundary counts: measured block times hold for any.
    """
    data = [profile.itemsize, [_block_data(b) for b in profile.blocks]]
    return sha256(json.dumps(data).encode()).hexdigest()[:16]


def _block_data(block: Block) -> dict[str, object]:
    work = {key: getattr(block, key) for key in _WORK}
    tensors = [[t.name, *t.shape] for t in block.tensors]
    more: dict[str, object] = {}
    if block.tied:
        more["tied"] = [[t.name, *t.shape] for t in block.tied]
    if lookups := {t.name: t.lookups for t in block.tensors if t.lookups}:
        more["lookups"] = lookups
    return {"name": block.name, "output_shape": block.output_shape, **work, "tensors": tensors, **more}


def _work_data(block: Block) -> dict[str, object]:
    """The work by kind of op and its precision, which are not in the fingerprint."""
    fp32: dict[str, object] = {"fp32": True} if block.fp32 else {}
    if block.again_flops:
        fp32["again_flops"] = block.again_flops
    if block.kept_nbytes is not None:
        fp32["kept_nbytes"] = block.kept_nbytes
    return {**fp32, "work": work_to_data(block.work)} if block.work else fp32


def work_to_data(work: tuple[OpWork, ...]) -> dict[str, list[list[float]]]:
    """Return work by kind of op as data for JSON: of each pass FLOPs and bytes a sample, bytes a call, and kernels."""
    return {one.kind.value: [[p.flops, p.sample_nbytes, p.fixed_nbytes, p.kernels] for p in one.passes] for one in work}


def work_from_data(data: object, where: str) -> tuple[OpWork, ...]:
    """Read what `work_to_data` returned. Raises `InputError`."""
    return _op_work(_Reader(data, where))


def from_json(text: str | bytes, *, where: str) -> ModelProfile:
    """Read what `to_json` wrote; raise `InputError` for anything else, with `where` (a file name) as its place."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=where, hint=f"a file of the format {FORMAT}") from None
    top = _Reader(data, where)
    if top.data.get("format") != FORMAT:
        raise InputError(f"format is {top.data.get('format')!r}", where=where, hint=f"it must be {FORMAT!r}")
    top.only("format", *_HEAD, "scaled_from", "throughput", "vocabulary", "more_inputs", "output", "labels", "blocks")
    readers = [_Reader(b, f"{where}: blocks[{i}]") for i, b in enumerate(top.array("blocks"))]
    names = [r.text("name") for r in readers]
    boundary = top.optional_text("boundary")
    if boundary is not None and boundary not in names:
        raise top.wrong("boundary", "the name of a block, or null")
    first_fc = len(names) if boundary is None else names.index(boundary)
    kwargs = _Reader(top.data.get("factory_kwargs"), f"{where}: factory_kwargs")
    return ModelProfile(
        name=top.text("name"),
        blocks=tuple(_block(r, BlockKind.CONV if i < first_fc else BlockKind.FC) for i, r in enumerate(readers)),
        boundary=first_fc,
        input_shape=top.shape("input_shape"),
        num_classes=top.count("num_classes", least=1),
        itemsize=top.count("itemsize", least=1),
        factory=top.optional_text("factory"),
        factory_kwargs=tuple((key, kwargs.scalar(key)) for key in kwargs.data),
        scaled_from=top.optional_text("scaled_from") if "scaled_from" in top.data else None,
        throughput=_throughput(top.data.get("throughput", {}), f"{where}: throughput"),
        vocabulary=top.count("vocabulary") if "vocabulary" in top.data else None,
        more_inputs=tuple(
            _input(_Reader(i, f"{where}: more_inputs[{n}]"))
            for n, i in enumerate(top.array("more_inputs") if "more_inputs" in top.data else [])
        ),
        output=top.optional_text("output") if "output" in top.data else None,
        stated_labels=_labels(top.data["labels"], f"{where}: labels") if "labels" in top.data else None,
    )


def _input(reader: _Reader) -> ModelInput:
    reader.only("name", "shape", "vocabulary")
    vocabulary = None if reader.data.get("vocabulary") is None else reader.count("vocabulary")
    return ModelInput(name=reader.text("name"), shape=reader.shape("shape"), vocabulary=vocabulary)


def _labels(data: object, where: str) -> Labels:
    reader = _Reader(data, where)
    reader.only("loss", "shape", "class_axis", "probabilities")
    loss, axis = reader.text("loss"), reader.data.get("class_axis")
    if loss not in {*Loss}:
        raise reader.wrong("loss", f"one of {', '.join(Loss)}")
    if axis not in (0, -1) or isinstance(axis, bool):
        raise reader.wrong("class_axis", "0 or -1")
    return Labels(
        loss=Loss(loss),
        shape=reader.shape("shape"),
        class_axis=0 if axis == 0 else -1,
        probabilities=reader.switch("probabilities"),
    )


def _throughput(data: object, where: str) -> tuple[Throughput, ...]:
    top = _Reader(data, where)
    found = []
    for device in top.data:
        reader = _Reader(top.data[device], f"{where}.{device}")
        reader.only("samples_per_s", "batch")
        batch = reader.count("batch", least=1)
        found.append(Throughput(device=device, samples_per_s=reader.positive("samples_per_s"), batch=batch))
    return tuple(found)


def _block(reader: _Reader, kind: BlockKind) -> Block:
    more = ("tied", "lookups", "fp32", "again_flops", "kept_nbytes", "work")
    reader.only("name", "output_shape", *_WORK, "tensors", *more)
    return Block(
        name=reader.text("name"),
        kind=kind,
        tensors=_tensors(reader, "tensors"),
        tied=_tensors(reader, "tied") if "tied" in reader.data else (),
        forward_flops=reader.count("forward_flops"),
        backward_input_flops=reader.count("backward_input_flops"),
        backward_weight_flops=reader.count("backward_weight_flops"),
        bytes_touched=reader.count("bytes_touched"),
        kernels=reader.count("kernels"),
        output_shape=reader.shape("output_shape"),
        fp32=reader.switch("fp32"),
        again_flops=reader.count("again_flops") if "again_flops" in reader.data else 0,
        kept_nbytes=reader.count("kept_nbytes") if "kept_nbytes" in reader.data else None,
        work=_op_work(_Reader(reader.data.get("work", {}), f"{reader.where}: work")),
    )


def _tensors(reader: _Reader, key: str) -> tuple[ParamTensor, ...]:
    found = []
    lookups = _Reader(reader.data.get("lookups", {}), f"{reader.where}: lookups")
    for i, entry in enumerate(reader.array(key)):
        if not isinstance(entry, list) or not entry:
            raise reader.wrong(key, "a list of [name, dimension, ...]")
        tensor = _Reader({"name": entry[0], "shape": entry[1:]}, f"{reader.where}: {key}[{i}]")
        name = tensor.text("name")
        rows = lookups.count(name, least=1) if name in lookups.data else 0
        found.append(ParamTensor(name=name, shape=tensor.shape("shape"), lookups=rows))
    return tuple(found)


def _op_work(reader: _Reader) -> tuple[OpWork, ...]:
    reader.only(*OpKind)
    found = []
    for kind in reader.data:
        rows = reader.array(kind)
        good = [row for row in rows if isinstance(row, list) and len(row) == 4 and _are_amounts(row)]
        if len(rows) != 3 or len(good) != 3:
            raise reader.wrong(kind, "[FLOPs, bytes a sample, bytes a call, kernels] of each of the three passes")
        passes = [PassWork(flops=f, sample_nbytes=s, fixed_nbytes=w, kernels=k) for f, s, w, k in good]
        forward, inputs, weights = passes
        found.append(OpWork(kind=OpKind(kind), forward=forward, backward_input=inputs, backward_weight=weights))
    return tuple(found)


def _are_amounts(row: list[object]) -> bool:
    """Whether FLOPs and bytes are whole numbers and kernels any, none below zero."""
    numbers = [n for n in row if isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= MOST]
    return len(numbers) == len(row) and all(isinstance(n, int) for n in numbers[:3])


class _Reader:
    """One JSON object: takes values by key and type, and says what is wrong with the others."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{type(data).__name__} in place of an object", where=where)
        self.data: Mapping[str, object] = data
        self.where = where

    def wrong(self, key: str, right: str) -> InputError:
        value = repr(self.data[key]) if key in self.data else "missing"
        return InputError(f"{key} is {value[:60]}", where=self.where, hint=f"it must be {right}")

    def only(self, *keys: str) -> None:
        unknown = [key for key in self.data if key not in keys]
        if unknown:
            raise InputError(f"unknown key {unknown[0]!r}", where=self.where, hint=f"the keys are {', '.join(keys)}")

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        if key in self.data and self.data[key] is None:
            return None
        return self.text(key)

    def count(self, key: str, *, least: int = 0) -> int:
        value = self.data.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise self.wrong(key, f"an integer of at least {least} and at most {MOST:.0e}")
        return value

    def positive(self, key: str) -> float:
        value = self.data.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MOST:
            raise self.wrong(key, "a positive number")
        return float(value)

    def switch(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def scalar(self, key: str) -> str | int | float | bool | None:
        value = self.data[key]
        if value is not None and not isinstance(value, str | int | float):
            raise self.wrong(key, "a text, a number, true, false or null")
        return value

    def array(self, key: str) -> list[object]:
        value = self.data.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        sizes = self.array(key)
        good = tuple(n for n in sizes if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST)
        if len(good) != len(sizes):
            raise self.wrong(key, "a list of positive integers")
        return good
