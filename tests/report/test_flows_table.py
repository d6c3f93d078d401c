"""`stanza-sim flows` and `stanza_sim.simulate_flows`: what is printed, and what a malformed case is answered."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import stanza_sim
from stanza_sim.cli.app import app
from stanza_sim.report.flows import MOST_LINKS, flows_table
from stanza_sim.simulate.plain.fluid import TIE
from stanza_sim.simulate.prediction import FlowResult

NETWORK = Path(__file__).parents[1] / "simulate" / "network"
TWO = {
    "hosts": ["a", "b"],
    "links": [{"name": "wire", "bandwidth": 100.0, "latency": 0.5}, {"name": "spare", "bandwidth": 7}],
    "routes": [{"src": "a", "dst": "b", "links": ["wire"]}],
    "flows": [
        {"id": "one", "src": "a", "dst": "b", "bytes": 100},
        {"id": "two", "src": "a", "dst": "b", "bytes": 300},
        {"id": "local", "src": "a", "dst": "a", "bytes": 300, "deps": ["one"]},
    ],
}


def call(*args: object):
    return CliRunner().invoke(app, ["flows", *map(str, args)], env={"COLUMNS": "80", "RANK": None})


def write(tmp_path: Path, case: object) -> Path:
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case))
    return path


def test_the_table(tmp_path: Path) -> None:
    # Both share 100 B/s: the short one has its 100 bytes after 2 s, the long one has 200 left, for 2 s more.
    result = call(write(tmp_path, TWO))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "3 flows, the last complete after 4.5 s",
        "",
        "flow   completion, s  bottleneck",
        "one      2.500000000  wire",
        "two      4.500000000  wire",
        "local    2.500000000  none",
        "",
        "link   utilisation  limits",
        "wire         88.9%  2 flows",
        "spare         0.0%  no flows",
    ]


def test_json_and_file(tmp_path: Path) -> None:
    case, out = write(tmp_path, TWO), tmp_path / "out.json"
    result = call(case, "--json", "-o", out)
    assert result.exit_code == 0
    assert result.stdout == out.read_text()
    data = json.loads(result.stdout)
    assert list(data) == ["completion_s", "utilisation", "bottleneck", "makespan_s"]
    assert data["completion_s"] == pytest.approx({"one": 2.5, "two": 4.5, "local": 2.5})
    assert data["utilisation"] == pytest.approx({"wire": 4 / 4.5, "spare": 0.0})
    assert data["bottleneck"] == {"one": "wire", "two": "wire", "local": None}
    assert data["makespan_s"] == pytest.approx(4.5)
    assert "cannot be written" in call(case, "-o", tmp_path / "none" / "out.json").stderr


@pytest.mark.parametrize("path", sorted(NETWORK.glob("*.json")), ids=lambda p: p.stem)
def test_every_reference_case_by_the_command(path: Path) -> None:
    found = json.loads(call(path, "--json").stdout)["completion_s"]
    expected = json.loads(path.read_text())["simgrid_completion_s"]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
    lines = call(path).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3].startswith(next(iter(expected)))
    assert len([line for line in lines if "%" in line]) <= MOST_LINKS


def test_many_links_and_long_names_stay_readable() -> None:
    names = [f"flow-{i}-{'x' * 70}-end-{i}" for i in range(50)]
    links = [f"link-{i}-{'y' * 70}-{i}" for i in range(50)]
    result = FlowResult(
        completion_s=dict.fromkeys(names, 1234567.125),
        utilisation={link: i / 50 for i, link in enumerate(links)},
        bottleneck=dict(zip(names, links, strict=True)),
        makespan_s=1234567.125,
    )
    lines = list(flows_table(result))
    assert max(map(len, lines)) <= 80
    for i in range(50):  # all flows are listed, and can be told apart
        assert any(line.startswith(f"flow-{i}-x") and f"-end-{i} " in line for line in lines), i
    shares = [float(line.split("%")[0].rsplit(maxsplit=1)[1]) for line in lines if "%" in line]
    assert len(shares) == MOST_LINKS
    assert shares == sorted(shares, reverse=True)
    assert lines[-1] == "and 10 links that are no busier"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("[]", "should be an object"),
        ('{"hosts": NaN}', "NaN"),
        ("{}", "hosts: Field required"),
        (json.dumps(TWO | {"routes": [{"src": "a", "dst": "b", "links": ["no"]}]}), "routes.0: there is no link 'no'"),
        (
            json.dumps(TWO | {"links": [{"name": "wire", "bandwidth": 1e-307}]}),
            r"flows.0 \(one\): does not complete in finite time",
        ),
        (json.dumps(TWO | {"links": [{"name": "wire", "bandwidth": 5e-324}]}), "too small|finite time"),
    ],
)
def test_a_malformed_case_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    result = call(path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") <= 2

    assert re.search(says, result.stderr), result.stderr


def test_missing_files(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "no.json", "no such file"), (tmp_path, "cannot be read")):
        result = call(path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"error: {path}: " in result.stderr
        assert says in result.stderr


_NUMBERS = st.one_of(st.sampled_from([0, 5e-324, 1e-300, 1e-9, 1, 1e9, 1e300, 1.7e308]), st.floats(0, 1e308))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_NUMBERS, min_size=6, max_size=6))
def test_extreme_numbers_give_an_answer_or_a_message(tmp_path: Path, numbers: list[float]) -> None:
    bandwidth, latency, some, more, start, delay = numbers
    case = TWO | {
        "links": [{"name": "wire", "bandwidth": bandwidth, "latency": latency}],
        "flows": [
            {"id": "one", "src": "a", "dst": "b", "bytes": some, "start": start},
            {"id": "two", "src": "a", "dst": "b", "bytes": more, "delay": delay},
            {"id": "three", "src": "a", "dst": "b", "bytes": more, "deps": ["one"]},
        ],
    }
    result = call(write(tmp_path, case), "--json")
    assert result.exit_code in (0, 2), result.output
    assert isinstance(result.exception, SystemExit | None)
    if result.exit_code == 0:
        found = json.loads(result.stdout, parse_constant=pytest.fail)
        # Instants that differ by less than the solver's tolerance are one.
        assert found["completion_s"]["one"] >= (start + latency) * (1 - 2 * TIE)


@pytest.mark.processes
def test_the_package_offers_it_and_stays_quick() -> None:
    assert stanza_sim.simulate_flows(TWO).completion_s["two"] == pytest.approx(4.5)
    assert stanza_sim.FlowResult is FlowResult
    assert {"simulate_flows", "FlowResult", "__version__"} <= set(dir(stanza_sim))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stanza_sim.nothing
    code = "import sys, stanza_sim; print([m for m in ('simpy', 'numpy', 'pydantic', 'networkx') if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
