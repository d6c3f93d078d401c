"""Calibration of a testbed: what single messages get of links that are really shaped."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from stanza_sim.execute.calibrate import single
from stanza_sim.execute.calibrate.network import calibrate_network
from stanza_sim.execute.start.launch import Pool
from stanza_sim.experiment.emulation import places_in
from stanza_sim.experiment.run import run_experiment
from stanza_sim.profiles.network import mismatches, read_network, with_network, write_network
from stanza_sim.testbed import GOODPUT_SHARE, Testbed
from stanza_sim.testbed.plan import prefix_of
from stanza_sim.testbed.registry import Registry
from tests.testbed.testbed_clusters import load, star_text

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("testbed")]  # one machine has one set of names

RATE_Bps = 25e6


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{uuid4().hex[:8]}"
    yield name
    assert Registry().get(prefix_of(name, os.getuid())) is None


@pytest.mark.alone
def test_goodput_is_the_rate_less_headers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "BUDGET_S", 1.5)
    cluster = load(tmp_path, star_text(name, hosts=2))
    with Testbed(cluster) as bed, Pool(2, places=places_in(bed, cluster)) as pool:
        profile = calibrate_network(pool, cluster, testbed=True, realtime=True)
    (pair,) = profile.pairs
    assert pair.goodput_Bps.value == pytest.approx(GOODPUT_SHARE * RATE_Bps, rel=0.03)
    assert 0 < pair.overhead_s.value + pair.latency_s.value < 0.01
    assert 5_000 < pair.burst_bytes.value < 60_000  # the shaper's 10 kB, and a packet
    assert (
        mismatches(profile.model_copy(update={"machine": profile.machine.model_copy(update={"load": 0.0})}), cluster)
        == []
    )
    calibrated = with_network(cluster, profile)
    assert calibrated.links[0].bandwidth_Bps == pytest.approx(pair.goodput_Bps.value)


EXPERIMENT = """\
name: e
cluster: {cluster}
batch_per_worker: 4
models: [{{model: "stanza_sim.model.examples:digits_cnn", input_shape: [1, 8, 8]}}]
strategies: [{{strategy: all_reduce}}]
training: {{iterations: 5, warmup: 1}}
execute: {{compute: emulated}}
"""


def test_a_run_in_a_testbed_calibrates_it_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "BUDGET_S", 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load(tmp_path, star_text(name, hosts=2, rate="400Mbps"))
    experiment = tmp_path / "e.yaml"
    experiment.write_text(EXPERIMENT.format(cluster=tmp_path / "topology.yaml"))

    def ran() -> str:
        said: list[str] = []
        result = run_experiment(str(experiment), execute=True, testbed=True, say=said.append)
        assert result is not None
        assert "network: calibrated with single messages" in result.rows[0].prediction.cost_source
        return "\n".join(said)

    assert "calibrating the network" in ran()
    (kept,) = (tmp_path / "cache").rglob("*.json")
    profile = read_network(kept)
    # However busy this machine is now, what is kept is used.
    write_network(profile.model_copy(update={"machine": profile.machine.model_copy(update={"load": 0.0})}), kept)
    said = ran()
    assert "calibrating" not in said
    assert str(kept) in said
