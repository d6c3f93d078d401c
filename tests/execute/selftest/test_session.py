"""What the self-test is given and leaves: bad input, the folder, Ctrl-C, and the checks that need no GPU, once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.execute.selftest import session
from stanza_sim.execute.selftest.checks import groups
from stanza_sim.execute.selftest.outcome import Finding, Group, Status
from stanza_sim.execute.selftest.session import Report, selftest
from stanza_sim.execute.selftest.variants import CHOSEN, ON_ONE_GPU, ON_STANDIN, TRAINED
from stanza_sim.report.selftest import findings_text

FINE = Group(
    names=("one", "two"), function="tests.execute.selftest.fake_checks:fine", limit_s=20.0, needs_s=0.0, gpu=False
)
SOME = ("versions", "gloo", "train:ps-1", "staging", "standin:head", "predicted")
"""Real checks that are carried out here; the other variants differ from these in their schedule only."""


def refused(**given: object) -> str:
    with pytest.raises(InputError) as caught:
        selftest(chosen=[FINE], **given)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_order_of_checks_and_their_names() -> None:
    names = [name for group in groups(gpu=False) for name in group.names]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(name for group in groups(gpu=True) for name in group.names)
    for needed in ("standin:ps-1", "standin:stanza-1", "standin:stanza-2-sliced", "standin:head"):
        assert needed in names
    on_gpu = [group.names[0] for group in groups(gpu=True)][1:12]
    assert on_gpu[:4] == ["gpu:provenance", "gpu:lanes", "gpu:copies", "gpu:staged:ps-1"]
    assert on_gpu[4:7] == ["gpu:nccl", "gpu:blocks", "gpu:local:fp32"]
    assert on_gpu[7:] == ["gpu:shared:2", "gpu:beside", "gpu:repeats", "gpu:fit"]
    assert len(ON_ONE_GPU) == 12
    assert {v[0] for v in CHOSEN} >= {*ON_STANDIN, *ON_ONE_GPU, *TRAINED}
    for group in groups(gpu=True):
        module, _, name = group.function.partition(":")
        pytest.importorskip("torch")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("540", "'540' has no unit"),
        ("9 lightyears", "unknown unit 'lightyears'"),
        ("-3s", "'-3s' is negative"),
        ("0s", "'0s' is zero"),
    ],
)
def test_a_budget_is_a_time(budget: str, says: str) -> None:
    text = refused(budget=budget)
    assert text.startswith("--budget: ")
    assert says in text


def test_the_folder_is_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is no folder" in refused(output=tmp_path / "file")
    assert "is not empty" in refused(output=tmp_path)
    assert "cannot be written" in refused(output=tmp_path / "file" / "below")
    assert "cannot be written" in refused(output=Path("/proc/selftest"))
    assert "name a new or an empty folder" in refused(output=tmp_path)


def test_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "here")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert "torchrun has started this process" in refused()


def test_without_torch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'stanza-sim[torch]'" in refused()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: str) -> None:
        done = subprocess.CompletedProcess([], 0, stdout=text + "\n", stderr="")
        monkeypatch.setattr(session.subprocess, "run", lambda *args, **kwargs: done)

    answer('{"built": null, "count": 0}')
    assert refused(gpu=True).startswith("--gpu: there is no GPU: torch is built for CPUs only\n  install torch's build")
    answer('{"built": "13.0", "count": 0}')
    assert "torch finds none on this machine\n  check nvidia-smi and CUDA_VISIBLE_DEVICES" in refused(gpu=True)
    answer("no JSON")
    assert "torch cannot say whether there is a GPU" in refused(gpu=True)
    answer('{"built": "13.0", "count": 4}')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert session._first_gpu() == {"CUDA_VISIBLE_DEVICES": "3"}


def finding(check: str, status: Status) -> Finding:
    return Finding(check=check, status=status, seconds=1.23456, detail="so")


def test_exit_status_and_json() -> None:
    passed, skipped = finding("a", Status.PASSED), finding("b", Status.SKIPPED)
    assert Report(found=(passed, skipped)).exit_status == 0
    assert Report(found=(passed, skipped), unfinished=True).exit_status == 1
    assert Report(found=(passed, finding("c", Status.FAILED))).exit_status == 1
    assert json.loads(Report(found=(passed,)).to_json()) == [
        {"check": "a", "status": "passed", "seconds": 1.235, "detail": "so"}
    ]


def test_the_table_tells_what_was_skipped_for_one_reason_once() -> None:
    found = [finding("a", Status.PASSED), *(finding(f"b{n}", Status.SKIPPED) for n in range(5))]
    text = findings_text(found)
    assert "b0 and 4 more" in text
    assert "b1" not in text
    assert text.splitlines()[-1] == "1 passed, 5 skipped in 7 s"
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.processes
def test_the_folder_has_what_is_to_be_sent(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    kept = replace(FINE, names=("file",), function="tests.execute.selftest.fake_checks:file")
    report = selftest(output=out, chosen=[FINE, kept], table=findings_text)
    assert report.exit_status == 0
    assert sorted(p.name for p in out.iterdir()) == ["checks.jsonl", "kept.json", "machine.json", "table.txt"]
    machine = json.loads((out / "machine.json").read_text())
    assert {"stanza_sim", "python", "system", "cores", "torch"} <= machine.keys()
    assert str(Path.home()) not in "".join(p.read_text() for p in out.iterdir())
    assert [f.check for f in report.found] == ["one", "two", "file"]
    assert "3 passed in" in (out / "table.txt").read_text()


@pytest.mark.processes
def test_interrupted_it_leaves_what_was_done(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from stanza_sim.execute.selftest.outcome import Group
from stanza_sim.execute.selftest.session import selftest
from stanza_sim.report.selftest import findings_text
group = Group(names=("one", "two"), function="tests.execute.selftest.fake_checks:interrupts", limit_s=60, needs_s=0)
selftest(output=Path({str(tmp_path / "out")!r}), chosen=[group], table=findings_text)
"""
    root = Path(__file__).parents[3]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in done.stderr
    assert time.monotonic() - begin < 30
    (line,) = (tmp_path / "out" / "checks.jsonl").read_text().splitlines()
    assert json.loads(line)["check"] == "one"
    assert "1 passed" in (tmp_path / "out" / "table.txt").read_text()


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_real_checks_pass(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    some = [replace(g, names=tuple(n for n in g.names if n in SOME), limit_s=90.0) for g in groups(gpu=False)]
    report = selftest(output=tmp_path / "out", chosen=[g for g in some if g.names])
    assert [f.check for f in report.found] == list(SOME)
    assert all(f.status is Status.PASSED for f in report.found), [(f.check, f.detail) for f in report.found]
    assert not (tmp_path / "out" / "logs").exists()
    detail = {f.check: f.detail for f in report.found}
    assert detail["standin:head"].startswith("NCCL: equals SGD within ")
    assert "predicted" in detail["predicted"]
