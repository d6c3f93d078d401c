"""Jitter and stragglers: the draws themselves, closed forms with them, repeats, and what an experiment may say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
from typer.testing import CliRunner

from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.cluster import Nic
from stanza_sim.simulate import Prediction, simulate
from stanza_sim.simulate.repeats import simulate_repeats
from stanza_sim.simulate.run import MEASURED, WARM_UP
from stanza_sim.simulate.variation import JitterKind, Variation
from tests.schedule.toys import Costs, build, cluster, toy

MODEL = toy(4)
FLOPS_S = 1e-3
COSTS = Costs(flops_s=FLOPS_S)
UNIFORM = Variation(seed=3, jitter=JitterKind.UNIFORM, spread=0.3)
LOGNORMAL = Variation(seed=3, jitter=JitterKind.LOGNORMAL, spread=0.3)
STRAGGLER = Variation(seed=5, straggler_probability=0.2, straggler_slowdown=4.0)
FAST = Nic(bandwidth_Bps=1e15)


def run(ranks: int, variation: Variation | None, **more: object) -> Prediction:
    """All-reduce after the backward pass over a network that takes no time: an iteration is the slowest rank's."""
    schedule = build("all_reduce", MODEL, ranks, overlap=False)
    return simulate(schedule, MODEL, cluster(ranks, nic=FAST), lambda r: COSTS, variation=variation, **more)


# ---- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variation", [UNIFORM, LOGNORMAL], ids=["uniform", "lognormal"])
def test_factors_have_the_mean_and_spread_that_are_asked_for(variation: Variation) -> None:
    found = [variation.factor(r, i) for r in range(100) for i in range(200)]
    deviation = 0.3 if variation.jitter is JitterKind.LOGNORMAL else 0.3 / sqrt(3)
    assert fmean(found) == pytest.approx(1.0, abs=4 * deviation / sqrt(len(found)))
    assert pstdev(found) == pytest.approx(deviation, rel=0.03)
    assert min(found) > 0
    if variation.jitter is JitterKind.UNIFORM:
        assert 0.7 <= min(found) < 0.701
        assert 1.299 < max(found) <= 1.3
    assert len(set(found)) == len(found)
    by_rank = [fmean(variation.factor(r, i) for i in range(200)) for r in range(100)]
    assert pstdev(by_rank) == pytest.approx(deviation / sqrt(200), rel=0.25)  # a rank is not slow for good
    other = replace(variation, repeat=1), replace(variation, seed=4)
    assert variation.factor(2, 3) == variation.factor(2, 3)
    assert len({v.factor(2, 3) for v in (variation, *other)}) == 3


def test_stragglers_are_as_frequent_and_slow_as_asked() -> None:
    found = [STRAGGLER.factor(r, i) for r in range(100) for i in range(100)]
    assert set(found) == {1.0, 4.0}
    assert found.count(4.0) / len(found) == pytest.approx(0.2, abs=0.016)
    both = replace(STRAGGLER, jitter=JitterKind.LOGNORMAL, spread=0.1)
    assert fmean(both.factor(r, i) for r in range(100) for i in range(100)) == pytest.approx(1.6, rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spread": -0.1},
        {"spread": 1.0, "jitter": JitterKind.UNIFORM},
        {"straggler_probability": 1.5},
        {"straggler_slowdown": 0.5},
    ],
)
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        Variation(**wrong)


# ---- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variation", [UNIFORM, LOGNORMAL, STRAGGLER], ids=["uniform", "lognormal", "straggler"])
@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_an_iteration_lasts_as_long_as_its_slowest_rank(variation: Variation, ranks: int) -> None:
    plain = run(ranks, None).iteration_s
    found = run(ranks, variation)
    window = range(WARM_UP + 1, WARM_UP + MEASURED + 1)
    slowest = fmean(max(variation.factor(r, i) for r in range(ranks)) for i in window)
    assert found.iteration_s == pytest.approx(plain * slowest, rel=1e-6)
    assert found.bound_s <= found.iteration_s
    assert len(found.sent_bytes) == ranks  # nothing is folded
    assert found.steady


def test_the_largest_of_many_uniform_factors() -> None:
    """The expected largest of n uniform draws of 1 ± s is 1 + s (n - 1)/(n + 1)."""
    n, schedule = 8, build("all_reduce", MODEL, 8, overlap=False)
    on = cluster(n, nic=FAST)
    found = simulate_repeats(schedule, MODEL, on, lambda r: COSTS, variation=UNIFORM, repeats=30)
    assert found.iteration_s == pytest.approx(run(n, None).iteration_s * (1 + 0.3 * 7 / 9), rel=0.02)


def test_what_does_not_vary_is_the_plain_prediction() -> None:
    plain, found = run(4, None), run(4, Variation(seed=9))
    assert found == plain
    assert len(found.sent_bytes) == 1  # and folded


def test_both_fabrics_draw_alike() -> None:
    pytest.importorskip("numba")
    model = toy(50)
    schedule = build("parameter_server", model, 6, placement="colocated", assignment="cut")
    on = cluster(6, nic=Nic(bandwidth_Bps=1e6, latency_s=1e-3))
    found = []
    for engine in ("compiled", "plain"):
        costs = Costs(flops_s=2e-6)
        found.append(simulate(schedule, model, on, lambda r, c=costs: c, variation=LOGNORMAL, engine=engine))
    assert found[0].iteration_s == pytest.approx(found[1].iteration_s, rel=1e-9)
    assert found[0].bound_s == pytest.approx(found[1].bound_s, rel=1e-9)
    plain = simulate(schedule, model, on, lambda r: Costs(flops_s=2e-6))
    assert found[0].iteration_s > 1.01 * plain.iteration_s


# ---- repeats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [4, 5])
def test_repeats_differ_and_are_summed_up(repeats: int) -> None:
    schedule, on = build("all_reduce", MODEL, 3, overlap=False), cluster(3, nic=FAST)
    found = simulate_repeats(schedule, MODEL, on, lambda r: COSTS, variation=LOGNORMAL, repeats=repeats)
    single = sorted(run(3, replace(LOGNORMAL, repeat=k)).iteration_s for k in range(repeats))
    assert len(set(single)) == repeats
    assert found.repeats is not None
    assert found.repeats.count == repeats
    assert found.iteration_s == found.repeats.median_s == pytest.approx(np.quantile(single, 0.5))
    assert found.repeats.p5_s == pytest.approx(single[0] + 0.05 * (repeats - 1) * (single[1] - single[0]))
    assert found.repeats.p95_s == pytest.approx(single[-1] - 0.05 * (repeats - 1) * (single[-1] - single[-2]))
    assert found.samples_per_s == pytest.approx(schedule.global_batch / found.iteration_s)
    assert found.bound_s <= found.iteration_s


def test_one_repeat_has_no_percentiles() -> None:
    schedule, on = build("all_reduce", MODEL, 3, overlap=False), cluster(3, nic=FAST)
    found = simulate_repeats(schedule, MODEL, on, lambda r: COSTS, variation=UNIFORM, repeats=1)
    assert found.repeats is None
    assert found.iteration_s == run(3, UNIFORM).iteration_s
    with pytest.raises(InputError, match="at least 1"):
        simulate_repeats(schedule, MODEL, on, lambda r: COSTS, variation=UNIFORM, repeats=0)


# ---- experiments ----------------------------------------------------------------------------------------------------

SMALL = """\
name: small
cluster: star
nodes: 3
models: [{model: alexnet, batch_per_worker: 8}]
strategies: [parameter_server, {strategy: all_reduce, label: a label that is long enough to need several lines}]
"""


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., object]:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)

    def run_it(*settings: str, flags: tuple[str, ...] = ()):
        options = [x for s in settings for x in ("--set", s)]
        return CliRunner().invoke(app, ["run", str(path), *options, *flags], env={"COLUMNS": "80", "RANK": None})

    return run_it


def test_the_table_and_the_json_show_percentiles(call) -> None:
    vary = ("simulation.jitter={kind: lognormal, spread: 0.2}", "simulation.repeats=3")
    result = call(*vary)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    notes = [line.split() for line in lines if line.startswith("    over 3 repeats, ms: p5 ")]
    assert len(notes) == 2
    for note in notes:
        low, middle, high = (float(note[k].strip(",")) for k in (5, 7, 9))
        assert low <= middle <= high
        assert low < high
    assert "the median of 3 repeats" in " ".join(lines)
    first, other = (json.loads(call(*vary, *more, flags=("--json",)).stdout)["runs"] for more in ((), ("seed=2",)))
    for a, b in zip(first, other, strict=True):
        found = a["predicted"]
        assert found["iteration_s"] == found["iteration_s_median"]
        assert found["iteration_s_p5"] < found["iteration_s_median"] < found["iteration_s_p95"]
        assert found["repeats"] == 3
        assert found["iteration_s"] != b["predicted"]["iteration_s"]
        assert a["schedule_hash"] == b["schedule_hash"]
    again = json.loads(call(*vary, flags=("--json",)).stdout)["runs"]
    assert again == first


def test_without_these_settings_nothing_is_added(call) -> None:
    plain = call(flags=("--json",)).stdout
    keys = ["iteration_s", "samples_per_s", "samples_per_s_low", "samples_per_s_high", "tokens_per_s", "mfu"]
    keys += ["samples_per_dollar", "time_to_train_s", "cost_to_train"]
    keys += ["exposed_comm_s", "bound_s", "bottleneck", "cost_source", "basis"]
    assert all(list(run["predicted"]) == keys for run in json.loads(plain)["runs"])
    assert call("simulation={}", flags=("--json",)).stdout == plain
    one = call("simulation.straggler={probability: 0.5, slowdown: 3}", "simulation.repeats=1", flags=("--json",))
    for slow, run in zip(json.loads(one.stdout)["runs"], json.loads(plain)["runs"], strict=True):
        assert list(slow["predicted"]) == keys
        assert slow["predicted"]["iteration_s"] > run["predicted"]["iteration_s"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("simulation.repeats=5", "every repeat would be the same"),
        ("simulation.repeats=0", "greater than or equal to 1|at least 1|is 0"),
        ("simulation.jitter.spread=0.1", "a spread without a kind"),
        ("simulation.jitter.kind=uniform", "uniform jitter without a spread"),
        ("simulation.jitter={kind: uniform, spread: 1.0}", "below 1"),
        ("simulation.jitter={kind: normal, spread: 0.1}", "lognormal"),
        ("simulation.jitter={kind: lognormal, spread: .inf}", "finite"),
        ("simulation.straggler.probability=0.1", "need `probability` and `slowdown`"),
        ("simulation.straggler={probability: 2.0, slowdown: 2.0}", "probability"),
        ("simulation.straggler={probability: 0.1, slowdown: 0.5}", "slowdown"),
        ("simulation.jiter=1", "jitter"),
    ],
)
def test_contradictory_settings(call, setting: str, says: str) -> None:
    result = call(setting)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(says, result.stderr), result.stderr
    assert "simulation" in result.stderr.splitlines()[0]
