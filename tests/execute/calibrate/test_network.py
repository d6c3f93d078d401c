"""From what ranks answer to a network profile: with ranks that make up their answers, and with real ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.cluster.pair_kinds import pair_kind
from stanza_sim.execute.calibrate import network
from stanza_sim.execute.calibrate.answers import RankCores, RankMessages, Sent
from stanza_sim.execute.calibrate.network import calibrate_network
from stanza_sim.execute.calibrate.tasks import CoresTask, MessagesTask
from stanza_sim.execute.rank.clock import ClockOffset
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.protocol import Task, Workers
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import BlockTime, Profile, ProfiledModel

PROFILE = Profile(
    device="cpu X",
    host_cores=2,
    date="2026-01-01T00:00:00Z",
    precision="fp32",
    ranks_at_once=4,
    model=ProfiledModel(name="alexnet", fingerprint="x"),
    blocks=(BlockTime(block="b", samples=1, forward_s=1, backward_s=1, backward_input_s=1, backward_weight_s=1),),
    reduce_Bps=1.0,
    update_Bps=1.0,
)
STAR = """\
name: t
hosts: [{name: n, count: 4, cores: 2, nic: {rate: 200Mbps}}]
switches: [{name: s}]
overrides: {n-3: {nic: {rate: 100Mbps}}}
"""


@pytest.fixture
def star(tmp_path: Path) -> Cluster:
    path = tmp_path / "t.yaml"
    path.write_text(STAR)
    return load_cluster(path)


@dataclass
class Inventors:
    """Ranks that make up their answers: goodput 0.9 of the bottleneck, burst 10,000 bytes, latency 100 us.

    Clocks are `skew_s` x rank ahead. Every third message is held up in the first `busy` passes, each of `took_s`.
    """

    cluster: Cluster
    skew_s: float = 0.0
    busy: int = 0
    took_s: float = 5.0
    world_size: int = 4
    is_main: bool = True
    asked: list[object] = field(default_factory=list)

    def run(self, task: Task[object], timeout_s: float | None = None) -> list[object]:
        self.asked.append(task)
        if isinstance(task, MessagesTask):
            found = [self._messages(task, rank) for rank in range(4)]
            self.busy -= 1
            return list(found)
        assert isinstance(task, CoresTask)
        return [
            RankCores(
                device="cpu X",
                driver=None,
                cores=2,
                kernel="6.1",
                torch_version="2.13.0",
                hops=(1e-4, 2e-4, 3e-4),
                busy_s={k: (max(1, k / 2) * 0.05,) * (rank < k) for k in task.busy},
                reduce_Bps=(1e9,),
                update_Bps=(2e9,),
            )
            for rank in range(4)
        ]

    def close(self) -> None:
        pass

    def _messages(self, task: MessagesTask, rank: int) -> RankMessages:
        sent, arrived, ahead_s = [], {}, self.skew_s * rank
        for number, (pair, sizes) in enumerate(task.wanted.pairs):
            for some, repeats in sizes.rounds:
                for n in some:
                    for repeat in range(repeats):
                        for direction, (src, dst) in enumerate((pair, pair[::-1])):
                            probe = number, direction, n, repeat
                            rate = 0.9 * pair_kind(self.cluster, src, dst).bottleneck_Bps
                            took_s = 1.2e-4 + max(0, n - 10_000) / rate
                            if self.busy > 0 and n > 1_000_000 and (repeat + direction) % 3:
                                took_s *= 1.5
                            if rank == src:
                                sent.append(Sent(probe, repeat + ahead_s, 2e-5))
                            elif rank == dst:
                                arrived[probe] = repeat + ahead_s + took_s
        clock = ClockOffset(before=(0.0, -ahead_s), after=(self.took_s, -ahead_s))
        return RankMessages(clock=clock, realtime=task.wanted.realtime, sent=tuple(sent), arrived=arrived)


def test_every_kind_of_pair_gets_its_figures_whatever_the_clocks_say(star: Cluster) -> None:
    ranks = Inventors(star, skew_s=17.0)
    profile = calibrate_network(cast(Workers, ranks), star, testbed=True, realtime=True)
    kinds = {(p.sender_Bps, p.receiver_Bps): p for p in profile.pairs}
    assert kinds.keys() == {(25e6, 25e6), (25e6, 12.5e6), (12.5e6, 25e6)}
    for (sender, receiver), pair in kinds.items():
        assert pair.goodput_Bps.value == pytest.approx(0.9 * min(sender, receiver))
        assert pair.burst_bytes.value == pytest.approx(10_000, abs=10)
        assert pair.latency_s.value == pytest.approx(1e-4, rel=1e-3)
        assert pair.overhead_s.value == 2e-5
        assert pair_kind(star, pair.source, pair.destination) == pair.kind
    # Both directions of a pair count where they are alike.
    assert kinds[25e6, 25e6].messages == 2 * kinds[25e6, 12.5e6].messages
    assert (profile.testbed, profile.realtime, profile.ranks, profile.cluster) == (True, True, 4, "t")
    assert [(s.busy, s.factor.value) for s in profile.stretches] == [(1, 1.0), (2, 1.0), (4, 2.0)]
    assert profile.hop_s.value == 2e-4
    assert profile.machine.versions["torch"] == "2.13.0"
    assert sum(isinstance(task, MessagesTask) for task in ranks.asked) == 1


def test_where_repeats_disagree_the_long_messages_are_sent_again(star: Cluster) -> None:
    ranks = Inventors(star, busy=1)
    profile = calibrate_network(cast(Workers, ranks), star, testbed=True)
    first, again = [task.wanted.pairs for task in ranks.asked if isinstance(task, MessagesTask)]
    assert [pair for pair, _ in again] == [pair for pair, _ in first]
    assert all(len(sizes.rounds) == 1 for _, sizes in again)
    for pair in profile.pairs:
        assert pair.goodput_Bps.value == pytest.approx(0.9 * pair.kind.bottleneck_Bps)


def test_messages_that_took_long_are_not_sent_again(star: Cluster) -> None:
    ranks = Inventors(star, busy=1, took_s=15.0)
    profile = calibrate_network(cast(Workers, ranks), star, testbed=True)
    assert sum(isinstance(task, MessagesTask) for task in ranks.asked) == 1
    assert profile.pairs[0].goodput_Bps.low < profile.pairs[0].goodput_Bps.value


def test_ranks_that_may_not_run_in_real_time_say_so(star: Cluster) -> None:
    class Refused(Inventors):
        def _messages(self, task: MessagesTask, rank: int) -> RankMessages:
            return replace(super()._messages(task, rank), realtime=False)

    assert not calibrate_network(cast(Workers, Refused(star)), star, testbed=True, realtime=True).realtime


def test_models_are_timed_at_the_samples_asked_for(star: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def time_model(workers: Workers, model: ModelProfile, samples: dict[str, tuple[int, ...]], **_: object) -> Profile:
        asked.append(samples)
        return PROFILE

    monkeypatch.setattr(network, "time_model", time_model)
    said: list[str] = []
    alexnet = zoo.get("alexnet")
    profile = calibrate_network(
        cast(Workers, Inventors(star)), star, testbed=True, models=[(alexnet, 16)], say=said.append
    )
    assert profile.models == (PROFILE,)
    assert asked == [{b.name: (16,) for b in alexnet.blocks}]
    assert "alexnet at 16 samples" in said[0]


def test_real_ranks_of_one_machine(pool: Pool) -> None:
    profile = calibrate_network(pool, load_cluster("laptop", nodes=5), testbed=False)
    assert profile.pairs == ()  # no two hosts
    assert profile.loopback is not None
    assert 1e-6 < profile.hop_s.value < 0.05
    assert [s.busy for s in profile.stretches] == [1, 2, 4, 5]
    assert profile.stretches[0].factor.value == pytest.approx(1)
    assert 1e7 < profile.reduce_Bps.value < 1e12


def test_real_messages_go_through_the_engine(pool: Pool, tmp_path: Path) -> None:
    """Ranks of one machine that are told to be hosts of a star: the messages are real, the rates are not."""
    path = tmp_path / "t.yaml"
    path.write_text("name: t\nhosts: [{name: n, count: 5, cores: 2, nic: {rate: 100Gbps}}]\nswitches: [{name: s}]\n")
    profile = calibrate_network(pool, load_cluster(path), testbed=False)
    (pair,) = profile.pairs
    assert (pair.source, pair.destination) == (0, 1)
    assert pair.messages > 200
    assert 0 <= pair.latency_s.value < 0.05
    assert 0 < pair.overhead_s.value < 0.05
    assert 5e7 < pair.goodput_Bps.value < 1e11
