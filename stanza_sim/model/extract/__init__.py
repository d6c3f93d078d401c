"""From a torch module to a `ModelProfile`, and from a profile to the blocks of a real module.

With `stanza_sim.execute`, this package is the only one that imports torch.
"""

from __future__ import annotations

import torch
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.chain import chain_of
from stanza_sim.model.extract.factory import USER_ERRORS, Kwargs, build, build_module, describe, load_factory
from stanza_sim.model.extract.measure import vocabulary_of
from stanza_sim.model.extract.record import outputs_of, work_of
from stanza_sim.model.extract.split import SplitBlock, block_works, replace_dropout, split
from stanza_sim.model.labels import usual_labels
from stanza_sim.model.module_work import ModuleWork
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, ParamTensor, with_boundary

FP32_UNDER_AUTOCAST = "fp32_under_autocast"

__all__ = [
    "SplitBlock",
    "build",
    "build_module",
    "extract",
    "load_factory",
    "module_work",
    "replace_dropout",
    "split",
]


def extract(
    factory_path: str,
    *,
    name: str,
    input_shape: tuple[int, ...],
    factory_kwargs: Kwargs = (),
    boundary: int | str | None = None,
) -> ModelProfile:
    """Return the profile of the module that the factory at `factory_path` builds.

    `input_shape` is one sample's, without the batch. `boundary` is the first FC block, by name or index;
    without it the FC part is the longest run of last blocks whose heavy ops are all linear layers on one
    vector per sample. Pooling, flatten and dropout before the first of these belong to the CONV part. A
    model of such layers only has boundary 0: no CONV part.

    FLOPs, bytes and kernels are per sample, as told in `extract.measure`. A block with a parameter that has a true
    attribute `fp32_under_autocast` is one that the module computes outside autocast. Raises `InputError` for all that
    `load_factory` and `chain_of` reject, and for an unknown boundary.
    """
    where = f"model {name}"
    if not input_shape or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in input_shape):
        raise InputError(
            f"input_shape {list(input_shape)} is not a list of positive integers",
            where=where,
            hint="it is the shape of one sample without the batch, as in [3, 224, 224]",
        )
    kwargs = tuple(dict(factory_kwargs).items())
    module = build(factory_path, kwargs, device="meta")
    itemsize = _itemsize(module, where)
    parameters = dict(module.named_parameters())
    chain = chain_of(module, input_shape, where)
    works = block_works(module, chain, input_shape)
    vocabulary, output = vocabulary_of(module, chain.trace), chain.blocks[-1].output_shape
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    first_fc = len(chain.blocks)
    while first_fc > 0 and chain.blocks[first_fc - 1].fully_connected:
        first_fc -= 1
    profile = ModelProfile(
        name=name,
        blocks=tuple(
            Block(
                name=block.name,
                kind=BlockKind.CONV if i < first_fc else BlockKind.FC,
                tensors=tuple(ParamTensor(name=n, shape=shapes[n]) for n in block.parameters),
                tied=tuple(ParamTensor(name=n, shape=shapes[n]) for n in block.tied),
                forward_flops=block.work.forward_flops,
                backward_input_flops=block.work.backward_input_flops,
                backward_weight_flops=block.work.backward_weight_flops,
                bytes_touched=block.work.bytes_touched,
                kernels=block.work.kernels,
                output_shape=block.output_shape,
                work=works[i],
                fp32=any(
                    getattr(parameters[n], FP32_UNDER_AUTOCAST, False) for n in (*block.parameters, *block.tied)
                ),
            )
            for i, block in enumerate(chain.blocks)
        ),
        boundary=first_fc,
        input_shape=tuple(input_shape),
        num_classes=usual_labels(output).classes(output),
        itemsize=itemsize,
        factory=factory_path,
        factory_kwargs=kwargs,
        vocabulary=vocabulary,
    )
    return profile if boundary is None else with_boundary(profile, boundary)


def module_work(factory_path: str, input_shape: tuple[int, ...], factory_kwargs: Kwargs = ()) -> ModuleWork:
    """Return the work of the module that a factory builds, whether or not it is a chain of blocks.

    Residual branches that are dropped by chance (torchvision's `StochasticDepth`) are computed always. Raises
    `InputError` if the module cannot be built, or run on samples of `input_shape` on torch's meta device.
    """
    module = build(factory_path, factory_kwargs, device="meta").to("meta").train()
    for part in module.modules():
        if type(part).__name__ == "StochasticDepth":
            part.__dict__["p"] = 0.0
    outputs: list[int] = []

    def call(samples: torch.Tensor) -> object:
        returned: object = module(samples)
        outputs[:] = [t.numel() // len(samples) for t in outputs_of(returned)]
        return returned

    try:
        work = work_of(call, input_shape, list(module.parameters()), input_gradient=False)
    except USER_ERRORS as error:
        shape = " x ".join(map(str, input_shape))
        what = f"{type(module).__name__} cannot be recorded on samples of {shape}: {describe(error)}"
        raise InputError(what, where=f"model factory {factory_path!r}") from error
    numel = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return ModuleWork(numel=numel, output_numel=outputs[0] if outputs else 0, work=work)


def _itemsize(module: nn.Module, where: str) -> int:
    """Return the bytes of one element of a trainable parameter; they must all be of one type."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    lazy = [n for n, p in module.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(f"{lazy[0]} has no shape yet", where=where, hint="give lazy layers their input size")
    kinds = {p.dtype for p in trainable}
    if len(kinds) > 1:
        raise InputError(f"trainable parameters of several types: {', '.join(sorted(map(str, kinds)))}", where=where)
    return trainable[0].element_size() if trainable else 4
