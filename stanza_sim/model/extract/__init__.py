"""From a torch module to a `ModelProfile`, and from a profile to the blocks of a real module.

With `stanza_sim.execute`, this package is the only one that imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.chain import ChainBlock, chain_of
from stanza_sim.model.extract.factory import USER_ERRORS, Kwargs, build, build_module, describe, load_factory
from stanza_sim.model.extract.inputs import Input
from stanza_sim.model.extract.record import outputs_of, work_of
from stanza_sim.model.extract.split import SplitBlock, block_works, replace_dropout, split
from stanza_sim.model.extract.trace import vocabulary_of
from stanza_sim.model.labels import Labels, usual_labels
from stanza_sim.model.module_work import ModuleWork
from stanza_sim.model.profile import Block, BlockKind, ModelInput, ModelProfile, ParamTensor, with_boundary
from stanza_sim.model.shipped import InputShape

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
    input_shape: InputShape,
    factory_kwargs: Kwargs = (),
    boundary: int | str | None = None,
) -> ModelProfile:
    """Return the profile of the module that the factory at `factory_path` builds.

    `input_shape` is one sample's, without the batch; of a module that takes several tensors it has the shape of each by
    the name of forward's argument. `boundary` is the first FC block, by name or index;
    without it the FC part is the longest run of last blocks whose heavy ops are all linear layers on one
    vector per sample. Pooling, flatten and dropout before the first of these belong to the CONV part. A
    model of such layers only has boundary 0: no CONV part.

    FLOPs, bytes and kernels are per sample, as told in `extract.measure`; what `torch.utils.checkpoint` computes again
    counts for the backward passes. A block with a parameter that has a true
    attribute `fp32_under_autocast` is one that the module computes outside autocast. Raises `InputError` for all that
    `load_factory` and `chain_of` reject, and for an unknown boundary.
    """
    where = f"model {name}"
    inputs = _inputs(input_shape, where)
    kwargs = tuple(dict(factory_kwargs).items())
    module = build(factory_path, kwargs, device="meta")
    itemsize = _itemsize(module, where)
    parameters = dict(module.named_parameters())
    chain = chain_of(module, inputs, where)
    works = block_works(module, chain)
    first_fc = _first_fc(chain.blocks)
    output = chain.blocks[-1].output_shape
    labels = _labels(chain.blocks[-1])
    first, *more = (
        ModelInput(name=i.name, shape=i.shape, vocabulary=vocabulary_of(module, chain.trace, i))
        for i in chain.trace.inputs
    )
    profile = ModelProfile(
        name=name,
        blocks=tuple(
            Block(
                name=block.name,
                kind=BlockKind.CONV if i < first_fc else BlockKind.FC,
                tensors=tuple(
                    ParamTensor(name=n, shape=tuple(parameters[n].shape), lookups=chain.lookups.get(n, 0))
                    for n in block.parameters
                ),
                forward_flops=block.work.forward_flops,
                backward_input_flops=block.work.backward_input_flops + works[i].again[0],
                backward_weight_flops=block.work.backward_weight_flops + works[i].again[1],
                bytes_touched=block.work.bytes_touched,
                kernels=block.work.kernels,
                output_shape=block.output_shape,
                work=works[i].work,
                fp32=any(getattr(parameters[n], FP32_UNDER_AUTOCAST, False) for n in (*block.parameters, *block.tied)),
                tied=tuple(ParamTensor(name=n, shape=tuple(parameters[n].shape)) for n in block.tied),
                again_flops=sum(works[i].again),
            )
            for i, block in enumerate(chain.blocks)
        ),
        boundary=first_fc,
        input_shape=first.shape,
        num_classes=labels.classes(output),
        itemsize=itemsize,
        vocabulary=first.vocabulary,
        stated_labels=None if labels == usual_labels(output) else labels,
        more_inputs=tuple(more),
        output=chain.trace.output,
        factory=factory_path,
        factory_kwargs=kwargs,
    )
    return profile if boundary is None else with_boundary(profile, boundary)


def _inputs(given: InputShape, where: str) -> tuple[Input, ...]:
    """Return the inputs of the shapes that are given; the first is without a name if only its shape is."""
    shapes = dict(given) if isinstance(given, Mapping) else {"": given}
    for name, shape in shapes.items():
        if not shape or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in shape):
            raise InputError(
                f"input_shape {list(shape)}{f' of {name}' if name else ''} is not a list of positive integers",
                where=where,
                hint="it is the shape of one sample without the batch, as in [3, 224, 224]",
            )
    if not shapes:
        raise InputError("input_shape {} is not a list of positive integers", where=where, hint="as in [3, 224, 224]")
    return tuple(Input(name=name, shape=tuple(shape)) for name, shape in shapes.items())


def _first_fc(blocks: Sequence[ChainBlock]) -> int:
    """Return the index of the first FC block: the longest run of last blocks of linear layers on one vector per sample.

    If there is no such block, and the model is a tower or has scores for each position, it is the longest run of last
    blocks of linear layers after all towers.
    """
    first = _before_run([b.fully_connected for b in blocks])
    if first == len(blocks) and (len(blocks[-1].output_shape) > 1 or any(b.layer for b in blocks)):
        first = _before_run([b.linear and b.layer is None for b in blocks])
    return first


def _before_run(flags: Sequence[bool]) -> int:
    """Return the index at which the run of true ones at the end of `flags` begins."""
    return max((i + 1 for i, flag in enumerate(flags) if not flag), default=0)


def _labels(last: ChainBlock) -> Labels:
    """Return the labels of a model that ends in `last`: classes come first after a convolution, last otherwise."""
    shape = last.output_shape
    return Labels(shape=shape[1:], class_axis=0) if last.convolves and len(shape) > 1 else Labels(shape=shape[:-1])


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
        work = work_of(call, [(input_shape, torch.float32)], list(module.parameters()), input_gradient=False)
    except USER_ERRORS as error:
        shape = " x ".join(map(str, input_shape))
        what = f"{type(module).__name__} cannot be recorded on samples of {shape}: {describe(error)}"
        raise InputError(what, where=f"model factory {factory_path!r}") from error
    numel = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return ModuleWork(numel=numel, output_numel=outputs[0] if outputs else 0, work=work)


def _itemsize(module: nn.Module, where: str) -> int:
    """Return the bytes of one element of a trainable parameter; they must all be of one type, float32 or float64."""
    lazy = [n for n, p in module.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(f"{lazy[0]} has no shape yet", where=where, hint="give lazy layers their input size")
    first = {p.dtype: n for n, p in reversed(list(module.named_parameters())) if p.requires_grad}
    words = ", ".join(f"{str(t).removeprefix('torch.')} ({name})" for t, name in reversed(first.items()))
    if len(first) > 1:
        raise InputError(
            f"trainable parameters of several types: {words}",
            where=where,
            hint="bring all to one type, with `.float()` on what the factory returns",
        )
    for dtype in first:
        if dtype in (torch.float16, torch.bfloat16):
            short = "fp16" if dtype == torch.float16 else "bf16"
            raise InputError(
                f"parameters are {words}",
                where=where,
                hint="parameters, gradients and messages are fp32: let the factory return a float32 module (leave out "
                f".{'half' if short == 'fp16' else 'bfloat16'}()) and set precision: {short}, which computes in "
                f"{short} under autocast",
            )
        if not dtype.is_floating_point:
            raise InputError(f"parameters are {words}", where=where, hint="train parameters of float32")
    return next((p.element_size() for p in module.parameters() if p.requires_grad), 4)
