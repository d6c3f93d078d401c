"""What is trained: a chain of blocks with their parameters, work and activation sizes.

A profile holds plain numbers only, so that it can be simulated on a machine without torch. FLOPs are
2 x multiply-accumulate of convolution and linear layers, per sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from math import prod

from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.base.tables import shortened
from stanza_sim.model.labels import Labels, usual_labels


class BlockKind(StrEnum):
    """Which part of the model a block belongs to under layer separation."""

    CONV = "conv"
    FC = "fc"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamTensor:
    """One trainable parameter, named as in the module's `named_parameters()`.

    `lookups` is above zero for a table with sparse gradients (`nn.Embedding(sparse=True)`): so many of its rows are
    looked up for each sample, and a gradient has no others.
    """

    name: str
    shape: tuple[int, ...]
    lookups: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassWork:
    """The work of ops of one kind in one pass.

    `flops` and `sample_nbytes` are those of one sample; `fixed_nbytes` are touched whatever the batch (weights).
    `kernels` are launched by a layer or its derivative; the sums of gradients that meet are not counted. They are a
    whole number, except of a scaled model.
    """

    flops: int = 0
    sample_nbytes: int = 0
    fixed_nbytes: int = 0
    kernels: float = 0

    def times(self, flops: float, sample_nbytes: float, fixed_nbytes: float, kernels: float) -> PassWork:
        """Return the work with each amount multiplied by its factor; all but kernels are rounded."""
        return PassWork(
            flops=round(self.flops * flops),
            sample_nbytes=round(self.sample_nbytes * sample_nbytes),
            fixed_nbytes=round(self.fixed_nbytes * fixed_nbytes),
            kernels=self.kernels * kernels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpWork:
    """The work of ops of one kind in the three passes over a block."""

    kind: OpKind
    forward: PassWork
    backward_input: PassWork
    backward_weight: PassWork

    @property
    def passes(self) -> tuple[PassWork, PassWork, PassWork]:
        """Forward, input gradient and weight gradient."""
        return self.forward, self.backward_input, self.backward_weight

    def times(
        self, flops: float = 1.0, sample_nbytes: float = 1.0, fixed_nbytes: float = 1.0, kernels: float = 1.0
    ) -> OpWork:
        """Return the work with each amount multiplied by its factor; all but kernels are rounded."""
        forward, inputs, weights = (work.times(flops, sample_nbytes, fixed_nbytes, kernels) for work in self.passes)
        return OpWork(kind=self.kind, forward=forward, backward_input=inputs, backward_weight=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of layers that is computed and exchanged as one unit. All work figures are per sample.

    `bytes_touched` is the sum of the output bytes of the block's leaf operations in one forward pass
    (each is written once and read about once; a roofline turns it into memory traffic).
    `kernels` counts the leaf operations of one forward pass (launch overhead). `output_shape` excludes
    the batch dimension. `work` says the same by kind of op and by pass, with the bytes really touched; it is
    empty where that is not known. A block with `fp32` is computed in fp32 under autocast too.

    `tied` are tensors that the block uses and an earlier one has among its `tensors` (weights tied, layers called
    again): they are counted, exchanged and updated there, with the gradients of all uses added. `again_flops` are those
    of the backward FLOPs that compute a part of the forward pass again (checkpointing). `kept_nbytes` are those of what
    the block puts out, inside too, that are kept until the backward pass; None where that is not known.
    """

    name: str
    kind: BlockKind
    tensors: tuple[ParamTensor, ...]
    forward_flops: int
    backward_input_flops: int
    backward_weight_flops: int
    bytes_touched: int
    kernels: int
    output_shape: tuple[int, ...]
    work: tuple[OpWork, ...] = ()
    fp32: bool = False
    tied: tuple[ParamTensor, ...] = ()
    again_flops: int = 0
    kept_nbytes: int | None = None

    @property
    def numel(self) -> int:
        """Trainable parameters of the block, in elements."""
        return sum(t.numel for t in self.tensors)

    @property
    def output_numel(self) -> int:
        """Elements of the block's output, per sample."""
        return prod(self.output_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What one device is known to train: `samples_per_s` with `batch` samples a step, updates included.

    Raises `InputError` for a rate or a batch that is not positive.
    """

    device: str
    samples_per_s: float
    batch: int

    def __post_init__(self) -> None:
        where = f"throughput.{self.device}"
        if not 0 < self.samples_per_s < float("inf"):
            hint = "use a positive number of samples per second"
            raise InputError(f"samples_per_s is {self.samples_per_s!r:.40}", where=where, hint=hint)
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise InputError(f"batch is {self.batch!r:.40}", where=where, hint="use a whole number of at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One tensor of a sample beside the first: the argument of `forward` that it is, and its shape without the batch.

    It holds floats, or with a `vocabulary` int64 numbers from 0 to below it.
    """

    name: str
    shape: tuple[int, ...]
    vocabulary: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelProfile:
    """A model as a chain of blocks; `blocks[:boundary]` is the CONV part, `blocks[boundary:]` the FC part.

    `boundary == len(blocks)` means that the model has no FC part. `factory` is the import path
    (`package.module:callable`) that builds the torch module, called with `factory_kwargs`. A profile that was `scaled`
    has none, since no module has its numbers, but names that of the model it was scaled from. `throughput` is what is
    known of single devices, at most once for each; costs are scaled to it.

    Samples are floats, or with a `vocabulary` int64 tokens from 0 to below it. `labels` say what the last block's
    output is held to; `stated_labels` are None unless the data, a setting or the module says it. `more_inputs` are the
    other tensors of a sample, of which `input_shape` is the first; the first block takes them all. `output` names the
    part of what the module returns that is trained, if that is but a part (`logits`).
    """

    name: str
    blocks: tuple[Block, ...]
    boundary: int
    input_shape: tuple[int, ...]
    num_classes: int
    itemsize: int = 4
    factory: str | None = None
    factory_kwargs: tuple[tuple[str, str | int | float | bool | None], ...] = ()
    scaled_from: str | None = None
    throughput: tuple[Throughput, ...] = ()
    vocabulary: int | None = None
    stated_labels: Labels | None = None
    more_inputs: tuple[ModelInput, ...] = ()
    output: str | None = None

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError(f"model {self.name} has no blocks")
        if not 0 <= self.boundary <= len(self.blocks):
            raise InputError(f"model {self.name}: boundary {self.boundary} is not between 0 and {len(self.blocks)}")
        names = [b.name for b in self.blocks]
        if len(set(names)) != len(names):
            raise InputError(f"model {self.name} has two blocks of one name")
        known: set[str] = set()
        for b in self.blocks:
            for t in b.tied:
                if t.name not in known:
                    raise InputError(f"block {b.name} is tied to {t.name}, which no block before it has")
            known.update(t.name for t in b.tensors)
        devices = [given.device for given in self.throughput]
        if twice := [d for d in dict.fromkeys(devices) if devices.count(d) > 1]:
            raise InputError(f"model {self.name} has two throughputs of device {twice[0]}")

    def __repr__(self) -> str:
        return f"<ModelProfile {shortened(self.name)}: {len(self.blocks)} blocks, {self.numel:,} parameters>"

    @property
    def conv_blocks(self) -> tuple[Block, ...]:
        """The blocks before the boundary."""
        return self.blocks[: self.boundary]

    @property
    def fc_blocks(self) -> tuple[Block, ...]:
        """The blocks from the boundary on."""
        return self.blocks[self.boundary :]

    @property
    def numel(self) -> int:
        """Trainable parameters of the model, in elements."""
        return sum(b.numel for b in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all trainable parameters."""
        return self.numel * self.itemsize

    @property
    def sample_tokens(self) -> int | None:
        """Tokens of a sample; None if samples are no tokens."""
        return None if self.vocabulary is None else prod(self.input_shape)

    @cached_property
    def labels(self) -> Labels:
        """What a sample's label is: as stated, or as usual for outputs of the last block's shape."""
        return self.stated_labels or usual_labels(self.blocks[-1].output_shape)

    def __getstate__(self) -> dict[str, object]:
        """The fields alone: what is looked up by name is found again where it is needed."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {b.name: i for i, b in enumerate(self.blocks)}

    @cached_property
    def _by_tensors(self) -> Mapping[tuple[str, ...], Block]:
        # Reversed, so that of blocks that share all their tensors the first is kept.
        return {tuple(t.name for t in b.tensors): b for b in reversed(self.blocks) if b.tensors}

    @cached_property
    def users(self) -> Mapping[str, tuple[str, ...]]:
        """The blocks that use each tensor that several use, in forward order, the one that has it first."""
        found: dict[str, list[str]] = {}
        for b in self.blocks:
            for t in b.tied:
                found.setdefault(t.name, [self._holders[t.name][0].name]).append(b.name)
        return {name: tuple(blocks) for name, blocks in found.items()}

    @cached_property
    def _holders(self) -> Mapping[str, tuple[Block, ParamTensor]]:
        return {t.name: (b, t) for b in self.blocks for t in b.tensors}

    def place(self, name: str) -> int:
        """Position in forward order of the block called `name`; raise `InputError` if there is none."""
        if (found := self._places.get(name)) is not None:
            return found
        names = ", ".join(b.name for b in self.blocks)
        raise InputError(f"model {self.name} has no block {name!r}", hint=f"its blocks: {names}")

    def block(self, name: str) -> Block:
        """Return the block called `name`; raise `InputError` if there is none."""
        return self.blocks[self.place(name)]

    def block_of(self, tensors: tuple[str, ...]) -> Block | None:
        """The first block with exactly the tensors of these names, in this order; None if there is none."""
        return self._by_tensors.get(tensors)

    def holder(self, tensor: str) -> tuple[Block, ParamTensor]:
        """The last block that has the tensor called `tensor`, and that tensor; raises `KeyError` if there is none."""
        return self._holders[tensor]


def with_boundary(profile: ModelProfile, boundary: int | str) -> ModelProfile:
    """Return `profile` with its FC part starting at the block of that name, or at that index.

    The index may be anything from 0 (no CONV part) to the number of blocks (no FC part). Raises
    `InputError` for any other index and for a name that no block has.
    """
    names = [b.name for b in profile.blocks]
    if isinstance(boundary, str):
        if boundary not in names:
            near = get_close_matches(boundary, names)
            raise InputError(
                f"boundary {boundary!r} is not a block of model {profile.name}",
                hint=f"did you mean {near[0]!r}?" if near else f"its blocks: {', '.join(names)}",
            )
        boundary = names.index(boundary)
    if not 0 <= boundary <= len(names):
        raise InputError(f"model {profile.name}: boundary {boundary} is not between 0 and {len(names)}")
    return replace(
        profile,
        blocks=tuple(
            replace(b, kind=BlockKind.CONV if i < boundary else BlockKind.FC) for i, b in enumerate(profile.blocks)
        ),
        boundary=boundary,
    )


def scaled(profile: ModelProfile, *, nbytes: float = 1.0, compute: float = 1.0) -> ModelProfile:
    """Return a model of the shape of `profile` that sends `nbytes` times as much and computes `compute` times as long.

    `nbytes` multiplies the elements of every parameter and of every block's output; `compute` the FLOPs of every block,
    the memory traffic of its activations and all its `work`, and it divides a known throughput. Amounts are rounded to
    whole numbers, of elements to at least one. Batch, labels and a block's `kernels` stay as they are. There is no
    module that has these numbers: the result has no `factory` and cannot be trained. Raises `InputError` for a factor
    that is not positive.
    """
    for what, factor in (("bytes", nbytes), ("compute", compute)):
        if not 0 < factor < float("inf"):
            raise InputError(f"model {profile.name}: {what} cannot be scaled by {factor}", hint="use a positive number")
    if nbytes == compute == 1:
        return profile

    def elements(numel: int) -> int:
        return max(1, round(numel * nbytes))

    def shape(tensor: ParamTensor) -> tuple[int, ...]:
        # What has several dimensions is a weight, and a kernel of its own in the backward pass: it keeps their number.
        return (*(1,) * (len(tensor.shape) - 1), elements(tensor.numel)) if tensor.shape else ()

    def work(amount: int) -> int:
        return round(amount * compute)

    blocks = tuple(
        replace(
            b,
            tensors=b.tensors if nbytes == 1 else tuple(replace(t, shape=shape(t)) for t in b.tensors),
            tied=b.tied if nbytes == 1 else tuple(replace(t, shape=shape(t)) for t in b.tied),
            output_shape=b.output_shape if nbytes == 1 else (elements(b.output_numel),),
            forward_flops=work(b.forward_flops),
            backward_input_flops=work(b.backward_input_flops),
            backward_weight_flops=work(b.backward_weight_flops),
            bytes_touched=work(b.bytes_touched),
            again_flops=work(b.again_flops),
            kept_nbytes=None if b.kept_nbytes is None else round(b.kept_nbytes * nbytes),
            work=tuple(w.times(compute, compute, compute, compute) for w in b.work),
        )
        for b in profile.blocks
    )
    origin = profile.scaled_from or profile.factory
    throughput = tuple(replace(t, samples_per_s=t.samples_per_s / compute) for t in profile.throughput)
    return replace(
        profile,
        blocks=blocks,
        factory=None,
        factory_kwargs=(),
        scaled_from=origin,
        throughput=throughput,
        stated_labels=profile.labels if nbytes != 1 else profile.stated_labels,
    )


def with_fused_tensors(profile: ModelProfile, nbytes: int) -> ModelProfile:
    """Return `profile` with neighbouring small tensors of a block counted as one, of up to `nbytes` bytes.

    Blocks, their work and their bytes stay; servers have fewer things to hold, and a simulation has fewer messages. No
    module has these tensors, so the result cannot be trained. Raises `InputError` for a size that is not positive.
    """
    if nbytes < 1:
        raise InputError(f"model {profile.name}: tensors cannot be fused up to {nbytes} bytes", hint="1 or more")
    most = nbytes // profile.itemsize
    blocks = []
    for block in profile.blocks:
        fused: list[list[ParamTensor]] = []
        for tensor in block.tensors:
            alone = tensor.name in profile.users or (fused and fused[-1][0].name in profile.users)
            if fused and not alone and sum(t.numel for t in fused[-1]) + tensor.numel <= most:
                fused[-1].append(tensor)
            else:
                fused.append([tensor])
        tensors = tuple(
            group[0] if len(group) == 1 else ParamTensor(name=group[0].name, shape=(1, sum(t.numel for t in group)))
            for group in fused
        )
        blocks.append(replace(block, tensors=tensors))
    return replace(profile, blocks=tuple(blocks), factory=None, factory_kwargs=(), scaled_from=profile.factory)
