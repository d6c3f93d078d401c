"""Finding and reading YAML: every kind of bad file names its file, line and key, and what would be right."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from stanza_sim.base import config, units
from stanza_sim.base.errors import InputError


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class _Link(config.Section):
    rate: units.Rate
    latency: units.Seconds = 0.0


class _Host(config.Section):
    name: str
    cores: config.Count = 1
    devices: tuple[str, ...] = ()
    link: _Link | None = None


class _File(config.Section):
    name: str = Field(description="name the cluster, such as `name: lab`")
    colour: _Colour = _Colour.RED
    share: config.Fraction = 1.0
    speed: config.Factor = 1.0
    hosts: Annotated[list[_Host], Field(min_length=1)]
    extra: dict[str, _Link] = Field(default_factory=dict)
    placement: tuple[str, ...] | str = ()


GOOD = """\
name: lab          # line 1
share: 0.5
hosts:
  - name: a
    cores: 4
    link: {rate: 10Gbps, latency: 25us}
  - name: b
    devices: [V100]
extra:
  cable:
    rate: 1GB/s
"""
HOSTS = GOOD[GOOD.index("hosts:") : GOOD.index("extra:")]


def _file(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _error(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        config.load(_file(folder, text), _File, overrides=overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2, message
    return message.replace(str(folder) + "/", "")


def test_a_good_file(tmp_path: Path) -> None:
    file = config.load(_file(tmp_path, GOOD), _File)
    assert file.hosts[0].link is not None
    assert file.hosts[0].link.rate == 1.25e9
    assert file.hosts[1].devices == ("V100",)
    assert file.extra["cable"].rate == 1e9


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (HOSTS, "hosts: []\n", ["x.yaml:3: hosts: is a list that is too short"]),
        ("cores: 4", "coers: 4", ["x.yaml:5: hosts.0.coers: unknown key", "did you mean cores?"]),
        ("name: lab", "nam: lab", ["x.yaml:1: nam: unknown key", "did you mean name?"]),
        ("rate: 1GB/s", "rate: 1GB/s\n    reta: 3", ["x.yaml:12: extra.cable.reta", "did you mean rate?"]),
        ("name: lab          # line 1\n", "", ["the key 'name' is missing", "name the cluster"]),
        ("  - name: a\n    cores: 4", "  - cores: 4", ["x.yaml:4: hosts.0: the key 'name' is missing"]),
        ("cores: 4", "cores: four", ["x.yaml:5: hosts.0.cores: is a text ('four')", "should be a whole number"]),
        ("cores: 4", "cores: '4'", ["hosts.0.cores: is a text", "should be a whole number"]),
        ("cores: 4", "cores: true", ["is a truth value", "should be a whole number"]),
        ("cores: 4", "cores: 1.5", ["hosts.0.cores", "whole number"]),
        ("cores: 4", "cores: 0", ["hosts.0.cores", "greater than or equal to 1"]),
        ("share: 0.5", "share: 1.5", ["x.yaml:2: share", "less than or equal to 1"]),
        ("share: 0.5", "speed: .inf", ["speed", "finite"]),
        ("share: 0.5", "speed: .nan", ["speed", "finite"]),
        ("share: 0.5", "speed: -1", ["speed", "greater than 0"]),
        ("share: 0.5", "colour: rde", ["x.yaml:2: colour: is a text ('rde')", "should be 'red' or 'blue'"]),
        ("share: 0.5", "placement: {a: 1}", ["x.yaml:2: placement: is a mapping", "should be a list or a text"]),
        ("rate: 10Gbps", "rate: 10GB", ["x.yaml:6: hosts.0.link.rate: '10GB' is not a rate", "GB/s"]),
        ("rate: 10Gbps", "rate: 10", ["hosts.0.link.rate: 10 has no unit"]),
        ("rate: 10Gbps", "rate: -10Gbps", ["hosts.0.link.rate: '-10Gbps' is negative"]),
        ("latency: 25us", "latency: 0", ["hosts.0.link.latency: 0 has no unit"]),
        ("devices: [V100]", "devices: V100", ["hosts.1.devices: is a text ('V100')", "should be a list"]),
        ("link: {rate: 10Gbps, latency: 25us}", "link: 10Gbps", ["hosts.0.link: is a text", "a mapping"]),
        ("  - name: b", "  - name: 3", ["x.yaml:7: hosts.1.name: is a number (3)", "should be a text"]),
        ("cores: 4", "cores: 4\n    cores: 5", ["x.yaml:6", "not valid YAML", "duplicate key"]),
        ("cores: 4", "cores: [4", ["not valid YAML"]),
        ("cores: 4", "cores: &x [*x]", ["alias"]),
        ("cores: 4", "cores: !!python/object:os.system 4", ["not valid YAML"]),
        ("cores: 4", "\tcores: 4", ["not valid YAML"]),
        ("cores: 4", "cores: 2020-02-31", ["cannot be read"]),
        ("cores: 4", "? [1, 2]\n    : 4", ["x.yaml"]),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, says: list[str]) -> None:
    assert old in GOOD
    message = _error(tmp_path, GOOD.replace(old, new, 1))
    for part in says:
        assert part in message


def test_files_that_hold_no_mapping(tmp_path: Path) -> None:
    assert "is empty" in _error(tmp_path, "")
    assert "is empty" in _error(tmp_path, "# only a comment\n")
    assert "holds a list" in _error(tmp_path, "- a\n- b\n")
    assert "holds a text" in _error(tmp_path, "hello")
    assert "UTF-8" in _error(tmp_path, b"\xff\xfe\x00\x01")
    assert "not valid YAML" in _error(tmp_path, b"a: \x00\x01")
    assert "not valid YAML" in _error(tmp_path, GOOD + "---\n" + GOOD)
    assert "not a text" in _error(tmp_path, "1: 2\n")
    assert "x.yaml" in _error(tmp_path, "a: " + "[" * 5000)
    with pytest.raises(InputError, match="no such file"):
        config.load(tmp_path / "missing.yaml", _File)
    with pytest.raises(InputError, match="cannot be read"):
        config.load(tmp_path, _File)


@given(st.integers(min_value=0, max_value=len(GOOD)))
def test_a_file_cut_short_never_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = _file(tmp_path_factory.mktemp("cut"), GOOD[:length])
    try:
        config.load(path, _File)
    except InputError as error:
        assert "x.yaml" in str(error)


@given(st.binary(max_size=60))
def test_random_bytes_never_escape_as_another_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = _file(tmp_path_factory.mktemp("raw"), raw)
    with pytest.raises(InputError, match=r"x\.yaml"):
        config.load(path, _File)


def test_several_problems_are_counted_and_the_unknown_key_comes_first(tmp_path: Path) -> None:
    message = _error(tmp_path, GOOD.replace("rate: 10Gbps", "reta: 10Gbps").replace("share: 0.5", "share: 7"))
    assert message.startswith("x.yaml:2: share: ")
    assert "and 2 more problems" in message


def test_overrides_are_set_before_the_check(tmp_path: Path) -> None:
    overrides = ["hosts.0.cores=8", "hosts.1.devices=[K80, K80]", "extra.wire.rate=1Gbps", "share=0.25", "name=a: b"]
    file = config.load(_file(tmp_path, GOOD), _File, overrides=overrides)
    assert (file.hosts[0].cores, file.hosts[1].devices, file.share, file.name) == (8, ("K80", "K80"), 0.25, "a: b")
    assert file.extra["wire"].rate == 125e6
    assert file.extra["cable"].rate == 1e9


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hosts.5.cores=1", ["--set hosts.5.cores=1", "'hosts' is a list and has no entry 5", "0 to 1"]),
        ("hosts.first.cores=1", ["no entry 'first'"]),
        ("name.first=1", ["'name' is a text ('lab'), which has no keys"]),
        ("hosts.0.coers=1", ["--set hosts.0.coers=1: unknown key", "did you mean cores?"]),
        ("hosts.0.link.rate=10GB", ["--set hosts.0.link.rate=10GB: '10GB' is not a rate"]),
        ("hosts.0.link={rate: 10GB}", ["--set hosts.0.link={rate: 10GB}: hosts.0.link.rate: '10GB' is not"]),
        ("hosts.0.link={rate: ", ["--set", "not valid YAML"]),
        ("cores", ["not key=value"]),
        ("=3", ["not key=value"]),
        ("a..b=3", ["not key=value"]),
        ("hosts.0.cores=", ["is nothing"]),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, says: list[str]) -> None:
    message = _error(tmp_path, GOOD, override)
    for part in says:
        assert part in message


def test_overrides_leave_the_data_alone() -> None:
    data: dict[str, object] = {"a": {"b": [1, 2]}}
    assert config.apply_overrides(data, ["a.b.1=5", "c.d=x"]) == {"a": {"b": [1, 5]}, "c": {"d": "x"}}
    assert data == {"a": {"b": [1, 2]}}


def test_find_looks_here_first_then_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = config.find("topologies", "star")
    assert shipped.is_absolute()
    (tmp_path / "topologies").mkdir()
    (tmp_path / "topologies" / "star.yaml").write_text(GOOD)
    (tmp_path / "topologies" / "mine.yaml").write_text(GOOD)
    (tmp_path / "experiments" / "e1").mkdir(parents=True)
    (tmp_path / "experiments" / "e1" / "experiment.yaml").write_text("cluster: ../../topologies/mine.yaml")
    assert config.find("topologies", "star").resolve() == (tmp_path / "topologies" / "star.yaml").resolve()
    assert {"mine", "star", "laptop"} <= set(config.available("topologies"))
    experiment = config.find("experiments", "e1")
    assert experiment == Path("experiments/e1/experiment.yaml")
    assert config.find("experiments", "experiments/e1") == experiment
    assert config.find("experiments", "experiments/e1/experiment.yaml") == experiment
    assert config.find("topologies", "../../topologies/mine.yaml", beside=experiment).samefile("topologies/mine.yaml")
    assert "e1" in config.available("experiments")


def test_find_names_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"unknown topology 'labtop'\n  did you mean laptop"):
        config.find("topologies", "labtop")
    with pytest.raises(InputError, match=r"did you mean V100"):
        config.find("devices", "v100")
    with pytest.raises(InputError, match=r"unknown device 'zzz'\n  known: "):
        config.find("devices", "zzz")
    with pytest.raises(InputError, match=r"lab\.yaml: no such file"):
        config.find("topologies", "lab.yaml")
    with pytest.raises(InputError, match="is a folder"):
        config.find("topologies", "./")
    with pytest.raises(InputError, match=r"no such file\n  give an experiment file"):
        config.find("experiments", "long" * 2000 + ".yaml")
    with pytest.raises(InputError, match="unknown experiment 'long"):
        config.find("experiments", "long" * 2000)
    with pytest.raises(InputError, match="unknown experiment ''"):
        config.find("experiments", "")
