"""`stanza-sim selftest` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.execute.selftest import session
from stanza_sim.execute.selftest.outcome import Finding, Status
from stanza_sim.execute.selftest.session import Report
from tests.cli.test_cli import call, refused

FOUND = (
    Finding(check="versions", status=Status.PASSED, seconds=1.5, detail="torch 2.13.0"),
    Finding(check="gpu:lanes", status=Status.SKIPPED, seconds=0.0, detail="needs a GPU; add --gpu where there is one"),
)


def answer(monkeypatch: pytest.MonkeyPatch, *found: Finding, unfinished: bool = False) -> dict[str, object]:
    """Let the self-test find `found`; what it was called with."""
    given: dict[str, object] = {}

    def carry_out(**options: object) -> Report:
        given.update(options)
        for one in found:
            options["tell"](one)  # type: ignore[operator]
        return Report(found=found, unfinished=unfinished)

    monkeypatch.setattr(session, "selftest", carry_out)
    return given


def test_it_prints_a_table_and_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = answer(monkeypatch, *FOUND)
    result = call("selftest", "--gpu", "-o", tmp_path / "out", "--budget", "30s")
    assert result.exit_code == 0
    assert (given["gpu"], given["output"], given["budget"]) == (True, tmp_path / "out", "30s")
    assert result.stderr == f"versions: passed (1.5 s)\nwritten to {tmp_path / 'out'}\n"
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["check", "outcome", "detail", "time"]
    assert re.match(r"versions +passed +torch 2\.13\.0 +1\.5 s", lines[2])
    assert lines[-1] == "1 passed, 1 skipped in 2 s"


def test_json_is_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    given = answer(monkeypatch, *FOUND)
    result = call("selftest", "--json")
    assert given["gpu"] is False
    assert given["budget"] == "540s"
    assert json.loads(result.stdout) == [f.as_json() for f in FOUND]
    assert list(json.loads(result.stdout)[0]) == ["check", "status", "seconds", "detail"]


def test_exit_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, Finding(check="gloo", status=Status.FAILED, seconds=0.1, detail="no"))
    assert call("selftest").exit_code == 1
    answer(monkeypatch, *FOUND, unfinished=True)
    assert call("selftest").exit_code == 1

    def wrong(**options: object) -> Report:
        raise InputError("there is no GPU", where="--gpu", hint="leave --gpu out")

    monkeypatch.setattr(session, "selftest", wrong)
    assert refused("selftest", "--gpu") == "error: --gpu: there is no GPU\n  leave --gpu out\n"


def test_bad_input_ends_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    assert "is not empty" in refused("selftest", "-o", tmp_path)
    assert "'540' has no unit" in refused("selftest", "--budget", "540")


def test_interrupted_it_prints_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def carry_out(**options: object) -> Report:
        options["tell"](FOUND[0])  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "selftest", carry_out)
    result = call("selftest")
    assert result.exit_code == 130
    assert result.stdout.splitlines()[-1] == "1 passed in 2 s"
    assert result.stderr.endswith("interrupted\n")
