"""Rows that are not possible: reported, and the others run. A rate without a network: a note."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stanza_sim.base.errors import InputError
from stanza_sim.experiment.rows import Plan
from stanza_sim.experiment.run import run_experiment
from stanza_sim.experiment.scenario import Scenario
from stanza_sim.report.folder import files
from stanza_sim.report.result import Result, result_object
from stanza_sim.report.table import print_result
from stanza_sim.simulate import Prediction

HEADLESS = {"strategy": "stanza", "label": "cut first", "settings": {"cut": "conv1"}}
CROWDED = {"strategy": "parameter_server", "label": "crowd", "settings": {"servers": 4}}
FINE = {"strategy": "all_reduce", "label": "fine"}


def run(*rows: dict[str, object], models: Sequence[str] = ("alexnet",), changes: Sequence[str] = ()) -> Result:
    overrides = [f"models={json.dumps(list(models))}", f"strategies={json.dumps(rows)}", "nodes=4", *changes]
    found = run_experiment("ec2_v100", overrides=overrides)
    assert found is not None
    return found


def test_other_rows_run() -> None:
    result = run(CROWDED, FINE, HEADLESS, models=["alexnet", "vgg16"])
    assert [(row.model, row.label) for row in result.rows] == [("alexnet", "fine"), ("vgg16", "fine")]
    told = result_object(result)["infeasible"]
    assert isinstance(told, list)
    assert [(one["model"], one["label"]) for one in told] == [
        ("alexnet", "crowd"),
        ("alexnet", "cut first"),
        ("vgg16", "crowd"),
        ("vgg16", "cut first"),
    ]
    assert "4 dedicated servers leave 0 workers of 4 nodes; use at most 3 servers" in told[0]["reason"]
    assert [name for name, _ in files(result) if name.startswith("schedules")] == [
        "schedules/01-alexnet-fine.txt",
        "schedules/02-vgg16-fine.txt",
    ]
    out = io.StringIO()
    print_result(result, Console(file=out, width=80))
    text = out.getvalue().splitlines()
    begin = text.index("infeasible")
    assert text[begin + 1].startswith("crowd: --set strategies=")  # of both models, and so told once
    assert any("(alexnet): " in line for line in text[begin:])


def test_what_is_found_when_it_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Scenario.predict_with_spread

    def picky(self: Scenario, **how: Any) -> Prediction:
        if self.schedule.name == "stanza":
            raise InputError("does not fit", where="here", hint="make it smaller")
        return predict(self, **how)

    monkeypatch.setattr(Scenario, "predict_with_spread", picky)
    result = run({"strategy": "stanza", "label": "found late"}, FINE, changes=["batch_per_worker=8"])
    assert [(one.label, one.reason) for one in result.infeasible] == [
        ("found late", "here: does not fit; make it smaller")
    ]
    assert [row.label for row in result.rows] == ["fine"]


MIXED = """\
name: mixed
hosts: [{name: n, count: 2, cores: 8, devices: [V100], nic: {rate: 10Gbps}, reduce_rate: 5GB/s}]
switches: [{name: s}]
cpu_ranks_per_host: 1
"""


def test_what_cannot_be_predicted_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That only a simulation of it would find out is known before ranks start, and the other rows are run."""
    (tmp_path / "t.yaml").write_text(MIXED)
    serving = {"strategy": "parameter_server", "label": "fine", "settings": {"servers": 2}}
    rows = [{"strategy": "all_reduce", "label": "computes on cores"}, serving]
    changes = [f"cluster={tmp_path / 't.yaml'}", f"strategies={json.dumps(rows)}", "models=[alexnet]"]
    changes += ["execute.compute=emulated", "batch_per_worker=8"]
    plain = run_experiment("ec2_v100", overrides=changes)
    started: list[str] = []

    def executed(loaded: Any, cluster: Any, plans: Sequence[Plan], *_: Any, **how: Any) -> Result:
        started.extend(plan.strategy.title for plan in plans)
        return Result(experiment="", rows=())

    monkeypatch.setattr("stanza_sim.experiment.run._executed", executed)
    result = run_experiment("ec2_v100", overrides=changes, execute=True)
    assert plain is not None and result is not None
    assert started == ["fine"] and result.infeasible == plain.infeasible
    assert "would be computed on the cores of n-0" in result.infeasible[0].reason
    with pytest.raises(InputError, match="every repeat would be the same"):  # before anything runs
        run_experiment("ec2_v100", overrides=[*changes, "simulation.repeats=3"], execute=True)


def test_none_is_possible() -> None:
    with pytest.raises(InputError) as caught:
        run(CROWDED, HEADLESS)
    assert caught.value.message == "none of 2 rows is possible"
    assert "alexnet, crowd: " in str(caught.value) and "alexnet, cut first: " in str(caught.value)
    with pytest.raises(InputError, match="4 dedicated servers leave 0 workers"):  # one reason is told as it is
        run(CROWDED, models=["alexnet", "vgg16"])


def test_what_concerns_all_rows_is_told_once() -> None:
    with pytest.raises(InputError, match="every repeat would be the same"):
        run(FINE, {**FINE, "label": "again"}, changes=["simulation.repeats=3"])


def test_a_rate_without_a_network_is_a_note() -> None:
    told: list[str] = []
    overrides = ["models=[alexnet]", "strategies=[local]", "nodes=1", "network.rate=10Gbps"]
    result = run_experiment("ec2_v100", overrides=overrides, say=told.append)
    assert result is not None and len(result.rows) == 1
    assert told == ["note: --set network.rate=10Gbps: there is one host, so it changes nothing"]
