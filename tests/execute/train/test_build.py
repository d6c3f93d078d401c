"""What one rank holds, built alone: no process is started and nothing is sent."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stanza_sim.execute.train.build import build, holdings
from stanza_sim.execute.train.dropout import CounterDropout
from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.execute.train.slices import HeldBlock
from stanza_sim.model.extract import build_module, extract
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule
from tests.execute.execute_variants import schedule_of


def alone(model: ModelProfile) -> tuple[list[HeldBlock], dict[str, FlatBundle]]:
    _, blocks, bundles = build(schedule_of(model, "all_reduce", 1, {}), model, 0, 3, torch.device("cpu"))
    return blocks, bundles


@pytest.mark.parametrize(
    ("path", "shape"), [("tests.model.model_nets:TiedInside", (4,)), ("tests.model.model_nets:frozen", (4,))]
)
def test_blocks_compute_what_the_module_does_with_the_same_seed(path: str, shape: tuple[int, ...]) -> None:
    model = extract(path, name="net", input_shape=shape)
    blocks, _ = alone(model)
    torch.manual_seed(3)
    module = build_module(model)
    x = torch.randn(5, *shape)
    found = x
    for block in blocks:
        found = block.module(found)
    assert torch.equal(found, module(x))


def test_parameters_are_views_of_flat_vectors_also_where_weights_are_tied() -> None:
    blocks, bundles = alone(extract("tests.model.model_nets:TiedInside", name="net", input_shape=(4,)))
    vectors = [f.whole for f in bundles.values() if f.whole is not None]
    for vector in vectors:
        vector.zero_()
    held = [p for b in blocks for _, p in b.module.named_parameters(remove_duplicate=False)]
    assert held
    assert not any(p.detach().any() for p in held)
    owned = {v.untyped_storage().data_ptr() for v in vectors}
    assert {p.untyped_storage().data_ptr() for p in held} <= owned


def test_dropout_is_replaced_by_one_that_counts(tiny: ModelProfile) -> None:
    blocks, _ = alone(tiny)
    for block in blocks:
        dropouts = [m for m in block.module.modules() if isinstance(m, (nn.Dropout, CounterDropout))]
        assert set(map(id, dropouts)) == set(map(id, block.dropouts))
        assert block.module.training


def test_who_holds_what_is_the_same_at_every_rank(tiny: ModelProfile) -> None:
    schedule: Schedule = schedule_of(tiny, "parameter_server", 4, {"servers": 1})
    held = holdings(schedule, tiny)
    workers = list(schedule.data_ranks)
    assert all(ranks == workers for ranks in held.computes.values())
    server = next(r for r in range(4) if r not in workers)
    assert all(set(workers) <= set(ranks) for ranks in held.wholes.values())
    assert all(source == server for b, source in held.block_source.items() if tiny.block(b).tensors)
