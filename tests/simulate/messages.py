"""What the tests of messages share: a chain of one message, a run at given costs, and the shipped star with changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.schedule import Schedule, parse
from stanza_sim.simulate import Prediction, simulate
from tests.schedule.toys import ZERO, Costs, toy

MODEL = toy(50)
ONE = toy(1)

CHAIN = parse("""\
schedule chain model=toy world=2 batch=1
group a 0
group b 1
fc1: forward c1 @a
fpool: forward pool @a after=fc1
fc2: forward c2 @a after=fpool
act: transfer act(c2)+labels a->b one-to-one nbytes=32 channel=act after=fc2
ff1: forward f1 @b after=act
ff2: forward f2 @b after=ff1
loss: loss f2 @b after=ff2
""")
"""An iteration sends one message of 32 bytes, `act`, from rank 0 to rank 1; its model is `ONE`."""

STAR = config.find("topologies", "star").read_text()


def run(schedule: Schedule, on: Cluster, costs: Costs = ZERO, **more: object) -> Prediction:
    """Simulate the chain with `ONE`, any other schedule with `MODEL`."""
    return simulate(schedule, ONE if schedule is CHAIN else MODEL, on, lambda r: costs, **more)


def changed_star(tmp_path: Path, old: str, new: str, more: str = "") -> Path:
    """`t.yaml`: the shipped star with `new` in place of `old`, and `more` behind it."""
    assert old in STAR
    path = tmp_path / "t.yaml"
    path.write_text(STAR.replace(old, new) + more)
    return path


def with_nic(tmp_path: Path, nic: str, more: str = "") -> Path:
    """`t.yaml`: the shipped star whose NICs say `nic` too, and `more` behind it."""
    return changed_star(tmp_path, "{rate: 10Gbps, ", f"{{rate: 10Gbps, {nic}, ", more)


def refused(path: Path, says: str) -> None:
    """Loading the topology fails with a message that says this and names the file."""
    with pytest.raises(InputError, match=says) as error:
        load_cluster(path)
    assert path.name in str(error.value)
