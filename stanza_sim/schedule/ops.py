"""The ops of a schedule and the values that they move. An op says what, who and after what; never how long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import TypeAlias

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import HALF_BYTES
from stanza_sim.schedule.ranks import Ranks

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]*")
RECV, SENT = ".recv", ".sent"


class Phase(StrEnum):
    """What a computation does. Those from `PARTIAL` on work on a bundle, the others on a block.

    `PARTIAL` adds up gradients of some ranks where they are gathered, `REDUCE` those of all ranks at an owner;
    `RECONSTRUCT` makes the sum of all ranks' gradients from their factors. `NORM` adds up the squares of an owner's
    part of that sum, for `stanza_sim.schedule.clipping`. `RECOMPUTE` runs a forward pass again, whose activations were
    not kept, for the backward pass behind it (Chen et al., "Training deep nets with sublinear memory cost", arXiv
    1604.06174).
    """

    FORWARD = "forward"
    RECOMPUTE = "recompute"
    LOSS = "loss"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    PARTIAL = "partial"
    REDUCE = "reduce"
    RECONSTRUCT = "reconstruct"
    NORM = "norm"
    UPDATE = "update"

    @property
    def on_bundle(self) -> bool:
        """Whether the op's target is a bundle rather than a block."""
        return self in (Phase.PARTIAL, Phase.REDUCE, Phase.RECONSTRUCT, Phase.NORM, Phase.UPDATE)


class Pattern(StrEnum):
    """Which (source, destination) pairs a transfer has.

    `BLOCKED` serves the larger group by the smaller in contiguous, even shares: with n sources and k <= n
    destinations source i goes to destination i*k // n, and the other way round when k > n.
    """

    ONE_TO_ONE = "one-to-one"
    FAN_IN = "fan-in"
    FAN_OUT = "fan-out"
    ALL_PAIRS = "all-pairs"
    BLOCKED = "blocked"
    EXPLICIT = "explicit"


class CollectiveKind(StrEnum):
    """The collectives over a group of ranks."""

    ALL_REDUCE = "all_reduce"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    BROADCAST = "broadcast"


class Algorithm(StrEnum):
    """Which messages a collective consists of; see `stanza_sim.schedule.collectives`."""

    RING = "ring"
    HALVING_DOUBLING = "halving_doubling"
    TREE = "tree"
    HIERARCHICAL = "hierarchical"


class Carrier(StrEnum):
    """Who carries a collective out: the backend's own collective, or this program, message by message.

    What gloo and NCCL do by themselves is taken to be the ring, so only a ring may be theirs.
    """

    BACKEND = "backend"
    STEPS = "steps"


CHUNK_BYTES = 512 * 1024
"""Bytes of one message of a pipeline (a tree, a chain), if not stated: NCCL's trees move slices of up to 512 KiB."""
NO_PRIORITY = "collectives of a group go in program order at every rank, so leave the priority out"
"""What to do where a collective states a priority."""


class ValueKind(StrEnum):
    """What a message carries.

    Of a bundle: `GRAD`, a rank's gradients, and `SUM`, a sum of some ranks', go to owners; `PARAM`, parameters, come
    from owners. `PART`, a rank's gradients, go to one that adds them up; `COPY`, parameters, come from one that pulled
    them. These two are never cut. `LOGSUM` is the log of the sum of exponentials over a sample's outputs of a block.
    `FACTORS` are those of a bundle's gradient (see `stanza_sim.schedule.factors`). `NORM`, of no name, is the square of
    the norm of all gradients, one element.
    """

    GRAD = "grad"
    PARAM = "param"
    PART = "part"
    SUM = "sum"
    COPY = "copy"
    ACT = "act"
    ACTGRAD = "actgrad"
    LABELS = "labels"
    LOGSUM = "logsum"
    FACTORS = "factors"
    NORM = "norm"

    @property
    def on_bundle(self) -> bool:
        """Whether it is of a bundle rather than of samples."""
        return self in _OF_BUNDLES

    @property
    def is_activation(self) -> bool:
        """Whether it consists of activations or of their gradients."""
        return self in (ValueKind.ACT, ValueKind.ACTGRAD, ValueKind.FACTORS)

    @property
    def is_gradient(self) -> bool:
        """Whether it consists of gradients of parameters, or of sums of them."""
        return self in (ValueKind.GRAD, ValueKind.PART, ValueKind.SUM)

    @property
    def owner_sends(self) -> bool | None:
        """Whether it comes from an owner (True), goes to one (False), or neither."""
        return True if self is ValueKind.PARAM else False if self in (ValueKind.GRAD, ValueKind.SUM) else None


_OF_BUNDLES = (ValueKind.GRAD, ValueKind.PART, ValueKind.SUM, ValueKind.PARAM, ValueKind.COPY)


class Layout(StrEnum):
    """How the owners of a bundle hold it: each the whole, each one slice of the flat vector, or each its features.

    `FEATURES` is for the tensors of blocks that are cut over the owners (see `Cut`): each owner alone has its slice.
    """

    REPLICATED = "replicated"
    SHARDED = "cut"
    FEATURES = "features"


class Keep(StrEnum):
    """What a rank that computes with a bundle in slices keeps of it beside its own slice; ZeRO's stages 1, 2 and 3.

    `ALL`: whole parameters and whole gradients. `PARAMETERS`: whole parameters; gradients are whole from an iteration's
    first backward pass to the end of the reduce-scatter. `SLICES`: parameters too are whole only from the beginning of
    an all-gather to the end of the last pass before the next one, or in that iteration.
    """

    ALL = "all"
    PARAMETERS = "parameters"
    SLICES = "slices"


class Axis(StrEnum):
    """Along which features of a linear layer a block is cut: those of its output, or those of its input.

    They are the columns and the rows of A in Y = XA (Shoeybi et al., Megatron-LM, arXiv 1909.08053); torch keeps A
    transposed, as `weight` of shape [outputs, inputs].
    """

    COLUMNS = "columns"
    ROWS = "rows"


class Wire(StrEnum):
    """The type in which values travel: that of the parameters, or one of 2 bytes, which they are rounded to.

    What is received is widened on arrival, but partial sums of activations, which a collective sums in that type, and
    gradients of a bundle, which an all-reduce or reduce-scatter sums in it. Parameters, labels and logsums travel as
    they are.
    """

    NATIVE = "native"
    BF16 = "bf16"
    FP16 = "fp16"

    def itemsize(self, native: int) -> int:
        """Bytes of an element; `native` are those of a parameter."""
        return native if self is Wire.NATIVE else HALF_BYTES


@dataclass(frozen=True, slots=True)
class Value:
    """A value at a rank: gradients, their factors, parameters of a bundle; output of a block, its gradient; labels."""

    kind: ValueKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}({self.name})" if self.name else str(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Named ranks with one role."""

    name: str
    ranks: Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Tensors that are exchanged, reduced and updated as one flat vector of `numel` elements.

    The vector is the elements [start, start + numel) of the tensors, laid end to end: all of them, or a part, and then
    other bundles of the same `tensors` have the rest. `owners` names the group that holds optimiser state. Under
    `Layout.SHARDED` the i-th owner has the slice `slice_bounds(numel, len(owners), i)`; under `Layout.REPLICATED` each
    owner has all of it. Of a bundle in slices there may be `replicas`: the owners are so many runs of one length, one
    after another, and each run has all slices. `keep` says how long what is not the own slice is there.
    """

    name: str
    tensors: tuple[str, ...]
    numel: int
    owners: str
    layout: Layout = Layout.REPLICATED
    start: int = 0
    replicas: int = 1
    keep: Keep = Keep.ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A block of one linear layer, with `inputs` and `outputs` features at each position, cut over the group `ranks`.

    The i-th rank of the group holds and computes features `feature_bounds(features, len(ranks), i)`, for all samples
    of the group. By columns a rank needs the whole input and has a slice of the output, and the gradient of its input
    is a partial sum. By rows it needs a slice of the input and has a partial sum of the layer's output, and a slice of
    the gradient of its input; the bias, and what follows the layer in the block, are applied once a collective has
    formed the sum.
    """

    block: str
    ranks: str
    axis: Axis
    inputs: int
    outputs: int
    positions: int = 1

    @property
    def features(self) -> int:
        """How many features are cut."""
        return self.outputs if self.axis is Axis.COLUMNS else self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A computation of `phase` on block or bundle `target` at every rank of the group `ranks`."""

    name: str
    ranks: str
    phase: Phase
    target: str
    microbatch: int = 0
    lane: str = "main"
    after: tuple[str, ...] = ()
    after_previous: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Point-to-point messages from group `src` to group `dst`, paired by `pattern`.

    `nbytes` is the size of one whole message; where a value is a cut bundle, each pair carries the owner's
    slice of it only. A pair (r, r) is a local dependency and no message. Among ops whose messages a sender may post the
    one of the lowest `priority` goes first.

    `microbatch` is the senders' number of the samples whose activations, gradients or labels travel. Receivers know
    them by the same number, or by `arrives_as`: so a rank that computes for several others can take the samples of
    each as micro-batches of their own, numbered from the schedule's `microbatches` on, and send back the gradients of
    such a number as those of its receiver's micro-batch. `wire` is the type in which
    activations, factors and gradients travel; a local pair keeps them as they are.

    Messages of one pair and channel go in program order, one at a time, if `credit` is 0. Else at most `credit` ops of
    the channel are under way from one rank to the same destinations, and of those that are ready the one of the lowest
    `priority` goes next, so that an urgent one overtakes those that wait. On a backend that takes messages in the order
    of issue (NCCL) the order is that of the program all the same.

    `slices` names a block that is cut by rows, if only its slice of the input travels: of an activation each
    destination gets the slice that it computes with; of a gradient each source sends the slice that it has, and the
    destination joins them.
    """

    name: str
    src: str
    dst: str
    pattern: Pattern
    values: tuple[Value, ...]
    nbytes: int
    channel: str = "p2p"
    priority: int = 0
    credit: int = 0
    microbatch: int = 0
    arrives_as: int | None = None
    wire: Wire = Wire.NATIVE
    pairs: tuple[tuple[int, int], ...] = ()
    slices: str = ""
    after: tuple[str, ...] = ()
    after_previous: tuple[str, ...] = ()

    @property
    def landing(self) -> int:
        """The receivers' number of the micro-batch."""
        return self.microbatch if self.arrives_as is None else self.arrives_as

    @property
    def queue(self) -> str:
        """What messages of one pair queue in: those of one queue go one at a time, in program order.

        With credit an op queues only behind itself; a space keeps that name apart from every channel's.
        """
        return f"{self.channel} {self.name}" if self.credit else self.channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective over the group `ranks` on one value of `nbytes` bytes in all; `root` for a broadcast.

    Gradients and parameters are those of a bundle; a sum that is all-reduced is that of one slice, over the ranks that
    have it. Activations, and gradients of activations, are those of a block that is cut over the group: an all-reduce
    sums partial sums. The logsums of the last block's slices are gathered: with them each rank computes the loss and
    its gradient on its slice. An all-reduce adds up the owners' parts of the norm of all gradients.

    For `Algorithm.HIERARCHICAL`, ranks r with the same r // `local` are taken to be on one host; elsewhere it is 0. A
    schedule knows no hosts, and both engines must do the same. `chunk` is the most bytes of one message of a pipeline.
    `wire` is the type in which gradients and partial sums travel and are summed.

    There is no priority: all members must carry out the collectives of a group in one order, which is the program's.
    """

    name: str
    kind: CollectiveKind
    ranks: str
    value: Value
    nbytes: int
    algorithm: Algorithm = Algorithm.RING
    by: Carrier = Carrier.BACKEND
    local: int = 0
    chunk: int = CHUNK_BYTES
    microbatch: int = 0
    root: int | None = None
    wire: Wire = Wire.NATIVE
    after: tuple[str, ...] = ()
    after_previous: tuple[str, ...] = ()


Op: TypeAlias = Compute | Transfer | Collective


def slice_bounds(numel: int, pieces: int, index: int) -> tuple[int, int]:
    """Elements [lo, hi) of slice `index` when `numel` elements are cut in `pieces`.

    Every slice has ceil(numel / parts) elements but for the tail, which may be short or empty (as
    `torch.chunk` cuts): all owners but the last few do the same work, and collectives need no second size.
    """
    if not 0 <= index < pieces:
        raise InputError(f"there is no slice {index} of {pieces}")
    size = ceil(numel / pieces)
    lo = min(index * size, numel)
    return lo, min(lo + size, numel)


def feature_bounds(features: int, pieces: int, index: int) -> tuple[int, int]:
    """Features [lo, hi) of slice `index` when `features` are cut in `pieces`: the first slices may have one more."""
    if not 0 <= index < pieces:
        raise InputError(f"there is no slice {index} of {pieces}")
    size, more = divmod(features, pieces)
    lo = index * size + min(index, more)
    return lo, lo + size + (index < more)


def dependency(text: str) -> tuple[str, str]:
    """Split a name in `after` into the op's name and its side: `recv`, `sent` or empty."""
    for suffix in (RECV, SENT):
        if text.endswith(suffix):
            return text[: -len(suffix)], suffix[1:]
    return text, ""
