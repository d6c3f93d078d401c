"""Where a model is cut into parts of consecutive blocks: given by name, or so that the costliest part costs least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import accumulate, pairwise

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import Block, ModelProfile

PassTimes = Callable[[Block, int], tuple[float, float]]
"""Seconds of the forward and of the backward pass of a block over so many samples."""


def place_of_cut(model: ModelProfile, cut: str, *, where: str, first: str) -> int:
    """The place of the block `cut`, at which a part begins that is not the first, which is called `first`.

    Raises `InputError`, naming the setting `where`, for what is no block, and for the first block.
    """
    names = [block.name for block in model.blocks]
    possible = f"a cut is at the beginning of a block: {', '.join(names[1:]) or 'here there is one only'}"
    if cut == names[0]:
        raise InputError(f"a cut at {cut}, the first block, leaves no {first}", where=where, hint=possible)
    if cut in names:
        return names.index(cut)
    within = [block.name for block in model.blocks if cut.startswith(f"{block.name}.")]
    within += [block.name for block in model.blocks if any(t.name.startswith(f"{cut}.") for t in block.tensors)]
    if within and not any(name.startswith(f"{cut}.") for name in names):
        raise InputError(
            f"{cut} is inside block {within[0]} of model {model.name}; a cut goes through no block and no branch",
            where=where,
            hint=possible,
        )
    near = get_close_matches(cut, names[1:])
    raise InputError(
        f"model {model.name} has no block {cut!r} to cut at",
        where=where,
        hint=f"did you mean {near[0]!r}? {possible}" if near else possible,
    )


def whole_places(model: ModelProfile) -> list[int]:
    """The places at which a cut separates no weight from a block that shares it."""
    spans = [(model.place(blocks[0]), model.place(blocks[-1])) for blocks in model.users.values()]
    return [i for i in range(1, len(model.blocks)) if not any(first < i <= last for first, last in spans)]


def require_whole(model: ModelProfile, places: Iterable[int], where: str, key: str) -> None:
    """Raise `InputError` if parts of `model` that begin at `places` would share weights.

    It has cuts for `key` that keep them whole if there are any.
    """
    names, whole = [b.name for b in model.blocks], whole_places(model)
    for place in places:
        if not 0 < place < len(names) or place in whole:
            continue
        apart = next(t for t, b in model.users.items() if model.place(b[0]) < place <= model.place(b[-1]))
        hint = "no other cut keeps them together"
        if whole:
            hint = f"set {key} to {' or '.join(names[i] for i in whole[:4])}, which keeps them together"
        raise InputError(
            f"a cut at {names[place]} separates the blocks {' and '.join(model.users[apart])} of model {model.name}, "
            f"which share {apart}",
            where=where,
            hint=f"{hint}; tied weights train under parameter_server and all_reduce",
        )


def trains(block: Block) -> bool:
    """Whether a block has parameters, be they of an earlier block too."""
    return bool(block.tensors or block.tied)


def most_parts(model: ModelProfile) -> int:
    """Into how many parts `model` can be cut, of which each has parameters."""
    return max(1, sum(map(trains, model.blocks)))


def balanced(
    model: ModelProfile,
    parts: int,
    costs: Sequence[float],
    crossing: Callable[[int, int], float] = lambda part, place: 0.0,
) -> list[int]:
    """The places at which `parts` parts of `model` begin, of which the costliest part or cut costs least.

    `costs[i]` is what block i costs, and `crossing(k, i)` what it costs that part k begins at place i. Each part has
    parameters, so there are at most `most_parts`. It is the linear partition problem, solved by dynamic programming, as
    PipeDream does (Narayanan et al., SOSP 2019, section 3.1).
    """
    until = list(accumulate(costs, initial=0.0))
    trained = list(accumulate(map(trains, model.blocks), initial=0))
    n, infinite = len(until), float("inf")
    best = [0.0 if i == 0 else infinite for i in range(n)]  # of the blocks before i, in so many parts
    began: list[list[int]] = []
    for part in range(parts):
        cut = [best[0], *(max(best[j], crossing(part, j)) if part and j < n - 1 else best[j] for j in range(1, n))]
        found, came = [infinite] * n, [0] * n
        for i in range(1, n):
            for j in range(i - 1, -1, -1):
                last = until[i] - until[j]
                if last >= found[i]:
                    break  # a longer last part costs no less
                if trained[i] > trained[j] and (worst := max(cut[j], last)) < found[i]:
                    found[i], came[i] = worst, j
        best = found
        began.append(came)
    at, places = n - 1, []
    for came in reversed(began):
        at = came[at]
        places.append(at)
    return places[::-1]


def parts_of(model: ModelProfile, places: Sequence[int]) -> list[tuple[Block, ...]]:
    """The blocks of the parts of `model` that begin at `places`, the first of which is 0."""
    return [model.blocks[lo:hi] for lo, hi in pairwise([*places, len(model.blocks)])]
