"""The contents of one rank's messages and collectives: what is sent, and where what arrives goes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stanza_sim.execute.train.flat import FlatBundle, let_go, make_room
from stanza_sim.execute.train.values import Generation, RankValues
from stanza_sim.schedule import Collective, CollectiveKind, Keep, Transfer, Value, ValueKind, Wire
from stanza_sim.schedule.progress import WINDOW


class Reducer(Protocol):
    """Carries out a collective on tensors."""

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """Carry out `op` from `source` to `output`, which may be one tensor."""
        ...


class Messages:
    """What moves between the `values` of this rank and those of others."""

    def __init__(self, values: RankValues) -> None:
        self._values, self._schedule, self._rank = values, values.schedule, values.rank

    # ---- transfers -----------------------------------------------------------------------------------------------

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """The message of `op` to `dst`: a flat, contiguous tensor that stays untouched until it has been sent."""
        g = iteration % WINDOW
        value = op.values[0]
        if value.kind.on_bundle:
            return self._of_bundle(op, value, dst, g)
        held, values = self._values, self._values.generations[g]
        pieces = []
        for v in op.values:
            match v.kind:
                case ValueKind.ACT:
                    output = held.sliced(op, dst, held.output(v.name, op.microbatch, values))
                    pieces.append(output.to(held.wire_dtype(op)))
                case ValueKind.ACTGRAD:
                    pieces.append(held.rows_for(dst, v.name, op, values).to(held.wire_dtype(op)))
                case ValueKind.FACTORS:
                    pieces.append(values.packed[v.name])
                case _:
                    pieces.append(held.labels_to_send(op.microbatch, iteration, values))
        flats = [p.contiguous().view(-1).view(torch.uint8) for p in pieces]
        message = flats[0] if len(flats) == 1 else torch.cat(flats)
        values.sent[op.name, dst] = message
        return message

    def _of_bundle(self, op: Transfer, value: Value, dst: int, g: int) -> Tensor:
        """What of a bundle is sent to `dst`."""
        flat = self._values.bundles[value.name]
        lo, hi = self._schedule.value_slice(op, value, self._rank, dst) or (0, flat.bundle.numel)
        match value.kind:
            case ValueKind.GRAD | ValueKind.PART:
                return self._rounded(op, flat.gradients[g][lo:hi], dst, g)
            case ValueKind.SUM:
                return self._rounded(op, flat.partial(g)[lo:hi], dst, g)
            case ValueKind.COPY:
                return self._whole(flat)[lo:hi]
            case _:
                if flat.own is None:
                    raise RuntimeError(f"rank {self._rank} does not own {value.name}")
                return flat.own

    def _rounded(self, op: Transfer, gradient: Tensor, dst: int, g: int) -> Tensor:
        """A gradient in the type in which it travels, kept until it has been sent."""
        message = gradient.to(self._values.wire_dtype(op))
        if message is not gradient:
            self._values.generations[g].sent[op.name, dst] = message
        return message

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Where the message of `op` from `src` is to be received; parameters go straight into the module."""
        g = iteration % WINDOW
        value = op.values[0]
        if value.kind.on_bundle:
            flat = self._values.bundles[value.name]
            lo, hi = self._schedule.value_slice(op, value, src, self._rank) or (0, flat.bundle.numel)
            if value.kind in (ValueKind.PARAM, ValueKind.COPY):
                if value.kind is ValueKind.COPY and flat.own is not None:
                    return self._echo(flat)[lo:hi]
                return self._whole(flat)[lo:hi]
            into = flat.parts[g] if value.kind is ValueKind.PART else flat.contributions[g]
            if src not in into:
                into[src] = flat.zeros(hi - lo, self._values.wire_dtype(op))
            return into[src]
        received = self._values.generations[g].received
        if (op.name, src) not in received:
            nbytes = self._schedule.message_bytes(op, src, self._rank)
            received[op.name, src] = torch.empty(nbytes, dtype=torch.uint8, device=self._values.device)
        return received[op.name, src]

    def landed(self, op: Transfer, iteration: int, src: int) -> bool:
        """Do what is left to do with a message that has come; whether there was anything.

        A copy of all parameters of a bundle, some of which this rank owns and may be sending to others still, is put
        in place but for those: they come back as they were.
        """
        value = op.values[0]
        if value.kind is not ValueKind.COPY or (flat := self._values.bundles[value.name]).own is None:
            return False
        lo, hi = self._schedule.value_slice(op, value, src, self._rank) or (0, flat.bundle.numel)
        whole, echo = self._whole(flat), self._echo(flat)
        for a, b in ((lo, min(hi, flat.lo)), (max(lo, flat.hi), hi)):
            if a < b:
                whole[a:b].copy_(echo[a:b])
        return True

    def _echo(self, flat: FlatBundle) -> Tensor:
        """Where copies of parameters are received of which this rank owns some."""
        if flat.echo is None:
            flat.echo = torch.empty_like(self._whole(flat))
        return flat.echo

    def _whole(self, flat: FlatBundle) -> Tensor:
        """All parameters of a bundle that this rank must hold."""
        if flat.whole is None:
            raise RuntimeError(f"rank {self._rank} does not hold {flat.bundle.name}")
        return flat.whole

    # ---- collectives ---------------------------------------------------------------------------------------------

    def collective(self, op: Collective, iteration: int, reducer: Reducer) -> None:
        """Carry out the collective `op` through `reducer`."""
        g = iteration % WINDOW
        if op.value.kind is ValueKind.NORM:
            values = self._values.generations[g]
            values.norm = self._values.squared_norm(values).to(self._values.dtype).view(1)
            reducer.collective(op, values.norm, values.norm)
            return
        if not op.value.kind.on_bundle:
            self._exchange_features(op, self._values.generations[g], reducer)
            return
        flat = self._values.bundles[op.value.name]
        match op.kind:
            case CollectiveKind.ALL_REDUCE if op.value.kind is ValueKind.SUM:
                slice_ = flat.sums[g][: flat.hi - flat.lo]
                self._sum(op, slice_, slice_, reducer)
            case CollectiveKind.ALL_REDUCE | CollectiveKind.REDUCE_SCATTER:
                total = flat.gradients[g] if op.kind is CollectiveKind.ALL_REDUCE else flat.sums[g]
                self._sum(op, total, flat.gradients[g], reducer)
            case CollectiveKind.ALL_GATHER:
                if flat.own_padded is None:
                    raise RuntimeError(f"rank {self._rank} does not own {op.value.name}")
                # What a graph has saved of the whole is what is gathered again: `data` does not say that it is written.
                whole = self._whole(flat).data
                reducer.collective(op, whole, flat.own_padded if make_room(whole) else flat.own_padded.clone())
            case CollectiveKind.BROADCAST:
                reducer.collective(op, self._whole(flat), self._whole(flat))

    def done_with(self, op: Collective, iteration: int) -> None:
        """Let go of what nobody needs once `op` is over: gradients that are whole for a while, and have been summed."""
        if op.kind is CollectiveKind.REDUCE_SCATTER:
            flat = self._values.bundles[op.value.name]
            if flat.bundle.keep is not Keep.ALL:
                let_go(flat.gradients[iteration % WINDOW])

    def _sum(self, op: Collective, total: Tensor, gradient: Tensor, reducer: Reducer) -> None:
        """Sum gradients of all ranks in the type in which they travel.

        In fp16 they are divided by the number of ranks that have any and the sum is multiplied by it, as DDP does in
        `fp16_compress_hook`: a sum is then no larger than what it is of.
        """
        if op.wire is Wire.NATIVE:
            reducer.collective(op, total, gradient)
            return
        most = len(self._schedule.data_ranks) if op.wire is Wire.FP16 else 1
        source = (gradient / most).to(self._values.wire_dtype(op))
        output = source if op.kind is CollectiveKind.ALL_REDUCE else source.new_zeros(len(total))
        reducer.collective(op, output, source)
        total.copy_(output).mul_(most)

    def _exchange_features(self, op: Collective, values: Generation, reducer: Reducer) -> None:
        """Sum partial sums of activations or their gradients, or gather the logsums of slices."""
        spot = op.value.name, op.microbatch
        if op.kind is CollectiveKind.ALL_GATHER:
            mine = values.logsums[spot].contiguous()
            every = mine.new_empty(len(self._schedule.group(op.ranks)) * mine.numel())
            reducer.collective(op, every, mine.view(-1))
            values.logsums[spot] = every.view(-1, *mine.shape).logsumexp(0)
            return
        held = values.outputs if op.value.kind is ValueKind.ACT else values.gradients
        wire = self._values.wire_dtype(op)
        total = held[spot].to(wire, copy=True, memory_format=torch.contiguous_format)
        flat = total.view(-1)
        reducer.collective(op, flat, flat)
        if op.value.kind is ValueKind.ACT:
            values.sums[spot] = total
        else:
            values.gradients[spot] = total
