"""Losses of full hosts: the share of a device that collectives take, overhead of iterations, barriers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, Losses, Nic
from stanza_sim.schedule import Schedule
from stanza_sim.simulate import Collectives, Prediction, simulate
from tests.cluster.fabric_files import load_text
from tests.schedule.toys import SOME, ZERO, Costs, build, cluster, predict
from tests.simulate.lowering.test_fold import same
from tests.simulate.messages import MODEL

NIC = Nic(bandwidth_Bps=1e7)
SHARE = 0.2


def lossy(losses: Losses, hosts: int = 2, ranks_per_host: int = 2) -> Cluster:
    on = cluster(hosts, nic=NIC, ranks_per_host=ranks_per_host)
    return replace(on, hosts=tuple(replace(host, losses=losses) for host in on.hosts))


def ring(world_size: int = 4, **more: object) -> Schedule:
    return build("all_reduce", MODEL, world_size, **more)


def test_beside_a_collective_computations_run_at_one_less_its_share() -> None:
    """A device's work is that of its computations, and the share of the time in which collectives move."""
    busy = Costs(flops_s=1e-4, loss=1e-3)  # computations take longer than collectives
    schedule = ring(2, first_bucket="1kB", bucket="10kB")
    free = predict(schedule, MODEL, lossy(Losses(), ranks_per_host=1), busy)
    shared = predict(schedule, MODEL, lossy(Losses(collective_share=SHARE), ranks_per_host=1), busy)
    moving = MODEL.nbytes / 1e7  # 2(N-1)/N S at the rate of the NIC
    assert shared.bound_s == pytest.approx(free.bound_s + SHARE * moving, rel=1e-6)
    assert free.bound_s < free.iteration_s < shared.iteration_s
    assert shared.iteration_s <= free.iteration_s + SHARE * moving + 1e-12


def test_a_collective_keeps_its_rate() -> None:
    """Alone and beside computations: what yields is the computation."""
    slow = Costs(flops_s=1e-4, loss=1e-3)
    schedule = ring(2, bucket="1GB")
    alone = predict(schedule, MODEL, lossy(Losses(collective_share=SHARE), ranks_per_host=1), ZERO)
    assert alone.iteration_s == pytest.approx(MODEL.nbytes / 1e7)
    several = ring(2, first_bucket="1kB", bucket="10kB")
    free = predict(several, MODEL, lossy(Losses(), ranks_per_host=1), slow)
    shared = predict(several, MODEL, lossy(Losses(collective_share=SHARE), ranks_per_host=1), slow)
    assert sum(shared.op_seconds[k] for k in shared.op_seconds if k == "all_reduce") == pytest.approx(
        sum(free.op_seconds[k] for k in free.op_seconds if k == "all_reduce"), rel=1e-6
    )


@pytest.mark.parametrize("losses", [Losses(collective_share=SHARE), Losses(iteration_overhead_s=3e-3, barrier=True)])
def test_folded_is_unfolded_and_engines_agree(losses: Losses) -> None:
    pytest.importorskip("numba")
    on = lossy(losses)
    schedules = (
        ring(first_bucket="1kB", bucket="10kB"),
        build("parameter_server", MODEL, 4, placement="colocated"),
        build("stanza", MODEL, 4),
    )
    for schedule in schedules:
        folded = predict(schedule, MODEL, on)
        assert folded.iteration_s >= folded.bound_s * (1 - 1e-9)
        same(folded, predict(schedule, MODEL, on, fold_ranks=False, engine="plain"))
        same(folded, predict(schedule, MODEL, on, fold_ranks=False, engine="compiled"), within=1e-8)


def test_steps_take_the_share_too() -> None:
    on, schedule = lossy(Losses(collective_share=SHARE), hosts=4, ranks_per_host=1), ring(first_bucket="1kB")

    def run(collectives: Collectives) -> Prediction:
        return simulate(schedule, MODEL, on, lambda r: SOME, collectives=collectives)

    steps, activity = run(Collectives.STEPS), run(Collectives.ACTIVITY)
    assert steps.iteration_s == pytest.approx(activity.iteration_s, rel=0.02)


def test_an_iteration_begins_with_its_overhead() -> None:
    schedule = ring(overlap=False)
    free = predict(schedule, MODEL, lossy(Losses()))
    lost = predict(schedule, MODEL, lossy(Losses(iteration_overhead_s=2e-3, overhead_per_device_s=1e-3)))
    assert lost.iteration_s == pytest.approx(free.iteration_s + 2e-3 + 1e-3)
    one = lossy(Losses(iteration_overhead_s=2e-3, overhead_per_device_s=1e-3), hosts=4, ranks_per_host=1)
    plain = lossy(Losses(), hosts=4, ranks_per_host=1)
    assert predict(schedule, MODEL, one).iteration_s == pytest.approx(
        predict(schedule, MODEL, plain).iteration_s + 2e-3
    )


@pytest.mark.parametrize("engine", ["plain", "compiled"])
@pytest.mark.parametrize("strategy", ["all_reduce", "parameter_server", "stanza"])
def test_nothing_but_receives_passes_a_barrier(strategy: str, engine: str) -> None:
    if engine == "compiled":
        pytest.importorskip("numba")
    schedule = build(strategy, MODEL, 4)
    p = predict(schedule, MODEL, lossy(Losses(barrier=True)), fold_ranks=False, engine=engine)
    spans = [s for s in p.timeline.spans if s.side != "recv"]
    for rank in range(4):
        for i in range(1, 3):
            before = max(s.end_s for s in p.timeline.spans if s.rank == rank and s.iteration == i - 1)
            starts = [s.start_s for s in spans if s.rank == rank and s.iteration == i]
            assert min(starts) >= before * (1 - 1e-9)
    free = predict(schedule, MODEL, lossy(Losses()), fold_ranks=False, engine=engine)
    assert p.iteration_s >= free.iteration_s * (1 - 1e-9)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ("collective_share: 1.0", "less than 1"),
        ("collective_share: -0.1", "greater than or equal to 0"),
        ("collective_share: 5%", "number"),
        ("iteration_overhead: 200", "200 has no unit"),
        ("iteration_overhead: -200us", "negative"),
        ("overhead_per_device: 10GB", "unknown unit"),
        ("barrier: perhaps", "true or false"),
        ("share: 0.1", "share"),
    ],
)
def test_bad_losses(tmp_path: Path, losses: str, says: str) -> None:
    hosts = f"hosts: [{{name: n, count: 2, cores: 8, nic: {{rate: 10Gbps}}, losses: {{{losses}}}}}]"
    with pytest.raises(InputError, match=r"t\.yaml:2: hosts\.0\.losses") as error:
        load_text(tmp_path, f"name: t\n{hosts}\nswitches: [{{name: s}}]\n")
    assert says in str(error.value)


def test_overrides_state_losses_too(tmp_path: Path) -> None:
    hosts = "hosts: [{name: n, count: 2, cores: 8, nic: {rate: 10Gbps}, losses: {barrier: true}}]"
    more = "overrides: {n-1: {losses: {collective_share: 0.1}}}\n"
    on = load_text(tmp_path, f"name: t\n{hosts}\nswitches: [{{name: s}}]\n{more}")
    assert [host.losses for host in on.hosts] == [Losses(barrier=True), Losses(collective_share=0.1)]
