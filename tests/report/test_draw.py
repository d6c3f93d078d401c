"""Drawings of clusters: what the text says, that it fits, and that pictures are files that can be drawn again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import stanza_sim as ss
from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.report import picture
from stanza_sim.report.alike_picture import AlikePicture
from stanza_sim.report.draw import draw_picture, draw_text
from stanza_sim.report.drawing import span_of

Figure = pytest.importorskip("matplotlib.figure").Figure


def _some(cluster: Cluster) -> dict[str, float]:
    return {link.label: (k % 11) / 10 for k, link in enumerate(cluster.links)}


@pytest.mark.parametrize("name", config.available("topologies"))
def test_every_topology_fits_80_columns(name: str) -> None:
    cluster = load_cluster(name)
    for utilisation in (None, _some(cluster)):
        text = draw_text(cluster, utilisation)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert text.startswith(f"{name}: ")
        assert "…" not in text
        assert text == draw_text(cluster, utilisation)
        plain = draw_text(cluster, utilisation, plain=True)
        assert plain.isascii()
        assert len(plain) == len(text)


def test_a_leaf_spine_as_text() -> None:
    cluster = load_cluster("leaf-spine")
    busy = {link.label: 0.25 for link in cluster.links} | {"link leaf-2 to spine-1": 0.98}
    assert draw_text(cluster, busy) == (
        """\
leaf-spine: 32 hosts, 32 ranks, 6 switches; routing spread

spine-0..1  2 switches
│
│  2 links each: 9.9 Gbps goodput, 1 us
│  up    ███████░░░░░░░░░░░░░  34%, most 98%: link leaf-2 to spine-1
│  down  █████░░░░░░░░░░░░░░░  25%, most 25%: link spine-0 to leaf-0
└─ leaf-0..3  4 switches
   │
   │  1 NIC each: 9.9 Gbps goodput, 25 us
   │  up    █████░░░░░░░░░░░░░░░  25%, most 25%: node-0 transmit side
   │  down  █████░░░░░░░░░░░░░░░  25%, most 25%: node-0 receive side
   └─ node-0..31  32 hosts, each 8 cores, V100
"""
    )


def test_links_that_are_not_known_are_left_out() -> None:
    text = draw_text(load_cluster("star", nodes=3), {"node-1 receive side": 0.5})
    assert "down  ██████████░░░░░░░░░░  50%\n" in text
    assert "up " not in text


def test_one_that_differs_has_a_line_of_its_own(tmp_path: Path) -> None:
    text = config.find("topologies", "star").read_text() + "overrides:\n  node-2: {device_speed: 0.8}\n"
    (tmp_path / "t.yaml").write_text(text)
    drawn = draw_text(load_cluster(tmp_path / "t.yaml"))
    assert "node-2  8 cores, V100, speed 0.8" in drawn
    assert "node-0 .. node-3  3 hosts, each 8 cores, V100" in drawn


def test_spans() -> None:
    assert span_of(["a"]) == "a"
    assert span_of(["n-3", "n-4", "n-5"]) == "n-3..5"
    assert span_of(["n-3", "n-5"]) == "n-3 .. n-5"
    assert span_of(["x", "y"]) == "x .. y"


@pytest.mark.parametrize("name", ["leaf-spine", "multi-gpu", "torus", "ring", "laptop"])
def test_pictures(tmp_path: Path, name: str) -> None:
    cluster = load_cluster(name)
    draw_picture(cluster, tmp_path / "a.png", _some(cluster))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    for file in ("a.svg", "b.svg"):
        draw_picture(cluster, tmp_path / file)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("<g id=") > len(cluster.hosts)


def test_pictures_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = load_cluster("star")
    with pytest.raises(InputError, match=r"cannot draw a \.txt"):
        draw_picture(cluster, tmp_path / "a.txt")
    with pytest.raises(InputError, match="cannot be written"):
        draw_picture(cluster, tmp_path / "none" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'stanza-sim\[plot\]'"):
        draw_picture(cluster, tmp_path / "a.png")


def test_the_command_draws(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from stanza_sim.cli.app import app

    picture = tmp_path / "c.svg"
    result = CliRunner().invoke(app, ["show", "cluster", "ring", "--nodes", "5", "--picture", str(picture)])
    assert result.exit_code == 0
    assert result.output.endswith(draw_text(load_cluster("ring", nodes=5)))
    assert picture.read_text().startswith("<?xml")
    for arguments in (["ring", "--picture", "c.txt"], ["--picture", str(picture)]):
        assert CliRunner().invoke(app, ["show", "cluster", *arguments]).exit_code == 2


def _texts_and_lines(cluster: Cluster, kind: Any) -> tuple[list[str], int]:
    axes = Figure().add_subplot()
    kind(cluster=cluster, utilisation=_some(cluster)).draw(axes)
    return [text.get_text() for text in axes.texts], len(axes.lines)


def test_nics_of_a_host_are_one_line_with_their_count() -> None:
    host = {"name": "dgx", "cores": 8, "devices": ["A100"] * 4, "intra": {"kind": "nvlink", "rate": "300GB/s"}}
    fabric = {"kind": "leaf-spine", "leaves": 2, "hosts_per_leaf": 2, "spines": 1, "rate": "400Gbps"}
    hosts = [{**host, "nics": 4, "nic": {"rate": "200Gbps"}}]
    cluster = ss.load_cluster({"name": "d", "hosts": hosts, "fabric": fabric})
    texts, lines = _texts_and_lines(cluster, picture._Picture)
    assert texts.count("4 x") == 4
    assert lines == 4 + 2 + 2 * 4  # one to each host, two to the spine, and what joins devices
    assert not picture._cannot_be_read(cluster)


def test_of_a_large_cluster_what_is_alike_is_drawn_once(tmp_path: Path) -> None:
    host = {"name": "n", "cores": 8, "devices": ["A100"] * 8, "intra": {"kind": "nvlink", "rate": "300GB/s"}}
    topology = {"name": "ft", "hosts": [{**host, "nic": {"rate": "200Gbps"}}], "fabric": {"kind": "fat-tree", "k": 8}}
    cluster = ss.load_cluster(topology)
    assert picture._cannot_be_read(cluster)
    texts, lines = _texts_and_lines(cluster, AlikePicture)
    assert lines == 3
    shown = set(texts)
    assert "core-0..15\n16 switches" in shown
    assert any(text.startswith("n-0..127\n128 hosts\n8 cores, 8 x A100 each\n8 ranks each\n") for text in shown)
    assert any(text.startswith("1 NIC each: 200 Gbps goodput") and "\nbusy: mean " in text for text in shown)
    draw_picture(cluster, tmp_path / "ft.svg")
    assert (tmp_path / "ft.svg").stat().st_size < 100_000


def test_kinds_that_differ_are_drawn_each() -> None:
    hosts = [{"name": "a", "count": 60, "cores": 8, "nic": {"rate": "10Gbps"}}]
    topology = {"name": "two", "hosts": hosts, "switches": [{"name": "s"}], "overrides": {"a-3": {"cores": 4}}}
    texts, lines = _texts_and_lines(ss.load_cluster(topology), AlikePicture)
    assert lines == 2
    assert {text.partition("\n")[0] for text in texts} >= {"a-3", "a-0 .. a-59", "s"}
