"""Which server has which parameters: whole tensors, slices of blocks, or pieces of tensors, by the rules of systems.

Every function returns bundles in the order in which their gradients are there: the blocks' last first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import Block, ParamTensor
from stanza_sim.schedule.ops import Bundle, Layout
from stanza_sim.strategies._shared.builder import Builder, balance

BIGARRAY_BOUND = 1_000_000
"""Elements from which on MXNet cuts an array over all servers: MXNET_KVSTORE_BIGARRAY_BOUND."""
PARTITION_BYTES = 4_096_000
"""Most bytes of one piece in BytePS: BYTEPS_PARTITION_BYTES."""
SLICE_PARAMETERS = 40_000
"""Most parameters of one slice of P3 in MXNet: MXNET_KVSTORE_SLICE_THRESHOLD."""
PIECES_LIMIT = 100_000
"""A model is cut in no more pieces than this: each is some ops of a schedule."""
_HASH = 9973


def by_blocks(b: Builder, blocks: Sequence[Block], servers: str, *, cut: bool) -> list[Bundle]:
    """A bundle per block: cut evenly over all servers, or one for each server that has some of its tensors whole.

    Whole tensors are balanced by bytes over the servers.
    """
    k = len(b.groups[servers].ranks)
    bundles: list[Bundle] = []
    where = balance([t for block in blocks for t in block.tensors], k)
    named = {block.name for block in blocks if block.tensors}  # a part must not take the name of another block's bundle
    for block in reversed(blocks):
        if not block.tensors:
            continue
        if cut and k > 1:
            bundles.append(b.bundle(block.name, block.tensors, servers, Layout.SHARDED))
            continue
        for j in sorted({where[t.name] for t in block.tensors}):
            mine = [t for t in block.tensors if where[t.name] == j]
            whole = len(mine) == len(block.tensors)
            name = block.name if whole else b.free_name(f"{block.name}.{j}", named)
            bundles.append(b.bundle(name, mine, _owner(b, servers, j)))
    return bundles


def by_mxnet(b: Builder, blocks: Sequence[Block], servers: str, *, bigarray_bound: int) -> list[Bundle]:
    """A bundle per tensor, as MXNet's kvstore `dist_sync` has it, whose key is the tensor's place in the model.

    Tensors of fewer elements than `bigarray_bound` go to server (key * 9973) % servers, others are cut evenly over all.
    Source: apache/mxnet src/kvstore/kvstore_dist.h, `EncodeDefaultKey`. It rounds the bounds of slices to the nearest
    element; here all slices but the last have one size, so that sizes differ by fewer elements than there are servers.
    """
    k = len(b.groups[servers].ranks)
    bundles: list[Bundle] = []
    for key, t in _last_block_first(blocks):
        if t.numel >= bigarray_bound and k > 1:
            bundles.append(b.bundle(t.name, [t], servers, Layout.SHARDED))
        else:
            bundles.append(b.bundle(t.name, [t], _owner(b, servers, key * _HASH % k)))
    return bundles


def by_byteps(b: Builder, blocks: Sequence[Block], servers: str, *, partition_bytes: int) -> list[Bundle]:
    """Pieces of tensors of at most `partition_bytes` bytes, each at one server, as BytePS has it.

    Piece p of tensor t has the key t * 2^16 + p and goes to server djb2(key) % servers, where djb2 is taken of the
    decimal digits. Source: bytedance/byteps byteps/common/global.cc, `EncodeDefaultKey`, `Hash_DJB2`, and
    byteps/common/operations.cc, `InitTensor`. There tensors are numbered in the order in which they are declared, here
    in that of the model; it also rounds the size of pieces to pages of memory.
    """
    k = len(b.groups[servers].ranks)
    most = max(1, partition_bytes // b.model.itemsize)
    _require_few(b, blocks, most, "partition")
    bundles: list[Bundle] = []
    for key, t in _last_block_first(blocks):
        for p, part in enumerate(_pieces(t, most)):
            bundles.append(b.piece(_piece_name(t, p, part), t, part, _owner(b, servers, djb2((key << 16) + p) % k)))
    return bundles


def by_slices(b: Builder, blocks: Sequence[Block], servers: str, *, slice_parameters: int) -> list[Bundle]:
    """Slices of tensors of at most `slice_parameters` elements, to the servers in turn, as P3 has it.

    Sources: Jayarajan et al., Priority-based Parameter Propagation, MLSys 2019; apache/mxnet
    src/kvstore/p3store_dist.h, `EncodeDefaultKey`.
    """
    _require_few(b, blocks, slice_parameters, "slice")
    k = len(b.groups[servers].ranks)
    turn = count()
    slices = [
        (t, [(part, next(turn) % k) for part in _pieces(t, slice_parameters)])
        for block in blocks
        for t in block.tensors
    ]
    bundles: list[Bundle] = []
    for key, _ in _last_block_first(blocks):
        t, parts = slices[key]
        for p, (part, j) in enumerate(parts):
            bundles.append(b.piece(_piece_name(t, p, part), t, part, _owner(b, servers, j)))
    return bundles


def djb2(key: int) -> int:
    """Bernstein's hash of the decimal digits of `key`, in 64 bits: hash(i) = hash(i - 1) * 33 + digit."""
    value = 5381
    for digit in str(key).encode():
        value = (value * 33 + digit) % 2**64
    return value


def _last_block_first(blocks: Sequence[Block]) -> Iterator[tuple[int, ParamTensor]]:
    """Yield every tensor with its place in the model: the last block's first, but in order within a block."""
    end = sum(len(block.tensors) for block in blocks)
    for block in reversed(blocks):
        end -= len(block.tensors)
        yield from enumerate(block.tensors, end)


def _pieces(t: ParamTensor, most: int) -> list[tuple[int, int]]:
    """Elements [lo, hi) of each piece of `t`, all of `most` but the last."""
    return [(lo, min(lo + most, t.numel)) for lo in range(0, t.numel, most)]


def _require_few(b: Builder, blocks: Sequence[Block], most: int, key: str) -> None:
    """Raise `InputError`, naming the setting `key`, where pieces of at most `most` elements would be too many."""
    sizes = [t.numel for block in blocks for t in block.tensors]
    pieces = sum(-(-numel // most) for numel in sizes)
    if pieces > PIECES_LIMIT:
        enough = -(-sum(sizes) // max(1, PIECES_LIMIT - len(sizes)))
        hint = f"use {enough * b.model.itemsize}B" if key == "partition" else f"use {enough}"
        raise InputError(
            f"model {b.model.name} would be cut in {pieces:,} pieces, and {PIECES_LIMIT:,} are the most",
            where=f"{b.name}: {key}",
            hint=f"{hint} or more",
        )


def _piece_name(t: ParamTensor, p: int, part: tuple[int, int]) -> str:
    return t.name if part == (0, t.numel) else f"{t.name}/{p}"


def _owner(b: Builder, servers: str, j: int) -> str:
    """The group of server `j` alone."""
    ranks = b.groups[servers].ranks
    return servers if len(ranks) == 1 else b.group(f"{servers}.{j}", [ranks[j]])
