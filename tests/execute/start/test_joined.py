"""How a rank that a launcher started ends when something goes wrong."""

from __future__ import annotations

import pytest

from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.start import world
from stanza_sim.execute.start.world import Joined


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, 130), (KeyError, 1), (RuntimeError, 1)])
def test_a_rank_of_a_launcher_ends_whatever_its_threads_wait_for(
    monkeypatch: pytest.MonkeyPatch, raised: type[BaseException], status: int
) -> None:
    """Torch's threads may hold up the end of a process whose kernels wait for others."""
    joined = Joined.__new__(Joined)
    joined.world_size, joined._deterministic = 1, False
    joined._context = Context(0, 1, 0, 1, 1)
    ends: list[int] = []
    monkeypatch.setattr(world, "_end_hard", ends.append)

    def task(context: Context, beat: Beat) -> None:
        raise raised("wrong")

    with pytest.raises(BaseException, match="wrong"):
        joined.run(task)
    assert ends == [status]
