"""Pictures of a sweep's file: which axis, which pictures, who wins where."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.studies.sweep import pictures
from stanza_sim.studies.sweep.pictures import draw_sweep

pytest.importorskip("matplotlib")
EXPERIMENTS = Path(__file__).parents[3] / "experiments"


@pytest.fixture
def sweep(tmp_path):
    for name in ("sweep.csv", "sweep-crossovers.csv"):
        shutil.copy(EXPERIMENTS / "bandwidth_crossover" / name, tmp_path)
    return tmp_path / "sweep.csv"


def drawn(monkeypatch, path, **options):
    """The pictures that would be written, by name, with what draws them."""
    found = {}
    monkeypatch.setattr(pictures, "save", lambda drawings, folder, tell: found.update({d.name: d for d in drawings}))
    draw_sweep(path, **options)
    return found


def test_the_command_draws_beside_the_file(sweep, monkeypatch):
    text = sweep.read_text().splitlines(keepends=True)
    sweep.write_text("".join(line for line in text if not line.split(",")[2].startswith(("vgg", "incep", "res"))))
    result = CliRunner().invoke(app, ["plot", str(sweep)])
    assert result.exit_code == 0, result.output
    names = {"sweep.csv", "sweep-crossovers.csv"}
    names |= {f"sweep{what}.{suffix}" for what in ("", "-crossovers") for suffix in ("png", "svg")}
    assert {path.name for path in sweep.parent.iterdir()} == names
    assert "<!-- network.rate, Gb/s -->" in (sweep.parent / "sweep.svg").read_text()


def test_the_winner_changes_where_the_file_of_crossovers_says(sweep, monkeypatch):
    found = drawn(monkeypatch, sweep)
    (alexnet, *_) = found["sweep"].draw.keywords["curves"]
    (first, second, *_) = alexnet.winners()
    assert first[2] == "one node alone"
    assert (second[0], second[2]) == (first[1], "Stanza, 1F1B")
    assert first[1] == pytest.approx(1.334, abs=0.002)  # Gb/s
    assert next(turn.low for turn in alexnet.turns) == pytest.approx(1.0)


def test_a_picture_for_each_value_of_the_other_keys(monkeypatch):
    path = EXPERIMENTS / "paper_speedup" / "sweep.csv"
    found = drawn(monkeypatch, path)
    names = ["sweep-ec2-p3-10", "sweep-azure-nc6-10"]
    assert list(found) == [one for name in names for one in (name, f"{name}-crossovers")]
    assert found[names[0]].draw.keywords["x"] == "nodes"
    curves = found[names[0]].draw.keywords["curves"]
    apart = curves[0].apart()
    strategies = [curves[0].strategies[label] for label in apart]
    assert len(set(strategies)) == len(strategies) < len(curves[0].dots)
    only = drawn(monkeypatch, path, over="nodes", where=["cluster=ec2-p3-10"])
    assert list(only) == ["sweep", "sweep-crossovers"]


WRONG = [
    ({"over": "batch"}, "'batch' is no key that the sweep varies"),
    ({"over": "cluster"}, "the values of cluster are not numbers of one kind"),
    ({"where": ["cluster=none"]}, "no line has cluster=none"),
    ({"where": ["model=vgg16"]}, "'model' is no key"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_what_cannot_be_drawn_is_refused(options, told):
    with pytest.raises(InputError, match=told):
        draw_sweep(EXPERIMENTS / "paper_speedup" / "sweep.csv", **options)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "sweep,nodes,model\n", 'sweep,nodes,model,label,strategy,samples_per_s\n"x']
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=r"x\.csv"):
        draw_sweep(tmp_path / "x.csv")
