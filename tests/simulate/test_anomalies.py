"""A faster part can make training slower: two such cases by formula, and which messages are to blame.

No rule is broken: a rank begins its next iteration when it has what it waits for, and messages that cross one link
share it evenly. So a rank that is ahead of others sends beside what they still wait for. As with list scheduling
(Graham, Bounds on Multiprocessing Timing Anomalies, 1969), whoever is held back then makes everything faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from stanza_sim.cluster import Cluster, Nic
from stanza_sim.cluster.hardware import Losses
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Schedule
from stanza_sim.simulate import Prediction
from stanza_sim.timeline.spans import Span
from tests.schedule.toys import ZERO, Costs, block, build, cluster, predict

ENGINES = pytest.mark.parametrize("engine", ["plain", "compiled"])


def held_back(on: Cluster, rank: int, seconds: float) -> Cluster:
    """`on`, where `rank` begins each iteration so much later than it could."""
    hosts = list(on.hosts)
    hosts[rank] = replace(hosts[rank], losses=Losses(iteration_overhead_s=seconds))
    return replace(on, hosts=tuple(hosts))


def spans(prediction: Prediction, op: str, side: str) -> dict[tuple[int, int], Span]:
    """By rank and iteration."""
    return {(s.rank, s.iteration): s for s in prediction.timeline.spans if s.op == op and s.side == side}


def overtaken(prediction: Prediction, ahead: tuple[str, int], waited_for: tuple[str, int]) -> bool:
    """Whether a rank sends for the next iteration while another's message of this one is under way."""
    early, late = spans(prediction, ahead[0], "sent"), spans(prediction, waited_for[0], "sent")
    return any(
        (ahead[1], i + 1) in early and early[ahead[1], i + 1].start_s < span.end_s - 1e-9
        for (rank, i), span in late.items()
        if rank == waited_for[1]
    )


# ---- co-located servers without overlap: a NIC ten times as fast --------------------------------------------------

S = 1000  # bytes of each of two blocks
B = 1000.0  # bytes per second of a NIC


def two_blocks() -> tuple[ModelProfile, Schedule]:
    blocks = tuple(block(f"b{i}", BlockKind.CONV, [(S // 4,)], 1, flops=1) for i in range(2))
    model = ModelProfile(name="two", blocks=blocks, boundary=2, input_shape=(1,), num_classes=1)
    return model, build("parameter_server", model, 3, placement="colocated", servers=2, overlap=False)


@ENGINES
@pytest.mark.parametrize("hold_s", [0.0, 0.25, 0.5, 1.0])
def test_a_faster_nic_lets_a_rank_send_beside_what_others_wait_for(engine: str, hold_s: float) -> None:
    """Ranks 0 and 1 serve one block each, rank 2 none; computing takes no time, and S / B is 1 s.

    Alike, each NIC sends or receives two messages, pushes for 2 s and then pulls for 2 s. Where NIC 0 is ten times as
    fast, rank 1 has its pull from server 0 after 1 s instead of 2: server 0 sends it B, and B / 2 to rank 2, whose
    receive side server 1 shares. Having all that it needs, rank 1 pushes for the next iteration, while server 1, on
    the same NIC, has two halves of pulls left. The three take B / 3 each, so these end after 1.5 s: 4.5 s instead of 4.
    Held back by h, up to 1 s, rank 1 leaves them the NIC for h: what is left ends after h + 1.5 (1 - h) more.
    """
    model, schedule = two_blocks()
    alike = cluster(3, nic=Nic(bandwidth_Bps=B))
    faster = cluster(3, nic=Nic(bandwidth_Bps=B), nics={0: Nic(bandwidth_Bps=10 * B)})
    before = predict(schedule, model, alike, ZERO, engine=engine, fold_ranks=False)
    after = predict(schedule, model, held_back(faster, 1, hold_s), ZERO, engine=engine, fold_ranks=False)
    assert before.iteration_s == pytest.approx(4.0)
    assert after.iteration_s == pytest.approx(4.5 - hold_s / 2)
    assert after.bound_s == pytest.approx(before.bound_s)  # two pushes and a pull through the NIC of host 1
    pushes_b0, pulls_b1 = ("push.b0", 1), ("pull.b1", 1)
    assert not overtaken(before, pushes_b0, pulls_b1)
    assert overtaken(after, pushes_b0, pulls_b1) == (hold_s < 1)


# ---- sufficient factors on unlike hosts: a device twice as fast ---------------------------------------------------

FLOPS = Costs(flops_s=1e-3)


def one_layer() -> tuple[ModelProfile, Schedule]:
    layer = block("f", BlockKind.FC, [(100, 100)], 100, flops=500)
    model = ModelProfile(name="one", blocks=(layer,), boundary=0, input_shape=(100,), num_classes=100)
    return model, build("sufficient_factors", model, 3, batch=1, fc_exchange="factors")


def unlike(speeds: Mapping[int, float]) -> Cluster:
    nic = Nic(bandwidth_Bps=4000.0)
    return cluster(3, nic=nic, nics={2: replace(nic, bandwidth_Bps=500.0)}, speeds=speeds)


@ENGINES
def test_a_faster_device_lets_a_rank_send_beside_what_others_wait_for(engine: str) -> None:
    """Three ranks send the factors of one layer, 800 bytes to each other rank; the NIC of rank 2 is slow, 500 bytes/s.

    A pass takes 0.5 s on rank 1 and 0.125 s on the others, and the gradient of all three samples thrice that. The
    slowest circle of what waits for what takes two iterations: rank 2 sends both its messages (3.2 s); rank 1 makes its
    gradient and passes forward and back (1.5 + 0.5 + 0.5 s) and sends to rank 2, alone on that slow NIC (1.6 s); rank 2
    does as rank 1 did (0.625 s), and sends again.
    Rank 0 waits for neither of these two. Twice as fast, it gets so far ahead that it sends for the next iteration
    while rank 1 still sends to rank 2, and halves its rate: the circle takes longer. Held back, it does not.
    """
    model, schedule = one_layer()
    circle_s = (3.2 + 2.5 + 1.6 + 0.625) / 2
    fast = unlike({0: 8.0, 2: 4.0})
    before, after, held = (
        predict(schedule, model, on, FLOPS, engine=engine, fold_ranks=False, max_iterations=100)
        for on in (unlike({0: 4.0, 2: 4.0}), fast, held_back(fast, 0, 0.5))
    )
    assert before.iteration_s == pytest.approx(circle_s)
    assert after.iteration_s > 1.05 * circle_s
    assert held.iteration_s == pytest.approx(circle_s)
    mine, waited_for = ("factors.f", 0), ("factors.f", 1)
    assert [overtaken(p, mine, waited_for) for p in (before, after, held)] == [False, True, False]
