"""What `show` prints as JSON, and the keys of experiment files."""

import json

import pytest
from typer.testing import CliRunner

from stanza_sim import strategies
from stanza_sim.base import config
from stanza_sim.base.keys import keys_of
from stanza_sim.cli.app import app
from stanza_sim.experiment.file import Experiment, load_experiment


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("cluster", config.available("topologies")),
        ("device", config.available("devices")),
        ("strategy", strategies.names()),
    ],
)
def test_names_and_each_of_them_as_json(what, names):
    assert json.loads(call(what, "--json")) == names
    for name in (names[0], names[-1]):
        assert json.loads(call(what, name, "--json")) or what == "strategy"


def test_a_busy_cluster_as_json():
    found = json.loads(call("cluster", "--run", "ec2_v100", "--model", "alexnet", "--row", "all-reduce", "--json"))
    assert (found["model"], found["row"], len(found["hosts"])) == ("alexnet", "all-reduce", 10)
    assert max(link["busy"] or 0 for link in found["links"]) == pytest.approx(0.94, abs=0.02)
    assert "receive side" in found["bottleneck"]


def test_every_key_of_an_experiment_is_explained():
    keys = json.loads(call("experiment-keys", "--json"))
    assert len({key["path"] for key in keys}) == len(keys) > 50
    assert all(key["meaning"] and key["takes"] not in ("value", "anything") for key in keys)
    by_path = {key["path"]: key for key in keys}
    assert by_path["network.rate"]["takes"] == "rate, such as 25Gbps"
    assert by_path["execute.timeout"]["default"] == "60s"
    assert by_path["models.N.model"]["default"] is None
    text = call("experiment-keys")
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{path}: " in text for path in by_path)


def test_keys_are_those_that_set_takes():
    plain = [key for key in keys_of(Experiment) if key.default and ".N" not in key.path and key.takes == "number"]
    for key in plain:
        if key.default != "none" and not key.path.startswith(("simulation", "training.loss", "execute")):
            load_experiment("ec2_v100", [f"{key.path}={key.default}"])


def test_keys_with_a_word():
    assert call("experiment-keys", "warm-up").count("training.") >= 2
    result = CliRunner().invoke(app, ["show", "experiment-keys", "nothing-like-it"])
    assert result.exit_code == 2
    assert "leave it out" in result.output
