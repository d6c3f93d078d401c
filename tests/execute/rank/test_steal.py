"""What a virtual machine's host takes away of its cores: a run that suffers is done again, and the best is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from stanza_sim.execute.rank import steal
from stanza_sim.execute.rank.clock import ClockOffset
from stanza_sim.execute.rank.job import RankReport, RunJob, Training
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.start.protocol import Moving
from stanza_sim.execute.start.start import execute
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import schedule_of


@dataclass
class Ranks:
    """Says of each run that so much was taken away, and that it took `took_s`; the first is the slowest."""

    taken: list[float]
    took_s: float = 1.0
    world_size: int = 1
    is_main: bool = True
    runs: int = field(default=0)

    def run(
        self, task: object, timeout_s: float | None = None, *, moving: Moving | None = None
    ) -> list[RankReport | None]:
        each_s = 1.0 / (1 + self.runs)
        report = RankReport(
            rank=0,
            host="h",
            iteration_end_s=tuple(each_s * (1 + i) for i in range(4)),
            spans=(),
            sends=(),
            receives=(),
            loss_sums=(1.0,) * 4,
            sent_bytes=0,
            received_bytes=0,
            clock=ClockOffset(),
            stolen=self.taken[self.runs],
            took_s=self.took_s,
        )
        self.runs += 1
        return [report]

    def close(self) -> None:
        """Nothing to leave."""


@pytest.mark.parametrize(
    ("taken", "took_s", "runs", "kept"),
    [
        ([0.0], 1.0, 1, 0),
        ([0.01], 1.0, 1, 0),
        ([0.2, 0.0], 1.0, 2, 1),
        ([0.2, 0.05, 0.1], 1.0, 3, 1),
        ([0.05, 0.2, 0.1], 1.0, 3, 0),
        ([0.2], 31.0, 1, 0),  # too long to be done again
    ],
)
def test_a_run_that_suffered_is_done_again(
    tiny: ModelProfile, taken: list[float], took_s: float, runs: int, kept: int
) -> None:
    schedule = schedule_of(tiny, "local", 1, {})
    job = RunJob(schedule=schedule, model=tiny, training=Training(iterations=4, warmup=1))
    ranks = Ranks(taken, took_s)
    told = []
    (measured,) = execute([job], ranks, done=lambda i, m: told.append(m))
    assert (ranks.runs, measured.tries, measured.stolen) == (runs, runs, taken[kept])
    assert measured.iteration_s == pytest.approx(1 / (1 + kept))
    assert told == [measured]


def test_how_cores_are_used_is_read_from_the_kernel(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  5022782 332417 655503 3063691 14253 0 128029 38880 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    second = os.sysconf("SC_CLK_TCK")
    assert steal.stolen_s(stat) == 38880 / second
    assert steal.idle_s(stat) == (3063691 + 14253) / second
    assert steal.busy_s(stat) == (5022782 + 332417 + 655503 + 128029) / second
    stat.write_text("cpu  1 2 3\n")
    assert steal.stolen_s(stat) == steal.idle_s(stat) == steal.busy_s(stat) == 0
    assert steal.stolen_s(tmp_path / "none") == 0


def test_the_use_of_cores_is_a_share() -> None:
    use = steal.CoreUse()
    while use.elapsed_s() < 0.05:
        pass
    assert 0 <= use.stolen() < 1
    assert 0 < use.own() <= 1
    assert 0 <= use.busy() <= 1.5  # counted in hundredths of a second


def test_what_other_processes_had_is_told_apart_from_the_ranks(tiny: ModelProfile) -> None:
    """Two machines: on one of them a third of the cores went to two ranks and a quarter to others."""
    schedule = schedule_of(tiny, "all_reduce", 3, {})
    job = RunJob(schedule=schedule, model=tiny, training=Training(iterations=4, warmup=1))
    (one,) = (r for r in Ranks([0.0]).run(None) if r is not None)
    reports = [
        replace(one, rank=0, machine="a", busy=0.5, own=0.5),
        replace(one, rank=1, machine="b", busy=7 / 12, own=1 / 6),
        replace(one, rank=2, machine="b", busy=7 / 12, own=1 / 6),
    ]
    assert merge(job, reports).others == pytest.approx(0.25)
    assert merge(job, [replace(r, busy=0.0) for r in reports]).others == 0


def test_what_is_asked_between_runs_comes_before_each_and_after_the_last(tiny: ModelProfile) -> None:
    schedule = schedule_of(tiny, "local", 1, {})
    job = RunJob(schedule=schedule, model=tiny, training=Training(iterations=4, warmup=1))
    ranks = Ranks([0.0, 0.2, 0.0, 0.0])  # the second run is done again
    seen: list[tuple[int, int]] = []
    execute([job] * 3, ranks, between=lambda i: seen.append((i, ranks.runs)))
    assert seen == [(0, 0), (1, 1), (2, 3), (3, 4)]
