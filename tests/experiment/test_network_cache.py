"""Which network profile a run uses: the given one, one kept from before, or one measured now and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from stanza_sim.cli.app import app
from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.execute import Backend, Workers
from stanza_sim.execute.start.protocol import RankInfo
from stanza_sim.execute.start.tasks import DescribeTask
from stanza_sim.experiment import network_cache
from stanza_sim.experiment.network_cache import cache_folder, kept_path, network_for
from stanza_sim.experiment.run import run_experiment
from stanza_sim.profiles.network import Estimate, Machine, NetworkProfile, PairTimes, read_network, write_network

ONE = Estimate(value=1.0, low=1.0, high=1.0)
HERE = Machine(device="cpu X", cores=2, kernel="6.1")
STAR = "name: {name}\nhosts: [{{name: n, count: {hosts}, cores: 2, nic: {{rate: {rate}}}}}]\nswitches: [{{name: s}}]\n"


def star(folder: Path, *, rate: str = "200Mbps", hosts: int = 3, name: str = "t") -> Cluster:
    path = folder / "t.yaml"
    path.write_text(STAR.format(name=name, hosts=hosts, rate=rate))
    return load_cluster(path)


def profile(machine: Machine = HERE, rate_Bps: float = 25e6, date: str = "2026-01-01T00:00:00Z") -> NetworkProfile:
    some = Estimate(value=1e-4, low=1e-4, high=1e-4)
    goodput = Estimate(value=0.5 * rate_Bps, low=0.5 * rate_Bps, high=0.5 * rate_Bps)
    pair = PairTimes(
        sender_Bps=rate_Bps,
        receiver_Bps=rate_Bps,
        source=0,
        destination=1,
        messages=9,
        latency_s=some,
        overhead_s=some,
        posting_s=some,
        goodput_Bps=goodput,
        burst_bytes=Estimate(value=0.0, low=0.0, high=0.0),
    )
    return NetworkProfile(
        cluster="t",
        date=date,
        testbed=True,
        ranks=3,
        machine=machine,
        pairs=(pair,),
        hop_s=some,
        reduce_Bps=ONE,
        update_Bps=ONE,
    )


@dataclass
class Ranks:
    """They only say where they are."""

    world_size: int = 3
    is_main: bool = True

    def run(self, task: object, timeout_s: float | None = None) -> list[RankInfo]:
        assert isinstance(task, DescribeTask)
        return [RankInfo(host="n-0", device="cpu X")] * 3


@dataclass
class Setting:
    """A run's way to its network profile, with what was measured and said."""

    folder: Path
    measured: list[dict[str, object]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    load: float = 0.0

    def find(
        self, cluster: Cluster, given: NetworkProfile | None = None, *, testbed: bool = True, realtime: bool = True
    ) -> NetworkProfile | None:
        self.said.clear()
        return network_for(
            cast(Workers, Ranks()),
            cluster,
            given=given,
            testbed=testbed,
            realtime=realtime,
            backend=Backend.AUTO,
            say=self.said.append,
        )

    @property
    def kept(self) -> list[Path]:
        return sorted(self.folder.rglob("*.json"))


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    made = Setting(tmp_path / "cache")
    made.folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.folder))
    monkeypatch.setattr(os, "getloadavg", lambda: (made.load, made.load, made.load))

    def calibrate_network(workers: Workers, cluster: Cluster, **how: object) -> NetworkProfile:
        made.measured.append(how)
        return profile(HERE.model_copy(update={"load": made.load}), date=f"2026-01-0{len(made.measured)}")

    monkeypatch.setattr(network_cache, "calibrate_network", calibrate_network)
    return made


def test_a_testbed_is_calibrated_once_and_kept(setting: Setting, tmp_path: Path) -> None:
    cluster = star(tmp_path)
    first = setting.find(cluster)
    assert "less than 20 s" in setting.said[0]
    assert setting.find(cluster) == first
    assert len(setting.measured) == 1
    assert setting.measured[0]["testbed"] is True
    (kept,) = setting.kept
    assert kept.parent == setting.folder / "stanza-sim" / "networks"
    assert read_network(kept) == first
    assert str(kept) in setting.said[0]


def test_what_another_calibration_depends_on_is_kept_apart(setting: Setting, tmp_path: Path) -> None:
    setting.find(star(tmp_path))
    setting.find(star(tmp_path, rate="100Mbps"))
    setting.find(star(tmp_path, hosts=4))
    setting.find(star(tmp_path), realtime=False)
    assert len(setting.measured) == len(setting.kept) == 4
    here = network_cache.machine_here(cast(Workers, Ranks()))
    cluster = star(tmp_path)
    for changed in ({"kernel": "other"}, {"device": "cuda Y"}, {"cores": 999}, {"versions": {"torch": "0"}}):
        assert kept_path(cluster, here.model_copy(update=changed), realtime=True) not in setting.kept
    assert kept_path(cluster, here.model_copy(update={"load": 9.0}), realtime=True) in setting.kept


def test_a_given_profile_is_used_as_it_is_and_warns(setting: Setting, tmp_path: Path) -> None:
    given = profile(Machine(device="cuda Y", cores=2, kernel="other"))
    assert setting.find(star(tmp_path), given) is given
    assert setting.measured == []
    assert setting.kept == []
    text = "\n".join(setting.said)
    assert (
        "warning: the network profile of 2026-01-01T00:00:00Z was measured with device cuda Y, here it is cpu X" in text
    )
    assert "not in real time" in text
    setting.find(star(tmp_path, rate="100Mbps"), given)
    assert "no messages from a NIC of 100 Mbps" in "\n".join(setting.said)


def test_outside_of_a_testbed_nothing_is_measured(setting: Setting, tmp_path: Path) -> None:
    assert setting.find(star(tmp_path), testbed=False) is None
    assert setting.measured == []


def test_what_was_kept_and_is_damaged_is_measured_anew(setting: Setting, tmp_path: Path) -> None:
    setting.find(star(tmp_path))
    setting.kept[0].write_text("{")
    setting.find(star(tmp_path))
    assert len(setting.measured) == 2
    assert "not JSON" in setting.said[0]
    assert read_network(setting.kept[0]).date == "2026-01-02"


def test_a_calibration_on_a_busy_machine_serves_until_it_is_idle(setting: Setting, tmp_path: Path) -> None:
    setting.load = 7.0
    setting.find(star(tmp_path))
    assert "busy machine" in "\n".join(setting.said)
    setting.find(star(tmp_path))
    assert len(setting.measured) == 1
    setting.load = 0.1
    setting.find(star(tmp_path))
    assert len(setting.measured) == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert setting.find(star(tmp_path)) is not None
    assert "not kept for the next run" in "\n".join(setting.said)


def test_names_of_clusters_make_file_names(setting: Setting, tmp_path: Path) -> None:
    path = kept_path(star(tmp_path, name='"../a b/c"'), HERE, realtime=False)
    assert path.parent == setting.folder / "stanza-sim" / "networks"
    assert path.name.startswith("a-b-c-")


def test_the_cache_is_in_the_home_folder_unless_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for stated in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
        assert cache_folder() == tmp_path / ".cache" / "stanza-sim"


# --- in a prediction -------------------------------------------------------------------------------------------------

EXPERIMENT = """\
name: e
cluster: {cluster}
models: [{{model: alexnet, batch_per_worker: 8}}]
strategies: [{{strategy: all_reduce}}]
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    star(tmp_path)
    path = tmp_path / "e.yaml"
    path.write_text(EXPERIMENT.format(cluster=tmp_path / "t.yaml"))
    return path


def test_a_prediction_uses_a_network_profile_and_says_so(experiment: Path, tmp_path: Path) -> None:
    network = tmp_path / "n.json"
    write_network(profile(), network)
    said: list[str] = []
    plain = run_experiment(str(experiment))
    measured = run_experiment(str(experiment), profiles=[network], say=said.append)
    assert plain is not None
    assert measured is not None
    slow, fast = measured.rows[0].prediction, plain.rows[0].prediction
    assert slow.cost_source == f"{fast.cost_source}; network: calibrated with single messages (2026-01-01T00:00:00Z)"
    assert slow.iteration_s > 1.5 * fast.iteration_s  # half of the rate is lost
    assert said == []
    other = run_experiment(str(experiment), overrides=["network.rate=100Mbps"], profiles=[network], say=said.append)
    assert other is not None
    assert "100 Mbps" in said[0]


def test_two_networks_are_one_too_many(experiment: Path, tmp_path: Path) -> None:
    network = tmp_path / "n.json"
    write_network(profile(), network)
    found = CliRunner().invoke(app, ["run", str(experiment), "--profile", str(network), "--profile", str(network)])
    assert found.exit_code == 2
    assert "a second profile of a network" in found.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["star"], "Missing option"),
        (["missing", "-o", "p.json"], "unknown topology"),
        (["star", "-o", "missing/p.json"], "lies in no folder"),
        (["star", "-o", "."], "is a folder"),
        (["star", "--rate", "5", "-o", "p.json"], "has no unit"),
        (["star", "--model", "vgg17", "-o", "p.json"], "unknown model"),
        (["star", "-o", "p.json"], "this is one machine"),
        (["torus", "--testbed", "-o", "p.json"], "cannot be emulated"),
    ],
)
def test_calibrate_says_what_is_wrong(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["calibrate", *arguments])
    assert found.exit_code == 2
    assert says in found.output
    assert list(tmp_path.iterdir()) == []
