from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import replace

import pytest

from stanza_sim.base.errors import InputError
from tests.schedule.toys import toy


def test_lookups_are_no_part_of_a_profile() -> None:
    """A profile that has looked things up is equal to, pickles and copies like one that has not."""
    fresh, used = toy(), toy()
    assert [used.place(b.name) for b in used.blocks] == [*range(len(used.blocks))]
    assert used.block("f2") is used.blocks[4]
    assert used.block_of(("f1.t0", "f1.t1")) is used.blocks[3]
    assert used.holder("f1.t1") == (used.blocks[3], used.blocks[3].tensors[1])
    assert used == fresh
    assert hash(used) == hash(fresh)
    assert pickle.dumps(used) == pickle.dumps(fresh)
    assert pickle.loads(pickle.dumps(used)) == deepcopy(used) == fresh


def test_a_changed_profile_looks_up_its_own_blocks() -> None:
    used = toy()
    assert used.place("f2") == 4
    changed = replace(used, blocks=used.blocks[1:], boundary=2)
    assert changed.place("f2") == 3
    with pytest.raises(InputError, match="has no block 'c1'"):
        changed.block("c1")


def test_shared_tensors() -> None:
    """A bundle is of the first block that has its tensors; a tensor is held by the last."""
    model = toy()
    tied = replace(model.blocks[4], tensors=model.blocks[3].tensors)
    model = replace(model, blocks=(*model.blocks[:4], tied))
    assert model.block_of(("f1.t0", "f1.t1")) is model.blocks[3]
    assert model.block_of(("f1.t1", "f1.t0")) is None
    assert model.block_of(()) is None
    assert model.holder("f1.t0")[0] is tied
