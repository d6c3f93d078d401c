"""Devices whose speeds differ by chance: the slowest sets the pace of all that wait for each other."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pytest

import stanza_sim as ss
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Host, Nic
from stanza_sim.model import zoo
from stanza_sim.simulate.costs import costs_for


def _topology(spread: object, count: int = 4) -> dict[str, Any]:
    node = {"name": "node", "count": count, "cores": 8, "devices": ["V100"], "device_spread": spread}
    return {"name": "x", "hosts": [{**node, "nic": {"rate": "10Gbps"}}], "switches": [{"name": "s"}]}


@pytest.mark.parametrize("together", [2, 8, 64])
def test_the_pace_is_that_of_the_slowest_of_normal_draws(together: int) -> None:
    host = Host(name="h", cores=1, nic=Nic(bandwidth_Bps=1e9), device_spread=0.03)
    drawn = np.random.default_rng(1).normal(0.0, 0.03, (20_000, together)).max(axis=1)
    assert 1 / host.pace(together) - 1 == pytest.approx(fmean(drawn.tolist()), rel=0.08)  # Blom is 7% off for two


def test_a_device_alone_or_without_spread_computes_at_its_own_speed() -> None:
    host = Host(name="h", cores=1, nic=Nic(bandwidth_Bps=1e9), device_spread=0.03, device_speed=0.5)
    assert host.pace(1) == 0.5
    assert Host(name="h", cores=1, nic=Nic(bandwidth_Bps=1e9)).pace(64) == 1.0


def test_costs_are_those_of_the_slowest_and_say_so() -> None:
    model = zoo.get("vgg16")
    plain, spread = (costs_for(ss.load_cluster(_topology(s)), model) for s in (0.0, 0.04))
    pace = Host(name="h", cores=1, nic=Nic(bandwidth_Bps=1e9), device_spread=0.04).pace(4)
    block = model.blocks[0]
    assert spread(0).forward_s(block, 32) * pace == pytest.approx(plain(0).forward_s(block, 32))
    assert "slowest of 4 devices" in spread.source
    assert "slowest" not in plain.source


@pytest.mark.parametrize("value", [-0.1, 0.6, "3%", True])
def test_a_spread_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="device_spread"):
        ss.load_cluster(_topology(value))
