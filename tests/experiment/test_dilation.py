"""What an experiment says of dilated time, what ranks are told, and what a dilated run is predicted with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.dilation import dilated
from stanza_sim.experiment.emulation import dilated_run_notes, notes_on, on_testbed
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.jobs import jobs_of
from stanza_sim.experiment.network_cache import kept_path
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.experiment.scenario import Conditions
from tests.experiment.test_network_cache import HERE, profile, star

ONE_ROW = ("models=[{model: alexnet, batch_per_worker: 128}]", "strategies=[all_reduce]", "nodes=3")
EMULATED = (*ONE_ROW, "execute.compute=emulated")


def loaded_with(*changes: str) -> Loaded[Experiment]:
    return load_experiment("ec2_v100", [*EMULATED, *changes])


@pytest.mark.parametrize("value", ["0", "0.99", "-4", "true", "fast", "4x", ".inf", ".nan", "null", "[4]"])
def test_a_dilation_is_a_number_of_at_least_one(value: str) -> None:
    with pytest.raises(InputError, match=r"execute.dilate.* is not a number of times, 1 or more") as refused:
        loaded_with(f"execute.dilate={value}")
    assert refused.value.hint == "such as dilate: 40; 1 dilates nothing"


def test_what_computes_is_not_dilated() -> None:
    with pytest.raises(InputError, match="dilate is for emulated compute"):
        load_experiment("ec2_v100", ["execute.dilate=40"])
    assert load_experiment("ec2_v100", ["execute.dilate=1"]).value.execute.dilate == 1
    assert loaded_with("execute.dilate=2.5").value.execute.dilate == 2.5


def test_ranks_are_told_to_wait_longer_and_be_patient() -> None:
    plain, slow = loaded_with(), loaded_with("execute.dilate=40", "execute.timeout=30s")
    cluster = cluster_of(plain)
    plans = plans_of(plain, cluster)
    (undilated,) = jobs_of(plain, plans, cluster, {}, testbed=True)
    (job,) = jobs_of(slow, plans, cluster, {}, testbed=True)
    assert (undilated.dilation, job.dilation) == (1.0, 40.0)
    assert (undilated.timeout_s, job.timeout_s) == (60.0, 1200.0)
    assert replace(job.emulation, dilation=1.0) == undilated.emulation
    with pytest.raises(InputError, match=r"execute.dilate=40: only links of a testbed can be slowed down"):
        jobs_of(slow, plans, cluster, {}, testbed=False)


def test_few_iterations_run_unless_it_is_said_how_many() -> None:
    cluster = cluster_of(loaded_with())
    for changes, expected in (
        ((), (60, 10)),
        (("execute.dilate=40",), (4, 1)),
        (("execute.dilate=40", "training.iterations=30"), (30, 10)),
        (("execute.dilate=40", "training.data=digits"), (4, 1)),
    ):
        loaded = loaded_with(*changes)
        (job,) = jobs_of(loaded, plans_of(loaded, cluster), cluster, {}, testbed=True)
        assert (job.training.iterations, job.training.warmup) == expected


def test_a_dilated_network_is_kept_apart(tmp_path: Path) -> None:
    cluster = star(tmp_path)
    paths = {kept_path(dilated(cluster, n), HERE, realtime=True) for n in (1.0, 2.0, 4.0)}
    assert len(paths) == 3


def test_what_was_calibrated_is_seen_by_the_slow_clock(tmp_path: Path) -> None:
    """200 Mb/s dilated 4 times: 50 Mb/s, of which half is payload; 0.1 ms of latency and as much of overhead."""
    stated = star(tmp_path)
    seen = on_testbed(stated, profile(rate_Bps=6.25e6), 4.0)
    assert [link.bandwidth_Bps for link in seen.links] == [12.5e6] * len(seen.links)
    assert [link.latency_s for link in seen.links] == [0.125e-4] * len(seen.links)
    nic = seen.hosts[0].nic
    assert (nic.bandwidth_Bps, nic.efficiency, nic.overhead_s) == (25e6, 0.5, 0.25e-4)
    assert seen.wakeup_latency_s == 0.25e-4
    assert on_testbed(stated, profile(), 1.0).hosts[0].nic.overhead_s == 1e-4


def test_notes_say_what_is_not_dilated_and_how_long_it_takes(tmp_path: Path) -> None:
    loaded = loaded_with("execute.dilate=40")
    cluster = cluster_of(loaded)
    plans = plans_of(loaded, cluster)
    assert notes_on(cluster) == ()
    assert "weigh 40 times less" in " ".join(notes_on(cluster, 40.0))
    seen = on_testbed(cluster, profile(rate_Bps=31.25e6), 40.0)
    jobs = jobs_of(loaded, plans, cluster, {}, testbed=True)
    prediction = Conditions(loaded=loaded, cluster=seen).scenario(plans[0]).predict()
    took = replace(prediction, iteration_s=0.5)
    assert dilated_run_notes(cluster, seen, jobs, [took]) == (
        "by the dilated clock a message takes 5 us beside its bytes; the topology says 65 us",
        "1 runs of 4 iterations will take about 80 s",
    )
    for seconds, words in ((0.75, "2 min"), (30.0, "1 h 20 min")):
        *_, long = dilated_run_notes(cluster, seen, jobs, [replace(took, iteration_s=seconds)])
        assert long.endswith(f"about {words}")
