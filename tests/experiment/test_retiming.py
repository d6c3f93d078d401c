"""Rows are run between two timings of their blocks; neighbours of one model share a timing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from stanza_sim.execute.calibrate.answers import SectionsWanted, SectionTimes
from stanza_sim.execute.calibrate.tasks import SectionsTask
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.retiming import Retimer
from stanza_sim.experiment.rows import Plan, cluster_of, plans_of
from stanza_sim.model.profile_json import fingerprint
from stanza_sim.profiles.blocks import BlockTime, Profile, ProfiledModel
from stanza_sim.schedule import Phase

DIGITS = "stanza_sim.model.examples:digits_cnn"


def plans_for(*labels: str, models: str = "{model: M, name: one, input_shape: [1, 8, 8]}") -> list[Plan]:
    """Rows of the laptop's experiment with these labels, of each of `models` in turn."""
    loaded = load_experiment("laptop", [f"models=[{models.replace('M', DIGITS)}]"])
    return [plan for plan in plans_of(loaded, cluster_of(loaded)) if plan.strategy.title in labels]


def profile_for(plan: Plan) -> Profile:
    """A millisecond for every phase of every block, at 32 samples."""
    times = dict.fromkeys(("forward_s", "backward_s", "backward_input_s", "backward_weight_s", "loss_s"), 1e-3)
    return Profile(
        device="cpu x",
        host_cores=2,
        date="2026-01-01T00:00:00Z",
        precision="fp32",
        ranks_at_once=4,
        model=ProfiledModel(name=plan.model.name, fingerprint=fingerprint(plan.model)),
        blocks=tuple(BlockTime(block=b.name, samples=32, **times) for b in plan.model.blocks),
        reduce_Bps=1e9,
        update_Bps=1e9,
    )


@dataclass
class Ranks:
    """Says that every forward pass takes `slow[k]` ms in the k-th timing, and that cores rest for as long."""

    slow: Sequence[float]
    world_size: int = 4
    is_main: bool = True
    asked: list[SectionsWanted] = field(default_factory=list)

    def run(self, task: Any, timeout_s: float | None = None) -> list[Any]:
        assert isinstance(task, SectionsTask)
        seconds = self.slow[len(self.asked)] * 1e-3
        self.asked.append(task.wanted)
        blocks = {(b, s.samples, Phase.FORWARD): [seconds] * 4 for s in task.wanted.sections for b in s.blocks}
        return [SectionTimes(blocks=blocks, update_Bps=None, messages=(), rests_s=(seconds,))] * 4

    def close(self) -> None:
        """Nothing to leave."""


def carried_out(ranks: Ranks, plans: list[Plan]) -> Retimer:
    known = {plan.entry.title: profile_for(plan) for plan in plans}
    retimer = Retimer(ranks, plans, known, seed=1)
    for i in range(len(plans) + 1):
        retimer.between(i)
    return retimer


def test_a_timing_between_two_rows_of_a_model_serves_both() -> None:
    plans = plans_for("PS, overlapped", "all-reduce", "Stanza, CONV by ring")
    ranks = Ranks([1.0, 3.0, 1.5, 1.2])
    retimer = carried_out(ranks, plans)
    asked = [{(s.samples, s.apart) for s in wanted.sections} for wanted in ranks.asked]
    assert asked == [{(32, False)}, {(32, False)}, {(32, False), (96, True)}, {(32, False), (96, True)}]
    for i, change in enumerate((3.0, 0.5, 0.8)):
        timed = retimer.timed(i)
        assert timed.drift.change == pytest.approx(change - 1)
        assert timed.drift.against_profile is None
    assert retimer.timed(0).profile.blocks[0].forward_s == pytest.approx(2e-3)
    assert retimer.timed(0).profile.blocks[0].backward_s == pytest.approx(2e-3), "what is not timed changes alike"
    assert retimer.timed(0).profile.wakeup_s == pytest.approx((1.0 + 3.0 + 1.5 + 1.2) / 4 * 1e-3)


def test_rows_of_two_models_are_timed_apart() -> None:
    two = "{model: M, name: one, input_shape: [1, 8, 8]}, {model: M, name: two, input_shape: [1, 8, 8]}"
    plans = plans_for("all-reduce", models=two)
    assert [plan.entry.title for plan in plans] == ["one", "two"]
    ranks = Ranks([1.0, 2.0, 4.0, 2.0])
    retimer = carried_out(ranks, plans)
    assert len(ranks.asked) == 4
    assert [retimer.timed(i).drift.change for i in (0, 1)] == pytest.approx([1.0, -0.5])
    assert [retimer.timed(i).profile.wakeup_s for i in (0, 1)] == pytest.approx([1.5e-3, 3e-3])


def test_a_given_profile_is_what_the_machine_is_compared_with() -> None:
    plans = plans_for("all-reduce")
    retimer = carried_out(Ranks([1.0, 1.5]), plans)
    assert retimer.timed(0, given=True).drift.against_profile == pytest.approx(0.25)
