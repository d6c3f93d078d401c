"""What the watch over an imitated GPU's memory finds: a late message, a buffer that is used again too early."""

from __future__ import annotations

import random

import pytest
import torch

from stanza_sim.execute.rank.staging import HostBuffers
from stanza_sim.execute.standin.device import Standin
from stanza_sim.execute.standin.groups import StreamWork
from stanza_sim.execute.standin.order import Race


def test_what_arrives_may_be_read_once_it_is_known_to_be_there() -> None:
    device, target = Standin(), torch.zeros(4)
    communicator, lane = device.new_stream("communicator"), device.new_stream("lane")
    communicator.launch("recv", lambda: None, [], [target], arrives=True)
    work = StreamWork(communicator.record(), device, communicator)
    with pytest.raises(Race, match="add on lane reads what recv on communicator writes"):
        lane.launch("add", lambda: None, [target])
    work._event.happened.wait()
    assert work.is_completed()
    lane.launch("add", lambda: None, [target])


def test_a_buffer_may_be_filled_again_once_its_message_has_been_sent() -> None:
    device = Standin()
    host, staging = device.host_buffer(64), device.new_stream("staging")
    gloo = device.watch.new_stream("gloo")
    device.watch.launch(gloo, "send", [host])
    with pytest.raises(Race, match="copy_ on staging writes what send on gloo reads"):
        staging.launch("copy_", lambda: None, [], [host])
    device.watch.after(0, device.watch.point(gloo))
    staging.launch("copy_", lambda: None, [], [host])


def test_disjoint_bytes_and_readers_need_no_order() -> None:
    device, target = Standin(), torch.zeros(8)
    one, other = device.new_stream("one"), device.new_stream("other")
    one.launch("fill", lambda: None, [], [target[:4]])
    other.launch("fill", lambda: None, [], [target[4:]])
    source = torch.zeros(4)
    one.launch("read", lambda: None, [source])
    other.launch("read", lambda: None, [source])


def test_the_number_of_a_stream_that_is_over_is_used_again() -> None:
    """Clocks know every stream, and each message of gloo's is one."""
    watch, word = Standin().watch, torch.zeros(4)
    under_way = watch.new_stream("under way")
    watch.launch(under_way, "send", [word])
    watch.end(under_way)  # the host does not know that it is done
    first = watch.new_stream("first")
    assert first != under_way
    for _ in range(3):
        watch.launch(first, "recv", [], [torch.zeros(4)])
        watch.after(0, watch.point(first))
        watch.end(first)
        assert watch.new_stream("next") == first
    watch.launch(first, "send", [word])
    other = watch.new_stream("other")
    with pytest.raises(Race, match=r"what send on (under way|next) reads"):
        watch.launch(other, "fill", [], [word])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("faulty", [False, True])
def test_a_buffer_that_is_given_back_too_early_at_random_is_found(seed: int, faulty: bool) -> None:
    """Messages are staged and sent, some at a time; all buffers but one are given back when theirs has been sent."""
    draw, device = random.Random(seed), Standin()
    buffers, lane, staging = HostBuffers(device), device.new_stream("lane"), device.new_stream("staging")
    early = draw.randrange(2, 12) if faulty else None
    under_way: list[tuple[int, torch.Tensor]] = []

    def send(number: int) -> None:
        source = torch.zeros(draw.choice([16, 64, 3000]))
        lane.launch("produce", lambda: None, [], [source])
        staging.await_event(lane.record())
        buffer, host = buffers.take(source)
        staging.launch("copy_", lambda: None, [source], [host])
        staging.synchronize()
        gloo = device.watch.new_stream(f"gloo, message {number}")
        device.watch.launch(gloo, "send", [host])
        if number == early:
            buffers.give(buffer)
        else:
            under_way.append((gloo, buffer))
        if number == early or draw.random() < 0.3:
            for stream, sent in under_way:
                device.watch.after(0, device.watch.point(stream))
                buffers.give(sent)
            under_way.clear()

    def all_of_them() -> None:
        for number in range(16):
            send(number)
        for nbytes in (64, 256, 12_000):  # every free buffer is used once more
            for _ in range(16):
                _, host = buffers.take(torch.zeros(nbytes // 4))
                staging.launch("copy_", lambda: None, [], [host])

    if faulty:
        with pytest.raises(Race, match=f"copy_ on staging writes what send on gloo, message {early} reads"):
            all_of_them()
    else:
        all_of_them()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("faulty", [False, True])
def test_a_message_that_is_used_at_random_before_it_has_arrived_is_found(seed: int, faulty: bool) -> None:
    """Messages arrive for several lanes; a lane reads one when the host has waited for it, or once before that."""
    draw, device = random.Random(seed), Standin()
    lanes = [device.new_stream(f"lane {k}") for k in range(3)]
    early = draw.randrange(12) if faulty else None

    def receive(number: int) -> None:
        communicator = device.new_stream(f"communicator {number}")
        target = torch.zeros(draw.choice([4, 64]))
        communicator.launch("recv", lambda: None, [], [target], arrives=True)
        work = StreamWork(communicator.record(), device, communicator)
        work._event.happened.wait()  # it is there, but nobody has looked
        if number != early:
            assert work.is_completed()
        lane = draw.choice(lanes)
        if draw.random() < 0.5:
            lane.launch("add", lambda: None, [target])
        else:
            lane.launch("fill", lambda: None, [], [target[: draw.randrange(1, 4)]])

    def all_of_them() -> None:
        for number in range(12):
            receive(number)

    if faulty:
        with pytest.raises(Race, match=f"what recv on communicator {early} writes"):
            all_of_them()
    else:
        all_of_them()
