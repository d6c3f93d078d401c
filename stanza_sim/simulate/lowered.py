"""What a lowered schedule consists of: resources, activities on them, messages, and the programs of classes of
ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from stanza_sim.cluster.hardware import TokenBucket
from stanza_sim.schedule import RankProgram
from stanza_sim.simulate.background import BackgroundFlow


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Something shared: `label` for people, `capacity` in bytes/s (links), cores, or devices."""

    label: str
    capacity: float
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What takes time from resources: `work` at no more than `cap` per second, over `usage`, after `delay_s`."""

    work: float
    usage: tuple[tuple[int, float], ...]
    weight: float = 1.0
    cap: float = inf
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Messages of one op from one class to another: each rank of the source class sends `count` of them.

    `kind` tells apart the pairs of ranks between the two classes: `NEAR` on one host, `FAR` across a switch, and from
    `FAR` + 1 on the classes of pairs of hosts on a fabric with shared links. Where devices are staged, `copy_out` runs
    from the posting on and before all else, and `copy_in` after all else (see `MessageActivities.copy`).
    """

    src: int
    dst: int
    kind: int
    count: int
    nbytes: int
    activity: Activity
    copy_out: Activity | None = None
    copy_in: Activity | None = None

    @property
    def activities(self) -> tuple[Activity, ...]:
        """All that it takes."""
        return tuple(activity for activity in (self.copy_out, self.activity, self.copy_in) if activity is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What a member of a collective copies from its device before, and to it afterwards."""

    out: Activity | None
    into: Activity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankClass:
    """A class of ranks and the program of the rank that stands for it.

    For each unit: `activities` (a computation's), `sends` (how many message classes a send has), `messages` (those),
    `arrivals` (how many message classes a receive waits for), `post_s` (how long posting all its messages takes, after
    which they start), `traffic` (bytes that the rank sends, bytes that it receives), and `copies` (of a collective,
    where devices are staged).
    """

    rank: int
    size: int
    program: RankProgram
    activities: dict[int, Activity]
    sends: dict[int, int]
    messages: dict[int, tuple[Message, ...]]
    arrivals: dict[int, int]
    post_s: dict[int, float]
    traffic: dict[int, tuple[int, int]]
    copies: dict[int, Copies] = field(default_factory=dict)

    @property
    def messages_of(self) -> dict[int, int]:
        """What `Progress` counts: classes of messages that a send has, or one for all that a receive awaits."""
        return {**self.sends, **{u: min(n, 1) for u, n in self.arrivals.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a class does in one step of a collective: messages by number, and seconds that posting the sends takes."""

    post_s: float
    sends: tuple[int, ...]
    receives: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgram:
    """A collective message by message: (source, destination, load) of each, and the turns of each class in order."""

    rank_classes: tuple[int, ...]
    messages: tuple[tuple[int, int, Activity], ...]
    turns: dict[int, tuple[Turn, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveActivity:
    """A collective: its member classes, what it costs once all have joined, and its steps where those are to be run."""

    rank_classes: tuple[int, ...]
    activity: Activity
    program: StepProgram | None = None


@dataclass(slots=True, kw_only=True)
class Lowered:
    """Everything that the engine needs. `collectives` is keyed by op name; `links` are the resources of the cluster's
    links.

    `background` is the traffic of others on those resources, `token_buckets` are those of shaped links.
    `wakeup_latency_s` is the cluster's.
    """

    resources: list[Resource]
    rank_classes: list[RankClass]
    collectives: dict[str, CollectiveActivity]
    links: dict[int, int] = field(default_factory=dict)
    background: tuple[BackgroundFlow, ...] = ()
    token_buckets: tuple[tuple[int, TokenBucket], ...] = ()
    wakeup_latency_s: float = 0.0
