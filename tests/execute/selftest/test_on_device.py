"""The logic of the checks on GPUs, on an imitated one: they pass there, and fail where the accelerator is wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from stanza_sim.execute.rank.library import Gloo  # noqa: E402
from stanza_sim.execute.selftest import on_device  # noqa: E402
from stanza_sim.execute.selftest.on_cores import try_buffers  # noqa: E402
from stanza_sim.execute.selftest.outcome import Wrong  # noqa: E402
from stanza_sim.execute.selftest.tasks import on_a_thread  # noqa: E402
from stanza_sim.execute.standin.device import Standin  # noqa: E402
from stanza_sim.execute.standin.groups import StandinNccl  # noqa: E402


class OneStream(Standin):
    """All threads share a stream, as with CUDA's default one."""

    def __init__(self) -> None:
        super().__init__()
        self._shared = self.new_stream("the one stream")

    def new_stream(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self, "_shared", None) or super().new_stream(name)


def sleep_on(device: Standin) -> on_device.Sleep:
    def sleep(seconds: float) -> None:
        stream = device.current()
        assert stream is not None
        stream.launch("sleep", lambda: threading.Event().wait(seconds))

    return sleep


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_lane_overtakes_another() -> None:
    device = Standin()
    assert "before the one of another thread" in on_device.overtakes(device, sleep_on(device))
    one = OneStream()
    with pytest.raises(Wrong, match="waited for the kernel of another thread"):
        on_device.overtakes(one, sleep_on(one))


def test_gradients_from_another_thread() -> None:
    assert on_device.gradients_elsewhere(Standin(jitter_s=1e-3)) == "gradients from another thread are right"


@pytest.mark.parametrize("nbytes", [4, 1000, 100_000])
def test_copies(nbytes: int) -> None:
    device = Standin(jitter_s=1e-3)
    found = on_a_thread(lambda: on_device.copies(device, nbytes, repeats=2), device.start_thread)
    assert found.nbytes == nbytes
    assert min(found.out_s, found.in_s, found.allocation_s) >= 0
    assert found.out_wait_s >= found.out_s
    on_a_thread(lambda: try_buffers(device), device.start_thread)


def test_what_runs_beside_what() -> None:
    found = on_device.beside(Standin(), width=32, nbytes=4096, seconds=0.05)
    assert list(found) == ["compute + copies out", "compute + copies in", "compute + copies out + copies in"]
    assert all(slower > 0 for row in found.values() for slower in row.values())


def test_collectives_and_waits(alone: None) -> None:
    device = Standin()
    library = StandinNccl(device)
    groups = [library.new_group([0], 2) for _ in range(2)]

    def body() -> str:
        on_device.collectives(device, library, groups[0])
        return on_device.waits(device, library, groups[0], sleep_on(device))

    assert "ours after 0.3" in on_a_thread(body, device.start_thread)
    on_device.from_two_threads(device, library, groups)


def test_a_wait_that_returns_early_is_found(alone: None) -> None:
    device = Standin()
    library = StandinNccl(device)
    group = library.new_group([0], 1)
    library.wait = Gloo().wait  # type: ignore[method-assign]  # only orders the stream
    with pytest.raises(Wrong, match="was taken for done after"):
        on_a_thread(lambda: on_device.waits(device, library, group, sleep_on(device)), device.start_thread)


def test_what_goes_wrong_in_a_lane_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        on_a_thread(lambda: 1 / 0, lambda: None)
