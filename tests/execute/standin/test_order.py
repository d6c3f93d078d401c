"""What the watch over an imitated GPU's memory finds: a late message, a buffer that is used again too early."""

from __future__ import annotations

import pytest
import torch

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
