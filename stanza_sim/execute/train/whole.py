"""All that ranks train, brought together at rank 0 and given out again: parameters, optimiser state, buffers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.exchange import gather, receive_object, send_object
from stanza_sim.execute.train.build import Holdings, put_whole, state_of
from stanza_sim.execute.train.flat import FlatBundle, dtype_of
from stanza_sim.execute.train.slices import HeldBlock, put_local, take_local
from stanza_sim.model.extract import build_module
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Layout, Schedule

_Slices = dict[str, tuple[int, Tensor]]
"""Of each bundle, elements from the first one on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What all ranks have together, on the CPU.

    `parameters` are by tensor, and so is each vector of the optimiser in `moments`. `buffers[r]` are the buffers and
    frozen parameters of the blocks that rank r computes, by qualified name.
    """

    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    buffers: Sequence[Mapping[str, Tensor]]

    def state(self) -> dict[str, Tensor]:
        """Parameters, and buffers as the first rank that computes their block has them: batch-norm statistics too."""
        found: dict[str, Tensor] = {}
        for buffers in reversed(self.buffers):
            found |= buffers
        return {**found, **self.parameters}

    def module(self, model: ModelProfile) -> nn.Module:
        """The user's own module, in which all of it is."""
        made = build_module(model, device="cpu")
        own = {
            **dict(made.named_parameters(remove_duplicate=False)),
            **dict(made.named_buffers(remove_duplicate=False)),
        }
        with torch.no_grad():
            for name, values in self.state().items():
                own[name].copy_(values.view(own[name].shape))
        return made


class Ranks:
    """Who holds what of a schedule, and what this rank does."""

    def __init__(
        self,
        schedule: Schedule,
        model: ModelProfile,
        rank: int,
        held: Holdings,
        blocks: Sequence[HeldBlock],
        bundles: Mapping[str, FlatBundle],
    ) -> None:
        self.schedule, self.model, self.rank = schedule, model, rank
        self.held, self.blocks, self.bundles = held, blocks, bundles
        self._shapes = {t.name: t.shape for b in model.blocks for t in b.tensors}

    # ---- to rank 0 -------------------------------------------------------------------------------------------------

    def collect(self, *, everything: bool) -> Whole | None:
        """What all ranks have, at rank 0, None elsewhere; every rank calls this.

        Unless `everything` is wanted, there is no optimiser state, and buffers come from one rank that has them.
        """
        slices: dict[str, _Slices] = {"": {}}
        for name, flat in self.bundles.items():
            owners = self.schedule.owners(flat.bundle)
            if flat.own is None or (flat.bundle.layout is Layout.REPLICATED and owners[0] != self.rank):
                continue
            slices[""][name] = flat.lo, flat.own.cpu()
            for moment, vector in flat.state.items() if everything else ():
                slices.setdefault(moment, {})[name] = flat.lo, vector.cpu()
        buffers: dict[str, Tensor] = {}
        for block in self.blocks:
            if everything or self.held.computes[block.name][0] == self.rank:
                found = state_of(block.module, block.trained)
                buffers |= {name: t.detach().cpu() for name, t in found.items()}
        collected = gather((slices, buffers), self.rank, self.schedule.world_size)
        if collected is None:
            return None
        vectors = dict.fromkeys(name for theirs, _ in collected for name in theirs)
        tensors = {name: self._joined([theirs.get(name, {}) for theirs, _ in collected]) for name in vectors}
        parameters = tensors.pop("")
        return Whole(parameters=parameters, moments=tensors, buffers=[theirs for _, theirs in collected])

    def _joined(self, by_rank: Sequence[_Slices]) -> dict[str, Tensor]:
        """The tensors of which ranks have these slices of bundles."""
        wholes: dict[tuple[str, ...], Tensor] = {}
        for bundle in self.schedule.bundles:
            if bundle.tensors not in wholes:
                numel = sum(prod(self._shapes[t]) for t in bundle.tensors)
                wholes[bundle.tensors] = torch.empty(numel, dtype=dtype_of(self.schedule.itemsize))
            whole = wholes[bundle.tensors]
            for r, theirs in enumerate(by_rank):
                if bundle.name not in theirs:
                    continue
                lo, values = theirs[bundle.name]
                if bundle.layout is Layout.FEATURES:
                    put_local(self.schedule, self.model, bundle, r, whole, values)
                else:
                    whole[bundle.start + lo : bundle.start + lo + len(values)] = values
        found: dict[str, Tensor] = {}
        for tensors, whole in wholes.items():
            cut = torch.split(whole, [prod(self._shapes[t]) for t in tensors])
            found |= {t: values.view(self._shapes[t]) for t, values in zip(tensors, cut, strict=True)}
        return found

    # ---- from rank 0 -----------------------------------------------------------------------------------------------

    def give_out(self, whole: Whole | None) -> None:
        """Put at every rank what it holds of the `whole` that rank 0 has; every rank calls this."""
        for bundle in self.schedule.bundles:
            owners, flat = self.schedule.owners(bundle), self.bundles.get(bundle.name)
            holders = {*self.held.wholes[bundle.name], *owners}
            values = self._given(bundle, holders, None if whole is None else whole.parameters)
            if values is not None and flat is not None:
                put_whole(flat, values)
            moments = whole.moments if whole is not None else {} if flat is None else flat.state
            for name in sorted(moments):
                values = self._given(bundle, owners, None if whole is None else whole.moments[name])
                if values is not None and flat is not None:
                    flat.state[name].copy_(values[flat.lo : flat.hi])
        buffers: Mapping[str, Tensor]
        if whole is not None:
            for r in range(1, self.schedule.world_size):
                send_object(dict(whole.buffers[r]), r)
            buffers = whole.buffers[0]
        else:
            buffers = receive_object(0)  # type: ignore[assignment]
        for block in self.blocks:
            for name, tensor in state_of(block.module, block.trained).items():
                if name not in buffers or buffers[name].numel() != tensor.numel():
                    raise InputError(f"what is resumed has no buffer {name} of rank {self.rank}", where="--resume")
                with torch.no_grad():
                    tensor.copy_(buffers[name].view(tensor.shape))

    def _given(self, bundle: Bundle, ranks: Collection[int], tensors: Mapping[str, Tensor] | None) -> Tensor | None:
        """What this rank holds of the vector of `bundle` that rank 0 makes of `tensors`; None if not of `ranks`."""
        mine = self.rank in ranks
        if tensors is None:
            if not mine:
                return None
            flat = self.bundles[bundle.name]
            values = torch.empty(flat.numel, dtype=flat.dtype)
            dist.recv(values, 0)
            return values
        vector = torch.cat([tensors[t].reshape(-1) for t in bundle.tensors])
        vector = vector[bundle.start : bundle.start + bundle.numel]
        for r in sorted({*ranks} - {0}):
            dist.send(take_local(self.schedule, self.model, bundle, r, vector), r)
        return take_local(self.schedule, self.model, bundle, 0, vector) if mine else None
