"""What the self-test makes of checks that pass, fail, hang, crash, or leave something behind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from stanza_sim.execute.selftest import runner as module
from stanza_sim.execute.selftest.outcome import Finding, Group, Status
from stanza_sim.execute.selftest.runner import Runner, tidy

pytestmark = pytest.mark.processes


def group(function: str, *names: str, limit_s: float = 20.0, needs_s: float = 0.0, gpu: bool = False) -> Group:
    where = f"tests.execute.selftest.fake_checks:{function}"
    return Group(names=names, function=where, limit_s=limit_s, needs_s=needs_s, gpu=gpu)


def outcome(found: list[Finding]) -> dict[str, str]:
    return {f.check: str(f.status) for f in found}


def carry_out(folder: Path, *groups: Group, budget_s: float = 100.0, gpu: str | None = None) -> Runner:
    runner = Runner(folder=folder, budget_s=budget_s, gpu=gpu)
    runner.run(groups)
    return runner


def gone(process: int) -> bool:
    for _ in range(50):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_each_check_has_its_outcome_in_order_and_a_line(tmp_path: Path) -> None:
    told: list[Finding] = []
    runner = Runner(folder=tmp_path, budget_s=100.0, gpu="needs a GPU", tell=told.append)
    runner.run(
        [
            group("mixed", "passes", "raises", "skipped", "wrong", "input"),
            group("fine", "on a gpu", "there too", gpu=True),
            group("garbage", "garbage"),
            group("nothing", "nothing"),
        ]
    )
    assert told == runner.found
    assert outcome(told) == {
        "passes": "passed",
        "raises": "failed",
        "skipped": "skipped",
        "wrong": "failed",
        "input": "failed",
        "on a gpu": "skipped",
        "there too": "skipped",
        "garbage": "passed",
        "nothing": "failed",
    }
    detail = {f.check: f.detail for f in told}
    assert detail["raises"] == "ZeroDivisionError: by nothing"
    assert detail["wrong"] == "one is two"
    assert detail["input"] == "no such thing use another"
    assert (detail["skipped"], detail["there too"]) == ("not here", "needs a GPU")
    assert detail["nothing"] == "its process ended with status 0"
    assert runner.failed
    assert not runner.unfinished
    lines = [json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines()]
    assert lines == [f.as_json() for f in told]
    assert all(list(line) == ["check", "status", "seconds", "detail"] for line in lines)
    assert "ZeroDivisionError" in (tmp_path / "logs" / "raises.txt").read_text()
    assert [p.name for p in sorted((tmp_path / "logs").iterdir())] == ["raises.txt"]


def test_what_hangs_costs_its_own_time_only(tmp_path: Path) -> None:
    begin = time.monotonic()
    found = carry_out(tmp_path, group("hangs", "before", "hang", "after", limit_s=2.0)).found
    assert outcome(found) == {"before": "passed", "hang": "failed", "after": "passed"}
    assert found[1].detail == "took longer than 2 s and was ended; last: at the third of five"
    assert 2.0 <= found[1].seconds < 6.0
    assert time.monotonic() - begin < 60.0


def test_a_process_that_never_begins_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 1.0)
    found = carry_out(tmp_path, group("silent", "one", "two", limit_s=1.0)).found
    assert outcome(found) == {"one": "failed", "two": "failed"}
    assert found[0].detail == "took longer than 2 s and was ended"


def test_what_crashes_is_told_with_its_last_words(tmp_path: Path) -> None:
    found = carry_out(tmp_path, group("crashes", "before", "crash", "after")).found
    assert outcome(found) == {"before": "passed", "crash": "failed", "after": "passed"}
    assert found[1].detail == "its process was ended by signal 11; last: about to die in <python>/lib"
    assert (tmp_path / "logs" / "crash.txt").read_text() == "about to die in <python>/lib\n"


@pytest.mark.parametrize("name", ["leaves", "hang"])
def test_what_a_check_leaves_behind_is_ended(tmp_path: Path, name: str) -> None:
    found = carry_out(tmp_path, group("children", name, limit_s=2.0)).found
    assert outcome(found) == {name: "failed" if name == "hang" else "passed"}
    assert gone(int((tmp_path / "child").read_text()))


def test_what_the_budget_is_too_short_for_is_not_begun(tmp_path: Path) -> None:
    found = carry_out(
        tmp_path, group("fine", "short"), group("fine", "long", needs_s=200.0), group("fine", "shorter")
    ).found
    assert outcome(found) == {"short": "passed", "long": "skipped", "shorter": "passed"}
    assert found[1].detail.startswith("no time: ")
    assert found[1].detail.endswith(" s of the budget are left, it takes about 200 s")
    spent = carry_out(tmp_path, group("hangs", "hang", "after"), budget_s=3.0)
    assert outcome(spent.found) == {"hang": "skipped", "after": "skipped"}
    assert spent.found[0].detail == "no time: it was ended when the budget was spent; last: at the third of five"
    assert spent.unfinished
    assert not spent.failed


def test_status_is_one_of_three_words() -> None:
    assert [str(s) for s in Status] == ["passed", "failed", "skipped"]
    assert tidy(f"{Path.home()}/x") == "~/x"
