"""Transports: what messages take of the two processes and of the hosts' cores, against formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stanza_sim.cluster import Cluster, Nic, Transport
from stanza_sim.model import zoo
from stanza_sim.simulate import Collectives, simulate
from tests.schedule.toys import SOME, ZERO, Costs, build, cluster, predict
from tests.simulate.lowering.test_fold import SHORT, same
from tests.simulate.messages import CHAIN, MODEL, run

RATE = 1e9


def wires(ranks: int, transport: Transport, **more: object) -> Cluster:
    return cluster(ranks, nic=Nic(bandwidth_Bps=RATE, transport=transport), **more)  # type: ignore[arg-type]


def sent_s(on: Cluster) -> float:
    """Seconds from the post of the chain's message of 32 bytes on."""
    found = [s for s in run(CHAIN, on, Costs(flops_s=1e-3)).timeline.spans if s.op == "act" and s.side == "sent"]
    return found[2].end_s - found[2].start_s


def test_a_message_moves_at_the_rate_of_a_stream() -> None:
    assert sent_s(wires(2, Transport(stream_Bps=1e6))) == pytest.approx(32 / 1e6)
    assert sent_s(wires(2, Transport(process_Bps=2e6))) == pytest.approx(32 / 2e6)
    slow = Nic(bandwidth_Bps=RATE, transport=Transport(stream_Bps=1e5))
    for host in (0, 1):  # the slower end decides
        assert sent_s(cluster(2, nic=Nic(bandwidth_Bps=RATE), nics={host: slow})) == pytest.approx(32 / 1e5)


def test_one_core_of_either_host_works_on_a_message() -> None:
    costly = Transport(message_core_s=2e-5, byte_core_s=1e-6)
    assert sent_s(wires(2, costly, cores=8)) == pytest.approx(2e-5 + 32e-6)


@pytest.mark.parametrize("model", ["alexnet", "resnet50"])
@pytest.mark.parametrize("servers", [1, 2])
def test_servers_are_limited_by_their_processes(servers: int, model: str) -> None:
    """W S / (k rate) each way, however fast the network."""
    workers, limit_Bps, profile = 4, 1e8, zoo.get(model)
    schedule = build("parameter_server", profile, workers + servers, servers=servers, assignment="cut", overlap=False)
    found = predict(schedule, profile, wires(workers + servers, Transport(process_Bps=limit_Bps)), ZERO)
    moving_s = max(workers / servers, 1) * profile.nbytes / limit_Bps
    assert found.iteration_s == pytest.approx(2 * moving_s, rel=1e-3)
    assert found.bound_s == pytest.approx(moving_s, rel=1e-3)
    assert "process" in found.bottleneck


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("transport", [Transport(stream_Bps=1e7), Transport(process_Bps=1e7)])
def test_a_ring_goes_at_the_rate_of_its_streams(transport: Transport, steps: bool) -> None:
    n = 4
    schedule = build("all_reduce", MODEL, n, overlap=False, **({"algorithm": "ring"} if steps else {}))
    collectives = Collectives.STEPS if steps else Collectives.ACTIVITY
    found = simulate(schedule, MODEL, wires(n, transport), lambda r: ZERO, collectives=collectives)
    assert found.iteration_s == pytest.approx(2 * (n - 1) / n * MODEL.nbytes / 1e7, rel=0.01)


def test_messages_inside_a_host_count_where_the_transport_says_so() -> None:
    def on(inside: bool) -> Cluster:
        limited = Transport(process_Bps=1e6, process_inside=inside)
        return wires(1, limited, ranks_per_host=2)

    schedule = build("parameter_server", MODEL, 2, overlap=False)
    assert predict(schedule, MODEL, on(False), ZERO).iteration_s < 1e-6
    assert predict(schedule, MODEL, on(True), ZERO).iteration_s == pytest.approx(2 * MODEL.nbytes / 1e6, rel=1e-3)


def test_computations_yield_cores_to_messages() -> None:
    """A host whose only core works on messages half of the time takes as much longer."""
    costly = Transport(byte_core_s=1e-6)
    schedule = build("all_reduce", MODEL, 2, bucket="1GB")
    free = predict(schedule, MODEL, wires(2, Transport(), cores=1, on_cores=True), SOME)
    busy = predict(schedule, MODEL, wires(2, costly, cores=1, on_cores=True), SOME)
    assert busy.bound_s == pytest.approx(free.bound_s + 2 * MODEL.nbytes * 1e-6, rel=0.2)
    assert busy.iteration_s >= busy.bound_s * (1 - 1e-9)


@pytest.mark.parametrize("algorithm", ["ring", "halving_doubling", "tree"])
def test_steps_and_activity_agree(algorithm: str) -> None:
    schedule = build("all_reduce", MODEL, 4, overlap=False, algorithm=algorithm)

    def took(collectives: Collectives) -> float:
        return simulate(schedule, MODEL, wires(4, SHORT), lambda r: ZERO, collectives=collectives).iteration_s

    assert took(Collectives.ACTIVITY) == pytest.approx(took(Collectives.STEPS), rel=0.02)


@pytest.mark.parametrize("engine", ["plain", "compiled"])
def test_engines_agree(engine: str) -> None:
    pytest.importorskip("numba")
    where: Callable[[], Cluster] = lambda: wires(  # noqa: E731
        2, Transport(stream_Bps=2e5, process_Bps=3e5, message_core_s=1e-4, byte_core_s=1e-7), ranks_per_host=3
    )
    schedule = build("parameter_server", MODEL, 6, placement="colocated", assignment="cut")
    same(
        predict(schedule, MODEL, where()),
        predict(schedule, MODEL, where(), fold_ranks=False, engine=engine),
    )
