"""Names that the builder gives, for models whose blocks are called like what it would make up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Schedule, check, parse
from tests.schedule.toys import block, build, toy


def _model(*names: str, split: str = "", fc: int = 0) -> ModelProfile:
    """Two servers share the block `split`; all others have one, smaller tensor and so stay whole."""
    kinds = [BlockKind.CONV] * (len(names) - fc) + [BlockKind.FC] * fc
    blocks = tuple(
        block(n, kind, [(900,), (800,)] if n == split else [(5,)], 4) for n, kind in zip(names, kinds, strict=True)
    )
    return replace(toy(), blocks=blocks, boundary=len(names) - fc)


def _bundles(schedule: Schedule) -> dict[str, set[str]]:
    """Name of each bundle -> the blocks whose tensors it has."""
    return {b.name: {t.rpartition(".")[0] for t in b.tensors} for b in schedule.bundles}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("a", "b"), ["a.0", "a.1"]),
        (("a", "a.1"), ["a.0", "a.1-2"]),
        (("a.1", "a"), ["a.0", "a.1-2"]),
        (("a", "a.1", "a.0", "a.1-2"), ["a.0-2", "a.1-3"]),
    ],
)
def test_a_part_of_a_block_does_not_take_the_name_of_another(names: tuple[str, ...], parts: list[str]) -> None:
    model = _model(*names, split="a")
    schedule = build("parameter_server", model, 4, servers=2)
    check(schedule, model)
    made = _bundles(schedule)
    assert len(made) == len(schedule.bundles) == len(names) + 1
    assert all(made[name] == {name} for name in names if name != "a")
    assert [n for n, blocks in made.items() if blocks == {"a"}] == parts
    assert parse(schedule.text()) == schedule


def test_a_block_called_like_a_bucket() -> None:
    """FC buckets are named before the CONV blocks that the servers hold."""
    model = _model("fc_bucket0", "x", "y", fc=2)
    schedule = build("stanza", model, 4, fc_workers=2, conv_exchange="parameter_server")
    check(schedule, model)
    assert _bundles(schedule) == {"fc_bucket0": {"x", "y"}, "fc_bucket0-2": {"fc_bucket0"}}
