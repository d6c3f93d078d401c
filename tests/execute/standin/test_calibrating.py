"""Calibration on imitated GPUs: every rank takes part, nothing hangs, and what is measured is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stanza_sim.execute.calibrate.answers import MessagesWanted, Wanted
from stanza_sim.execute.calibrate.calibration import profile_of
from stanza_sim.execute.calibrate.single import Sizes
from stanza_sim.execute.calibrate.tasks import MessagesTask, TimingTask
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import read_profile, write_profile
from tests.execute.forked_pool import ForkedPool
from tests.execute.standin.standin_tasks import Changed, WithStandin

SIZES = Sizes(small=64, small_repeats=4, middle=(1024,), middle_repeats=2, large=(4096, 8192), large_repeats=2)
TIMING, DEVICE = "stanza_sim.execute.calibrate.timing", "stanza_sim.execute.calibrate.on_device"
QUICK = [
    (TIMING, "SMALL_EXCHANGES", 4),
    (TIMING, "LARGE_EXCHANGES", 3),
    (TIMING, "LARGE_BYTES", 65536),
    (TIMING, "PROBE_ROUNDS", 2),
    (TIMING, "SECTION_S", 0.01),
    (TIMING, "LEAST_CYCLES", 1),
    (TIMING, "VECTOR_REPEATS", 2),
    (DEVICE, "COPY_BYTES", (4096, 1 << 20)),
    (DEVICE, "COPY_REPEATS", (2, 2)),
    (DEVICE, "COLLECTIVE_BYTES", 4096),
    (DEVICE, "LEAST_SIZE", 16),
    (DEVICE, "MOST_SIZE", 16),
    (DEVICE, "BESIDE_S", 0.2),
    (DEVICE, "ALONE", 3),
]
"""As little as possible of everything: what is measured here means nothing."""
pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("pool")]  # two pools at once would share the cores


def quick(task: object) -> object:
    for module, name, value in QUICK:
        task = Changed(task, module, name, value)
    return task


@pytest.fixture(scope="module", params=[2, 3, 5])
def ranks(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with ForkedPool(request.param, timeout_s=30) as pool:
        yield pool


@pytest.mark.parametrize("backend", [Backend.NCCL, Backend.GLOO])
def test_messages_are_timed_between_some_ranks(ranks: Pool, backend: Backend) -> None:
    last = ranks.world_size - 1
    pairs = (((0, 1), SIZES), ((last - 1, last), SIZES))
    found = ranks.run(WithStandin(MessagesTask(MessagesWanted(pairs=pairs, backend=backend))))
    sent = [s.probe for r in found for s in r.sent]
    assert len(sent) == 2 * 2 * (4 + 2 + 4)
    assert sorted(sent) == sorted(p for r in found for p in r.arrived)


@pytest.mark.parametrize("backend", [Backend.NCCL, Backend.GLOO])
def test_everything_is_timed_written_and_read(
    ranks: Pool, tiny: ModelProfile, backend: Backend, tmp_path: Path
) -> None:
    wanted = Wanted(model=tiny, samples={b.name: (4,) for b in tiny.blocks}, contributions=2, backend=backend)
    found = ranks.run(quick(WithStandin(TimingTask(wanted))))
    assert [r.small is not None and r.large is not None for r in found] == [r < 2 for r in range(ranks.world_size)]
    profile = profile_of(found, wanted)
    assert {row.block for row in profile.blocks} == {b.name for b in tiny.blocks}
    assert all(row.forward_s > 0 and row.backward_s > 0 for row in profile.blocks)
    assert profile.op_overhead_s > 0
    assert profile.staging is not None
    assert (profile.loopback is None, profile.device_link is None) == (backend is Backend.NCCL, backend is Backend.GLOO)
    assert backend is Backend.NCCL or profile.collective_share is None
    write_profile(profile, tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == profile
