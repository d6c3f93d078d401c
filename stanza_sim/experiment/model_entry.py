"""What an experiment file says of one model: which it is, its size, its batch, and what is known of its speed."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from stanza_sim.base.config import Count, Factor, Multiple, Section
from stanza_sim.experiment.simulated import wrong
from stanza_sim.model.language import PRESETS

Scalar = bool | int | float | str | None
Batch = Annotated[Count, Field(le=1_000_000_000)]
"""Samples of one worker."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")]


class Scale(Section):
    """Factors that make a model smaller or larger than it is; see `stanza_sim.model.profile.scaled`."""

    bytes: Multiple = Field(1.0, description="Factor on the sizes of all parameters and of what passes between blocks.")
    compute: Multiple = Field(1.0, description="Factor on the work of every block.")

    def __str__(self) -> str:
        """`-bytes0.02-compute0.5`, or nothing where nothing is scaled."""
        both = (("bytes", self.bytes), ("compute", self.compute))
        return "".join(f"-{key}{value:g}" for key, value in both if value != 1).replace("+", "")


class Throughput(Section):
    """What one device is known to train of a model, updates included."""

    samples_per_s: Factor = Field(description="Samples per second of one device.")
    batch: Batch = Field(description="Samples per step at which they were measured.")


class ModelEntry(Section):
    """A model of the zoo by name, or a torch module by the import path of its factory."""

    model: str = Field(min_length=1, description="Name in the zoo, or `package.module:factory`.")
    name: Name | None = Field(None, description="Name in the report; default: the zoo's, or the factory's.")
    batch_per_worker: Batch | None = Field(
        None, description="Samples per worker and iteration; of language models sequences."
    )
    tokens_per_worker: Batch | None = Field(
        None, description="Tokens per worker and iteration, in place of `batch_per_worker`: whole sequences."
    )
    sequence: Count | None = Field(None, description="Of a language model: tokens of a sample; default: as published.")
    vocabulary: Count | None = Field(None, description="Of a language model: its words; default: as published.")
    tied: bool | None = Field(
        None,
        strict=True,
        description="Of a language model: whether the head has the weights of the embedding; default: as published.",
    )
    input_shape: tuple[Count, ...] | dict[str, tuple[Count, ...]] | None = Field(
        None, description="Shape of one sample, for a factory; of several tensors, by the names of forward's arguments."
    )
    factory_kwargs: dict[str, Scalar] = Field(default_factory=dict, description="Arguments of the factory.")
    boundary: str | int | None = Field(None, description="Block at which the FC part begins; default: found.")
    scale: Scale = Field(Scale(), description="Makes it a model of the same shape that can be emulated, not trained.")

    throughput: dict[str, Throughput] = Field(
        default_factory=dict,
        description="Known throughput of one device, by its name; times are scaled to it.",
    )

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        tokens = self.tokens_per_worker
        if tokens is None:
            return self
        if self.batch_per_worker is not None:
            raise wrong("batch_per_worker and tokens_per_worker say the same", "keep one of them")
        if (each := self._sample_tokens) is None:
            what = f"how many tokens a sample of {self.model} has is not known"
            raise wrong(what, "use batch_per_worker, in samples; tokens are for language models and 1-d inputs")
        if tokens % each:
            near = sorted({max(1, tokens // each) * each, (tokens // each + 1) * each})
            what = f"{tokens} tokens are no whole number of sequences of {each}"
            raise wrong(what, f"use {' or '.join(map(str, near))}, or another `sequence`")
        return self

    @property
    def _sample_tokens(self) -> int | None:
        """Tokens of a sample, if the entry says it or the model is one of the language models."""
        if self.sequence is None and isinstance(self.input_shape, tuple):
            return self.input_shape[0] if len(self.input_shape) == 1 else None
        preset = PRESETS.get(self.model)
        return self.sequence or (preset.sequence if preset else None)

    @property
    def own_batch(self) -> int | None:
        """Samples per worker and iteration, if the entry states them, in samples or in tokens."""
        each = self._sample_tokens
        return self.tokens_per_worker // each if self.tokens_per_worker and each else self.batch_per_worker

    def with_batch(self, samples: int | None) -> Self:
        """The same with so many samples per worker and iteration; None: those of the experiment."""
        return self.model_copy(update={"batch_per_worker": samples, "tokens_per_worker": None})

    @property
    def title(self) -> str:
        """What the report calls the model; it says if the model is scaled, and how."""
        return f"{self.name or self.model.rpartition(':')[2]}{self.scale}"
