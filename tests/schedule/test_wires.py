"""The types in which values travel: legal, printed, and of the size that both engines and the bound count."""

from __future__ import annotations

from itertools import product

import pytest

from stanza_sim.base.precision import Precision
from stanza_sim.schedule import Collective, Compute, Op, Transfer, ValueKind, Wire, check, from_json, parse
from stanza_sim.schedule.wires import Wires, computed_in, with_wires
from stanza_sim.simulate.lowering.quick_bound import quick_bound_s
from tests.schedule.toys import SOME, build, cluster, predict, toy

MODEL = toy(40)
STRATEGIES: dict[str, tuple[str, int, dict[str, object]]] = {
    "one server": ("parameter_server", 4, {}),
    "servers, cut": ("parameter_server", 5, {"servers": 2, "assignment": "cut"}),
    "co-located slices": ("parameter_server", 4, {"placement": "colocated", "assignment": "sliced", "slice": 333}),
    "by host": ("parameter_server", 5, {"local": 2}),
    "all-reduce": ("all_reduce", 4, {"bucket": "2kB"}),
    "by halving": ("all_reduce", 5, {"algorithm": "halving_doubling"}),
    "by tree": ("all_reduce", 5, {"algorithm": "tree", "chunk": "1kB"}),
    "stanza": ("stanza", 5, {"fc_workers": 2, "microbatches": 2}),
    "stanza, cut": ("stanza", 5, {"fc_workers": 2, "fc_parallel": "model"}),
    "head": ("sharded_head", 4, {}),
    "factors": ("sufficient_factors", 4, {"fc_exchange": "factors"}),
}
WIRES = [Wires(activations=a, gradients=g) for a, g in product(Wire, Wire)]


def values_of(op: Op) -> list[ValueKind]:
    values = () if isinstance(op, Compute) else op.values if isinstance(op, Transfer) else (op.value,)
    return [value.kind for value in values]


@pytest.mark.parametrize("wires", WIRES, ids=lambda w: f"{w.activations}-{w.gradients}")
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_with_every_type(name: str, wires: Wires) -> None:
    strategy, world, settings = STRATEGIES[name]
    plain = build(strategy, MODEL, world, **settings)
    made = with_wires(plain, MODEL, wires)
    check(made, MODEL)
    assert parse(made.text()) == made and from_json(made.to_json()) == made
    assert with_wires(made, MODEL, wires) == made
    for op, before in zip(made.ops, plain.ops, strict=True):
        if isinstance(op, Compute) or isinstance(before, Compute):
            assert op == before
            continue
        kinds = values_of(op)
        if any(kind.is_activation for kind in kinds):
            expected = wires.activations
        else:
            expected = wires.gradients if any(kind.is_gradient for kind in kinds) else Wire.NATIVE
        assert op.wire is expected
        labels = 8 * made.batch_per_worker // made.microbatches * kinds.count(ValueKind.LABELS)
        assert op.nbytes - labels == (before.nbytes - labels) // (1 if expected is Wire.NATIVE else 2)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_simulator_counts_the_bytes_of_the_schedule(name: str) -> None:
    """Folded and unfolded, in both engines, above the quick bound; what travels in 2 bytes halves what is sent."""
    strategy, world, settings = STRATEGIES[name]
    plain = build(strategy, MODEL, world, **settings)
    half = with_wires(plain, MODEL, Wires(activations=Wire.FP16, gradients=Wire.BF16))
    on = cluster(world)
    found = {engine: predict(half, MODEL, on, fold_ranks=False, engine=engine) for engine in ("plain", "compiled")}
    assert found["plain"].iteration_s == pytest.approx(found["compiled"].iteration_s, rel=1e-9)
    folded = predict(half, MODEL, on)
    assert folded.iteration_s == pytest.approx(found["plain"].iteration_s, rel=1e-9)
    for r in range(world):
        sent = sum(
            half.message_bytes(op, r, d)
            for op in half.for_rank(r)
            if isinstance(op, Transfer)
            for d in half.destinations(op, r)
        )
        moved = found["plain"].sent_bytes[r]
        if any(isinstance(op, Collective) for op in half.for_rank(r)):
            assert moved > sent
        else:
            assert moved == sent
    whole = predict(plain, MODEL, on, fold_ranks=False)
    assert sum(found["plain"].sent_bytes.values()) < 0.8 * sum(whole.sent_bytes.values())
    assert quick_bound_s(half, MODEL, on, lambda rank: SOME) <= found["plain"].iteration_s * (1 + 1e-9)
    assert found["plain"].iteration_s < whole.iteration_s


def test_what_a_precision_puts_out() -> None:
    assert [computed_in(p) for p in Precision] == [Wire.NATIVE, Wire.NATIVE, Wire.BF16, Wire.FP16]


def test_a_type_that_an_op_states_stays() -> None:
    stated = build("stanza", MODEL, 4, activations="bf16")
    made = with_wires(stated, MODEL, Wires(activations=Wire.FP16))
    assert made == stated
    assert "wire=bf16" in made.text()
