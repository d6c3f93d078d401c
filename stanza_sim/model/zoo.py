"""The models that work without torch: tables that `python -m stanza_sim.model.extract --write-zoo` wrote, and language
models that are computed.

`load_model` also takes a factory's import path, and then needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache

from stanza_sim.base.errors import InputError
from stanza_sim.model.language import PRESETS, language_model
from stanza_sim.model.profile import ModelProfile, OpWork, PassWork, with_boundary
from stanza_sim.model.profile_json import from_json
from stanza_sim.model.shipped import DATA, SOURCES, WIDE, InputShape, Scalar, Source, names

__all__ = ["PRESETS", "SOURCES", "WIDE", "available", "get", "load_model", "names", "with_classes"]


def available() -> tuple[str, ...]:
    """Return the names of all models that need no torch."""
    return (*SOURCES, *WIDE, *PRESETS)


@cache
def get(name: str) -> ModelProfile:
    """Return the shipped profile called `name`; raise `InputError` if there is none."""
    if name in PRESETS:
        return language_model(name)
    if name not in (shipped := available()):
        near = get_close_matches(name, shipped)
        known = f"the shipped models are {', '.join(shipped)}; another is given as package.module:callable"
        raise InputError(f"unknown model {name!r}", hint=f"did you mean {near[0]!r}? {known}" if near else known)
    table = DATA.joinpath(f"{name}.json")
    return from_json(table.read_bytes(), where=str(table))


def load_model(
    ref: str,
    *,
    name: str | None = None,
    input_shape: InputShape | None = None,
    factory_kwargs: Mapping[str, Scalar] | None = None,
    boundary: int | str | None = None,
    sequence: int | None = None,
    vocabulary: int | None = None,
    tied: bool | None = None,
) -> ModelProfile:
    """Return the profile of a shipped model, or of what the factory at an import path builds.

    `ref` is a shipped model's name or `package.module:callable`. For a factory `input_shape` is needed: one sample's,
    without the batch; of several tensors, that of each by the name of forward's argument. `name` is the callable's
    unless given. A shipped model has its own input shape and arguments, which may be repeated but not changed, except
    `classes` of those in `WIDE`. Language models (`PRESETS`) have any `sequence` length in tokens and `vocabulary`, and
    a head that is `tied` or not, as published unless given. `boundary` is the first FC block, by name or index; without
    it the boundary is found (see `extract`).

    Raises `InputError` for what cannot be found, imported or extracted, and if torch is needed but missing.
    """
    language = {"sequence": sequence, "vocabulary": vocabulary, "tied": tied}
    if ref not in PRESETS and (given := [key for key, value in language.items() if value is not None]):
        raise InputError(
            f"model {ref} has no {given[0]!r} to set",
            hint=f"it is of the language models {', '.join(PRESETS)}; of a factory it is one of factory_kwargs",
        )
    if ":" in ref:
        if input_shape is None:
            raise InputError(
                f"model {ref} needs an input_shape",
                hint="the shape of one sample without the batch, as in input_shape: [3, 224, 224]",
            )
        try:
            from stanza_sim.model.extract import extract
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise InputError(
                f"model {ref} is extracted with torch, which is not installed",
                hint=f"pip install 'stanza-sim[torch]', or use a shipped model: {', '.join(available())}",
            ) from None
        return extract(
            ref,
            name=name or ref.rpartition(":")[2],
            input_shape=input_shape,
            factory_kwargs=factory_kwargs or {},
            boundary=boundary,
        )
    profile = language_model(ref, **language) if ref in PRESETS else get(ref)  # type: ignore[arg-type]
    source = _source(ref, profile)
    if ref in WIDE and factory_kwargs and set(factory_kwargs) == {"classes"}:
        profile = with_classes(profile, factory_kwargs["classes"])
        factory_kwargs = None
    if (input_shape is not None and input_shape != source.input_shape) or (
        factory_kwargs and not factory_kwargs.items() <= source.factory_kwargs.items()
    ):
        raise InputError(
            f"model {ref} is {'' if ref in PRESETS else 'a table '}for input_shape {list(source.input_shape)} "
            f"and factory_kwargs {source.factory_kwargs}",
            hint=f"{_SETTABLE if ref in PRESETS else ''}for another input or variant give its factory: "
            f"model: {source.factory} (it is extracted with torch)",
        )
    if name is not None:
        profile = replace(profile, name=name)
    return profile if boundary is None else with_boundary(profile, boundary)


_SETTABLE = "`sequence`, `vocabulary` and `tied` can be set; "


def _source(ref: str, profile: ModelProfile) -> Source:
    """What the shipped `profile` called `ref` describes."""
    if ref in PRESETS:
        kwargs = dict(profile.factory_kwargs)
        return Source(factory=profile.factory or "", input_shape=profile.input_shape, factory_kwargs=kwargs)
    return WIDE[ref] if ref in WIDE else SOURCES[ref]


def with_classes(profile: ModelProfile, classes: Scalar) -> ModelProfile:
    """Return `profile`, one of `WIDE`, with a head of so many outputs; it equals what its factory would give.

    Everything about a linear layer without bias is proportional to its outputs. Raises `InputError` for anything but a
    positive whole number.
    """
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise InputError(f"model {profile.name}: classes is {classes!r}", hint="use a whole number of at least 1")
    head = profile.blocks[-1]

    def of_all(amount: int) -> int:
        return amount // profile.num_classes * classes

    head = replace(
        head,
        tensors=tuple(replace(t, shape=(classes, *t.shape[1:])) for t in head.tensors),
        forward_flops=of_all(head.forward_flops),
        backward_input_flops=of_all(head.backward_input_flops),
        backward_weight_flops=of_all(head.backward_weight_flops),
        bytes_touched=of_all(head.bytes_touched),
        again_flops=of_all(head.again_flops),
        output_shape=(classes,),
        work=tuple(_of_classes(work, profile.num_classes, classes) for work in head.work),
    )
    kwargs = tuple(dict(profile.factory_kwargs, classes=classes).items())
    return replace(profile, blocks=(*profile.blocks[:-1], head), num_classes=classes, factory_kwargs=kwargs)


def _of_classes(work: OpWork, before: int, classes: int) -> OpWork:
    """The work of a head with another number of outputs: of the bytes, a part is for its features and for constants."""

    def nbytes(amount: int) -> int:
        each, rest = divmod(amount, before)
        return each * classes + rest

    def of(work: PassWork) -> PassWork:
        return replace(
            work,
            flops=work.flops // before * classes,
            sample_nbytes=nbytes(work.sample_nbytes),
            fixed_nbytes=nbytes(work.fixed_nbytes),
        )

    forward, inputs, weights = (of(one) for one in work.passes)
    return replace(work, forward=forward, backward_input=inputs, backward_weight=weights)
