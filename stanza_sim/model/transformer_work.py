"""What the layers of a transformer compute and touch, one op after another, as torch would: plain numbers, no torch.

Everything is of one sample of `positions` tokens in fp32. Each method adds one layer to a block: its FLOPs, what its
ops read and write in the three passes, its kernels, and its parameters. The sums are those that `model.extract` records
of the modules of `model.examples.language`, number by number (a test holds them to that), except that attention is
priced as the fused kernel that torch runs on GPUs, where the recorder runs it as two products with a softmax between.
"""

from __future__ import annotations

from collections.abc import Sequence

from stanza_sim.base.op_kinds import OpKind
from stanza_sim.model.profile import Block, BlockKind, OpWork, ParamTensor, PassWork

ITEM = 4
INDEX = 8
"""Bytes of a number and of an index."""
FORWARD, INPUT, WEIGHT = 0, 1, 2


class BlockWork:
    """The work and the parameters of one block, summed up layer by layer; `positions` are the tokens of a sample.

    `fused`: attention is one kernel in forward and one in backward, which keep no scores (FlashAttention-2, Dao, arXiv
    2307.08691). Its FLOPs count all pairs of positions in the two products forward and the five backward, causal or
    not: a causal kernel skips half of them, and at 1,000 to 16,000 positions reaches about half of what products reach.
    Only then it is known what is kept for the backward pass: what the gradients of later ops need.
    """

    def __init__(self, positions: int, *, fused: bool = True) -> None:
        self.positions, self.fused = positions, fused
        self.tensors: list[ParamTensor] = []
        self.tied: list[ParamTensor] = []
        self._flops = [0, 0, 0]
        self._written, self._kernels, self._kept = 0, 0, 0
        self._passes: dict[OpKind, list[list[int]]] = {}

    def block(self, name: str, kind: BlockKind, output: int) -> Block:
        """The block of all that was added, with `output` features at each position."""
        work = tuple(
            OpWork(kind=one, forward=forward, backward_input=inputs, backward_weight=weights)
            for one in OpKind
            if one in self._passes
            for forward, inputs, weights in [[_pass_work(*amounts) for amounts in self._passes[one]]]
        )
        return Block(
            name=name,
            kind=kind,
            tensors=tuple(self.tensors),
            forward_flops=self._flops[FORWARD],
            backward_input_flops=self._flops[INPUT],
            backward_weight_flops=self._flops[WEIGHT],
            bytes_touched=self._written,
            kernels=self._kernels,
            output_shape=(self.positions, output),
            work=work,
            tied=tuple(self.tied),
            kept_nbytes=self._kept if self.fused else None,
        )

    def linear(
        self, name: str, features: int, outputs: int, *, bias: bool, tied: str | None = None, kept: bool = True
    ) -> None:
        """A linear layer at every position; its weight is `tied` to the tensor of that name, if to any.

        Its output is `kept` unless it is only added to something, or multiplied by constants.
        """
        self._keep(outputs if kept else 0)
        n, weight = self.positions, features * outputs
        tensor = ParamTensor(name=tied or f"{name}.weight", shape=(outputs, features))
        (self.tied if tied else self.tensors).append(tensor)
        flops = 2 * n * weight
        self._products((flops, flops, flops))
        self._leaf(n * outputs)
        for which in (FORWARD, INPUT, WEIGHT):
            extra = outputs if bias and which == FORWARD else 0
            self._op(OpKind.LINEAR, which, n * (features + outputs), weight + extra, flops=flops)
        if bias:
            self.tensors.append(ParamTensor(name=f"{name}.bias", shape=(outputs,)))
            self._op(OpKind.ELEMENTWISE, WEIGHT, n * outputs, outputs)

    def layer_norm(self, name: str, width: int, *, first: bool = False) -> None:
        """Layer normalisation with scale and shift; the `first` of a model has no gradient of its input to itself."""
        n = self.positions
        self._keep(width + 2)  # and the mean and deviation of its input, which is kept by who put it out
        self.tensors += [ParamTensor(name=f"{name}.{part}", shape=(width,)) for part in ("weight", "bias")]
        self._leaf(n * width)
        self._op(OpKind.NORM, FORWARD, 2 * n * width + 2 * n, 2 * width)
        self._op(OpKind.NORM, WEIGHT if first else INPUT, 3 * n * width + 2 * n, 2 * width)
        self._op(OpKind.NORM, WEIGHT, 0, 2 * width, kernels=0)

    def rms_norm(self, name: str, width: int, *, residual: bool = True) -> None:
        """Normalisation by the root of the mean square (Zhang and Sennrich, arXiv 1910.07467), op by op.

        With `residual` its input passes by too, and one gradient more is added to that of its input.
        """
        n, features = self.positions, self.positions * width
        self._keep(2 * width + 1)  # before and after it is scaled
        self.tensors.append(ParamTensor(name=f"{name}.weight", shape=(width,)))
        self._leaf(features)
        self._op(OpKind.ELEMENTWISE, FORWARD, 7 * features + 6 * n, width, kernels=6)
        self._op(OpKind.ELEMENTWISE, INPUT, 16 * features + 10 * n, width, kernels=11)
        self._op(OpKind.ELEMENTWISE, WEIGHT, 4 * features, width, kernels=2)
        self.meet(width, gradients=3 if residual else 2)

    def activation(self, width: int) -> None:
        """A function of each element, with a kernel of its own in backward."""
        features = self.positions * width
        self._keep(width)
        self._leaf(features)
        self._op(OpKind.ELEMENTWISE, FORWARD, 2 * features)
        self._op(OpKind.ELEMENTWISE, INPUT, 3 * features)

    def product(self, width: int) -> None:
        """Two tensors multiplied element by element."""
        features = self.positions * width
        self._keep(width)
        self._leaf(features)
        self._op(OpKind.ELEMENTWISE, FORWARD, 3 * features)
        self._op(OpKind.ELEMENTWISE, INPUT, 6 * features, kernels=2)

    def add(self, width: int) -> None:
        """Two tensors added; their gradients are that of the sum."""
        features = self.positions * width
        self._keep(width)
        self._leaf(features)
        self._op(OpKind.ELEMENTWISE, FORWARD, 3 * features)

    def meet(self, width: int, gradients: int) -> None:
        """Gradients of a tensor with several uses are added: they touch memory, and are no kernels."""
        self._op(OpKind.ELEMENTWISE, INPUT, 3 * (gradients - 1) * self.positions * width, kernels=0)

    def rotate(self, width: int, head: int) -> None:
        """Rotary embedding (Su et al., arXiv 2104.09864) of `width` features in heads of `head`: halves are swapped,
        multiplied by the sines and cosines of the positions, and added."""
        features, angles = self.positions * width, 2 * self.positions * head
        self._keep(width)
        self._leaf(9 * features // 2, kernels=5)
        self._op(OpKind.ELEMENTWISE, FORWARD, 10 * features, angles, kernels=5)
        self._op(OpKind.ELEMENTWISE, INPUT, 10 * features, angles, kernels=4)

    def attention(self, width: int, heads: int, *, kv_width: int, causal: bool, packed: bool) -> None:
        """Attention with `heads` heads of `width` features in all, keys and values of `kv_width`.

        `packed`: queries, keys and values are parts of one tensor, whose gradient is put together from theirs.
        """
        n, features, kv = self.positions, self.positions * width, self.positions * kv_width
        pairs, scores = 2 * n * n * width, heads * n * n
        self._keep(width + heads)  # and the sums of each row of scores
        self._products((2 * pairs, 4 * pairs, 0))
        self._leaf(features)
        self._leaf(features)  # heads laid side by side again
        if packed:
            self._op(OpKind.ELEMENTWISE, INPUT, 6 * features)
        if self.fused:
            sums = heads * n
            self._op(OpKind.ATTENTION, FORWARD, 2 * features + 2 * kv + sums, flops=2 * pairs)
            self._op(OpKind.ATTENTION, INPUT, 4 * features + 4 * kv + sums, flops=5 * pairs)
            return
        grouped = kv_width < width
        moved = 2 * features + scores
        self._op(OpKind.ATTENTION, FORWARD, 2 * moved, flops=2 * pairs, kernels=2)
        self._op(OpKind.ATTENTION, INPUT, 4 * moved, flops=4 * pairs, kernels=4)
        # Queries and keys are scaled, and what a product takes is copied, as is what it gives.
        self._op(OpKind.ELEMENTWISE, FORWARD, 10 * features + 2 * kv, kernels=6)
        self._op(OpKind.ELEMENTWISE, FORWARD, 2 * scores)  # softmax
        if causal:
            self._op(OpKind.ELEMENTWISE, FORWARD, 2 * scores, n * n)
            made = (1 + 2 + 1 + ITEM) * n * n + 4 * ITEM
            self._op(OpKind.ELEMENTWISE, FORWARD, 0, nbytes=made, kernels=3)
        self._op(OpKind.ELEMENTWISE, INPUT, 3 * scores)
        self._op(OpKind.ELEMENTWISE, INPUT, 6 * features, kernels=3)
        if packed:
            self._op(OpKind.ELEMENTWISE, INPUT, 4 * features, kernels=2)
        else:
            self._op(OpKind.ELEMENTWISE, INPUT, 2 * features + 4 * kv, kernels=3)
        if grouped:
            self._op(OpKind.ELEMENTWISE, INPUT, 2 * (features + kv), kernels=2)

    def lookup(self, name: str, rows: int, width: int, *, of_samples: bool, kept: bool = False) -> None:
        """A table that is looked up at every position: by the tokens of samples, or by what all samples share."""
        self._keep(width if kept else 0)
        n, moved = self.positions, self.positions * (INDEX + ITEM * width)
        self.tensors.append(ParamTensor(name=f"{name}.weight", shape=(rows, width)))
        self._kept += n * INDEX if of_samples else 0
        self._leaf(n * width if of_samples else 0, kernels=1)
        for which in (FORWARD, WEIGHT):
            self._op(OpKind.EMBEDDING, which, 0, rows * width, nbytes=0 if of_samples else moved)
            self._passes[OpKind.EMBEDDING][which][1] += moved if of_samples else 0

    def add_shared(self, width: int, *, kept: bool = True) -> None:
        """What all samples share is added, and its gradient summed over them."""
        features = self.positions * width
        self._keep(width if kept else 0)
        self._leaf(features)
        self._op(OpKind.ELEMENTWISE, FORWARD, 2 * features, features)
        self._op(OpKind.ELEMENTWISE, WEIGHT, features, features)

    def indices(self, touched: int) -> None:
        """Indices of the positions are made; `touched` of them are read or written."""
        self._leaf(0, kernels=1)
        self._op(OpKind.ELEMENTWISE, FORWARD, 0, nbytes=touched * INDEX)

    def _products(self, flops: Sequence[int]) -> None:
        for which, amount in enumerate(flops):
            self._flops[which] += amount

    def _keep(self, width: int) -> None:
        """So many numbers at each position are kept until the backward pass."""
        self._kept += ITEM * self.positions * width

    def _leaf(self, written: int, kernels: int = 1) -> None:
        """An op of forward as `Block.bytes_touched` and `Block.kernels` count them."""
        self._written += ITEM * written
        self._kernels += kernels

    def _op(
        self, kind: OpKind, which: int, numel: int, fixed: int = 0, *, flops: int = 0, nbytes: int = 0, kernels: int = 1
    ) -> None:
        """Numbers that a pass touches: `numel` of the sample, `fixed` and `nbytes` bytes whatever the batch."""
        amounts = self._passes.setdefault(kind, [[0] * 4 for _ in range(3)])[which]
        for i, more in enumerate((flops, ITEM * numel, ITEM * fixed + nbytes, kernels)):
            amounts[i] += more


def _pass_work(flops: int, sample_nbytes: int, fixed_nbytes: int, kernels: int) -> PassWork:
    return PassWork(flops=flops, sample_nbytes=sample_nbytes, fixed_nbytes=fixed_nbytes, kernels=kernels)
