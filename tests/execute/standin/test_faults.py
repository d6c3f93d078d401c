"""Faults of the executor on GPUs are found on imitated ones: those that it had, and others put in at random."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import ROUNDED, VARIANTS, job_of, schedule_of
from tests.execute.forked_pool import ForkedPool
from tests.execute.standin.faults import Fault, OnFaulty, Singly

BY_NAME = {name: variant for name, *variant in (*VARIANTS, *ROUNDED)}
TIMEOUT_S = 3.0
pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("pool")]  # two pools at once would share the cores


@pytest.fixture(scope="module")
def four() -> Iterator[Pool]:
    with ForkedPool(4, timeout_s=30) as ranks:
        yield ranks


def outcome(ranks: Pool, tiny: ModelProfile, variant: str, task: tuple[Backend, Fault, int]) -> str:
    """What the ranks said, in one line."""
    strategy, world, settings = BY_NAME[variant]
    job = job_of(tiny, schedule_of(tiny, strategy, world, settings), timeout_s=TIMEOUT_S)
    backend, fault, seed = task
    try:
        return " ".join(found for found in ranks.run(OnFaulty(job, backend, fault, seed)) if isinstance(found, str))
    finally:
        ranks.close()  # threads of theirs may wait for ever


def test_a_communicator_made_at_first_use_waits_for_those_that_never_use_it(four: Pool) -> None:
    """Finding 1."""
    answers = four.run(Singly("communicator_at_first_use"))
    assert answers[:2] == [(False, True), (False, True)]


def test_a_communicator_waits_for_a_member_that_does_not_come(four: Pool) -> None:
    assert four.run(Singly("communicator_of_some")) == [(False, True)] * 4


def test_a_communicator_can_be_destroyed_and_made_again(four: Pool) -> None:
    assert four.run(Singly("forgotten"))[:2] == [True, True]


def test_one_communicator_for_both_directions_waits_for_itself(four: Pool) -> None:
    """Finding 4."""
    assert four.run(Singly("both_directions"))[:2] == [(False, True), (False, True)]


def test_waiting_for_nccl_does_not_hold_up_the_host_but_ours_does(four: Pool) -> None:
    """Finding 7: without it, times of messages are those of posting."""
    raw_s, ours_s = four.run(Singly("waiting"))[1]
    assert raw_s < 0.1 < 0.25 < ours_s


def test_a_collective_on_a_shared_stream_holds_up_computations(four: Pool) -> None:
    """Finding 8."""
    assert four.run(Singly("beside_a_collective"))[0] == (False, True)


def test_two_views_of_one_tensor_are_one(four: Pool) -> None:
    """Finding 3."""
    wrong, right = four.run(Singly("two_views"))[0]
    assert right == 2.0
    assert wrong != 2.0


def test_a_lane_is_not_held_up_by_staging(four: Pool) -> None:
    """Finding 10."""
    posted_s, sent_s = four.run(Singly("staged_send"))[0]
    assert posted_s < 0.25 < 0.5 <= sent_s


@pytest.mark.parametrize("variant", ["ps-1", "stanza-1"])
def test_one_stream_for_all_threads_deadlocks(four: Pool, tiny: ModelProfile, variant: str) -> None:
    """Finding 2."""
    assert "nothing completed" in outcome(four, tiny, variant, (Backend.NCCL, Fault.ONE_STREAM, 0))


def test_a_message_that_counts_as_arrived_when_it_is_posted_is_found(four: Pool, tiny: ModelProfile) -> None:
    """Findings 2 and 7 with a stream for each thread."""
    assert "Race" in outcome(four, tiny, "ps-1", (Backend.NCCL, Fault.POSTED, 0))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("fault", "backend", "variant"),
    [
        (Fault.NO_WAIT, Backend.NCCL, "all-reduce"),
        (Fault.NO_ORDER, Backend.NCCL, "stanza-bf16"),
        (Fault.NO_ORDER, Backend.GLOO, "stanza-bf16"),
    ],
)
def test_a_fault_put_in_at_random_is_found(
    four: Pool, tiny: ModelProfile, fault: Fault, backend: Backend, variant: str, seed: int
) -> None:
    said = outcome(four, tiny, variant, (backend, fault, seed))
    assert "Race" in said or "was freed while" in said
