"""What is trained: a chain of blocks with their parameters, work and activation sizes.

A profile holds plain numbers only, so that it can be simulated on a machine without torch. FLOPs are
2 x multiply-accumulate of convolution and linear layers, per sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from stanza_sim.errors import InputError


class BlockKind(StrEnum):
    """Which part of the model a block belongs to under layer separation."""

    CONV = "conv"
    FC = "fc"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamTensor:
    """One trainable parameter, named as in the module's `named_parameters()`."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of layers that is computed and exchanged as one unit. All work figures are per sample.

    `bytes_touched` is the sum of the output bytes of the block's leaf operations in one forward pass
    (each is written once and read about once; the cost model turns it into memory traffic).
    `kernels` counts the leaf operations of one forward pass (launch overhead). `output_shape` excludes
    the batch dimension.
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

    @property
    def numel(self) -> int:
        """Trainable parameters of the block, in elements."""
        return sum(t.numel for t in self.tensors)

    @property
    def output_numel(self) -> int:
        """Elements of the block's output, per sample."""
        return prod(self.output_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model as a chain of blocks; `blocks[:boundary]` is the CONV part, `blocks[boundary:]` the FC part.

    `boundary == len(blocks)` means that the model has no FC part. `factory` is the import path
    (`package.module:callable`) that builds the torch module, called with `factory_kwargs`.
    """

    name: str
    blocks: tuple[Block, ...]
    boundary: int
    input_shape: tuple[int, ...]
    num_classes: int
    itemsize: int = 4
    factory: str | None = None
    factory_kwargs: tuple[tuple[str, str | int | float | bool | None], ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError(f"model {self.name} has no blocks")
        if not 0 <= self.boundary <= len(self.blocks):
            raise InputError(f"model {self.name}: boundary {self.boundary} is not between 0 and {len(self.blocks)}")
        names = [b.name for b in self.blocks]
        if len(set(names)) != len(names):
            raise InputError(f"model {self.name} has two blocks of one name")

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

    def block(self, name: str) -> Block:
        """Return the block called `name`; raise `InputError` if there is none."""
        for b in self.blocks:
            if b.name == name:
                return b
        raise InputError(f"model {self.name} has no block {name!r}", hint=f"its blocks: {', '.join(b.name for b in self.blocks)}")
