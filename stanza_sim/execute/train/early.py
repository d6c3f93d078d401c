"""What a run would find wrong after ranks have started and been timed, found before: in the data and in the blocks.

Samples are looked at in the order in which they will be drawn, then those that are held out, then the others: all of
them, or the first `MOST`, so that all ranks that look find the same. Ranks check each one when they load it, as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch

from stanza_sim.execute.train import data
from stanza_sim.execute.train.dropout import CounterDropout
from stanza_sim.execute.train.factors import Tap
from stanza_sim.execute.train.known import LabelKind, labels_of
from stanza_sim.execute.train.slices import HeldBlock, cut_block
from stanza_sim.model.extract import build_module, replace_dropout, split
from stanza_sim.model.labels import Labels, Loss
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule
from stanza_sim.schedule.factors import factor_transfers, require_factors

MOST = 1000
"""Samples that are looked at."""


def labels_in(name: str, items: data.Items, model: ModelProfile, loss: Loss | None) -> Labels:
    """What the labels of a dataset are to `model`, told by its first sample. Raises `InputError`."""
    where = f"data {name!r}, sample 0"
    _, y = data.sample_of(items, 0, model, where)
    kind = LabelKind.INTEGERS
    if y.is_floating_point() or y.is_complex():
        kind = LabelKind.NUMBERS
    elif y.dtype is torch.bool:
        kind = LabelKind.SWITCHES
    return labels_of(model, kind, tuple(y.shape), loss, where)


def look_at(
    name: str, items: data.Items, model: ModelProfile, global_batches: Sequence[int], iterations: int, seed: int
) -> list[str]:
    """Look at samples, those that runs with these global batches will draw before others.

    `model` has its labels. Returns what is to be said of them; raises `InputError` for one that does not fit.
    """
    checked = data.Dataset(name, items, model, model.labels)
    train, held_out = data.divide(name, len(items), seed)
    largest = max(global_batches)
    drawn = data.draw(train, largest, min(iterations, -(-MOST // largest)), seed)
    for number in _first(MOST, chain([0], chain.from_iterable(drawn), held_out, range(len(items)))):
        checked[number]
    few = [n for n in dict.fromkeys(global_batches) if len(train) < n]
    if not few:
        return []
    held = f", with {len(held_out)} held out for the accuracy" if held_out else ""
    return [
        f"data {name!r} has {len(train)} samples to train on{held}: fewer than the global batch of {max(few)}, "
        "which has some of them more than once"
    ]


def _first(most: int, numbers: Iterable[int]) -> Iterator[int]:
    """The first `most` different ones of `numbers`."""
    seen: set[int] = set()
    for number in numbers:
        if number not in seen:
            seen.add(number)
            yield number
        if len(seen) == most:
            return


def check_blocks(model: ModelProfile, schedule: Schedule | None = None) -> None:
    """Raise `InputError` for a block that ranks could not compute, or not as `schedule` wants it where there is one."""
    factored: set[str] = set()
    if schedule is not None:
        factored = {require_factors(schedule, model, name)[0].name for name in factor_transfers(schedule)}
        if not schedule.cuts and not factored:
            return
    with torch.random.fork_rng(devices=[]):
        module = build_module(model, device="meta")
    for piece in split(module, model):
        replace_dropout(piece.module, lambda key, p: CounterDropout(key, p, 0))
        held = HeldBlock(name=piece.name, module=piece.module, parameters=tuple(piece.parameters.items()), dropouts=())
        if piece.name in factored:
            Tap(held)
        cut = schedule.cut(piece.name) if schedule is not None else None
        if cut is not None:
            cut_block(held, cut, (0, 1))
