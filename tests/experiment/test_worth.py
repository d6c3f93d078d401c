"""What hosts cost and how well they are used: prices, time and cost to train, MFU."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.run import run_experiment
from stanza_sim.experiment.worth import sample_flops
from stanza_sim.model import zoo
from stanza_sim.report.describe import print_cluster
from stanza_sim.report.result import Result, result_object
from stanza_sim.report.table import print_result

HOSTS = {"name": "a", "count": 4, "cores": 8, "devices": ["V100"], "nic": {"rate": "10Gbps"}, "price_per_hour": 3}
V100_FP32 = 15.7e12


def run(folder: Path, *changes: str, **cluster: object) -> Result:
    topology = {"name": "paid", "hosts": [HOSTS], "switches": [{"name": "s"}], **cluster}
    (folder / "paid.yaml").write_text(yaml.safe_dump(topology))
    experiment = {
        "name": "money",
        "cluster": "paid.yaml",
        "models": ["resnet50"],
        "strategies": ["all_reduce", "local", "parameter_server"],
    }
    (folder / "money.yaml").write_text(yaml.safe_dump(experiment))
    found = run_experiment(str(folder / "money.yaml"), overrides=changes)
    assert found is not None
    return found


def test_prices_and_training(tmp_path: Path) -> None:
    result = run(tmp_path, "training.epochs=90", "training.samples=1000000", overrides={"a-3": {"price_per_hour": 5.5}})
    everyone, one, _ = result.rows
    assert (everyone.price_per_hour, one.price_per_hour) == (14.5, 3)  # one node alone is paid for alone
    for row in result.rows:
        rate = row.prediction.samples_per_s
        assert row.price_per_hour is not None and row.cost_to_train is not None
        assert row.samples_per_dollar == pytest.approx(rate * 3600 / row.price_per_hour)
        assert row.time_to_train_s == pytest.approx(90e6 / rate)
        assert row.cost_to_train == pytest.approx(90e6 / rate / 3600 * row.price_per_hour)
    told = json.loads(json.dumps(result_object(result)))["runs"][0]["predicted"]
    assert told["cost_to_train"] == everyone.cost_to_train and told["mfu"] == everyone.mfu
    out = io.StringIO()
    print_result(result, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    begin = next(i for i, line in enumerate(lines) if "samples/$" in line)
    assert lines[begin].split() == ["strategy", "price", "samples/$", "time", "to", "train", "cost", "to", "train"]
    assert lines[begin + 3].split()[:2] == ["local", "3.00"]
    assert max(map(len, lines)) <= 80


def test_mfu(tmp_path: Path) -> None:
    flops = sample_flops(zoo.get("resnet50"))
    assert flops == pytest.approx(3 * 2 * 4.09e9, rel=0.03)  # 4.09 G multiply-adds forward, about twice that backward
    for row in run(tmp_path).rows:
        devices = 1 if row.strategy == "local" else 4  # a server's device is one that could train
        assert row.mfu == pytest.approx(row.prediction.samples_per_s * flops / (devices * V100_FP32))
        assert row.price_per_hour is not None and row.time_to_train_s is None
    half = run(tmp_path, "precision=fp16", "strategies=[local]").rows[0]
    assert half.mfu == pytest.approx(half.prediction.samples_per_s * flops / 125e12)


def test_some_hosts_without_a_price(tmp_path: Path) -> None:
    hosts = [HOSTS, {**HOSTS, "name": "b", "count": 2, "price_per_hour": None}]
    everyone, one, _ = run(tmp_path, hosts=hosts).rows
    assert everyone.samples_per_dollar is None
    assert everyone.notes == ("no samples per dollar: b-0 and 1 more of 6 hosts without price_per_hour",)
    assert one.price_per_hour == 3 and one.notes == ()


def test_show_cluster_has_the_price(tmp_path: Path) -> None:
    run(tmp_path, hosts=[HOSTS, {**HOSTS, "name": "b", "count": 2, "price_per_hour": None}])
    out = io.StringIO()
    print_cluster(load_cluster(tmp_path / "paid.yaml"), Console(file=out, width=80))
    assert "12.00 dollars an hour; 2 hosts state none" in out.getvalue()


def test_a_price_tells_no_hosts_apart(tmp_path: Path) -> None:
    plain = run(tmp_path, "strategies=[all_reduce]").rows[0].prediction
    other = run(tmp_path, "strategies=[all_reduce]", overrides={"a-1": {"price_per_hour": 9}}).rows[0].prediction
    assert plain.iteration_s == other.iteration_s
    assert list(plain.sent_bytes) == list(other.sent_bytes) == [0]  # folded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.epochs=9"], "how many samples an epoch of `synthetic` data has is not known"),
        (["training.samples=9"], "`samples` has no use without `epochs`"),
        (["training.epochs=0"], "training.epochs"),
    ],
)
def test_what_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_experiment("ec2_v100", changes)


def test_digits_are_known() -> None:
    assert load_experiment("laptop", ["training.epochs=2"]).value.training.all_samples == 2 * 1438


def test_what_is_computed_again_counts_once() -> None:
    plain = zoo.get("resnet50")
    blocks = [replace(b, backward_input_flops=b.backward_input_flops + 7, again_flops=7) for b in plain.blocks]
    assert sample_flops(replace(plain, blocks=tuple(blocks))) == sample_flops(plain)


@pytest.mark.parametrize("price", [-1, ".inf", "cheap"])
def test_a_price_is_a_number_of_dollars(tmp_path: Path, price: object) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\nhosts: [{{name: a, cores: 1, price_per_hour: {price}}}]\n")
    with pytest.raises(InputError, match="price_per_hour"):
        load_cluster(path)
