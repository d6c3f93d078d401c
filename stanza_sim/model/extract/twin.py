"""A copy of a module that takes no memory."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.factory import USER_ERRORS, describe


def meta_twin(module: nn.Module, where: str) -> nn.Module:
    """Copy `module` with all its tensors on the meta device, shared ones still shared, in training mode.

    Raises `InputError`, with `where` as its place, if it cannot be copied.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor):
                memo[id(value)] = torch.empty_like(value, device="meta", requires_grad=False)
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    try:
        twin = deepcopy(module, memo)
    except USER_ERRORS as error:
        raise InputError(f"{type(module).__name__} cannot be copied: {describe(error)}", where=where) from error
    for part in twin.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False  # a shortcut of evaluation that looks at values of masks
    return twin.train()
