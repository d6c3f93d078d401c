"""What ranks are asked to time, and what they answer. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stanza_sim.base.precision import Precision
from stanza_sim.execute.calibrate.single import Sizes
from stanza_sim.execute.rank.clock import ClockOffset
from stanza_sim.execute.rank.job import Backend
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Phase

MessageTimes = tuple[float, float | None]
"""Wall seconds of a message, and core seconds of its rank's process; None where these cannot be told.

A thread that waits for a GPU spins, which counts as time of a core and costs nobody any; messages between devices have
no core seconds that could be told apart from that.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTimes:
    """What single messages between ranks 0 and 1 took; see `RankTimes`."""

    host: str
    cores: int
    small_bytes: int
    large_bytes: int
    small: MessageTimes | None
    large: MessageTimes | None
    between_devices: bool = False
    copy_bytes: CopySizes | None = None
    copies: Copies | None = None
    beside_collective: float | None = None


CopySizes = tuple[int, int]
"""Bytes of a small and of a large copy."""
Copies = tuple[tuple[float, float], tuple[float, float]]
"""Seconds of a small and of a large copy: from the device to page-locked memory, and back."""


TimeId = tuple[str, int, Phase]
"""(block, samples, phase) of a time."""
Times = dict[TimeId, list[float]]
"""Seconds of each repetition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be timed: for each block the numbers of samples; how many gradients the largest reduction sums.

    Updates are those of an optimiser that keeps `moments` vectors.
    """

    model: ModelProfile
    samples: Mapping[str, tuple[int, ...]]
    contributions: int
    backend: Backend = Backend.AUTO
    seed: int = 1
    precision: Precision = Precision.FP32
    moments: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Blocks that are timed together, one after the other, at one number of samples.

    With `apart` the gradients of a block's input and of its weights are computed one after the other.
    """

    samples: int
    apart: bool
    blocks: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionsWanted:
    """Sections to be timed, for about `seconds` and at least `least` times each.

    `op_overhead_s` is what the engine adds to a computation. Updates are those of an optimiser that keeps `moments`
    vectors.
    """

    model: ModelProfile
    sections: tuple[Section, ...]
    seconds: float
    least: int
    op_overhead_s: float
    seed: int = 1
    precision: Precision = Precision.FP32
    moments: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCores:
    """What messages cost the cores of one rank, apart from computations: `ends` sent or received, `nbytes` in all."""

    core_s: float
    ends: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionTimes:
    """What one rank timed of sections: blocks, updates (None where none was made), and what messages cost its cores.

    `messages` and `rests_s` have an entry for each section that was timed under load. `rests_s` are the seconds per
    iteration for which a core that the ranks compute on had nothing to do: in each iteration they meet once.
    """

    blocks: Times
    update_Bps: float | None
    messages: tuple[MessageCores, ...]
    rests_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimes:
    """What one rank timed. `small` and `large` are probes, or None; `between_devices` says that NCCL moved them.

    On an accelerator `copies` are those of `copy_bytes`, and `beside_collective` how many times as long a computation
    takes beside collectives of NCCL's (None: none was timed). `provenance` is what is known of the device.
    `messages` and `rests_s` are as in `SectionTimes`.
    `small_bytes` and `large_bytes` are their sizes; only ranks 0 and 1 probe. `cores` are those of the rank's host.
    """

    host: str
    device: str
    driver: str | None
    cores: int
    torch_version: str
    blocks: Times
    reduce_Bps: float
    update_Bps: float
    op_overhead_s: float
    small_bytes: int
    large_bytes: int
    small: MessageTimes | None
    large: MessageTimes | None
    between_devices: bool = False
    copy_bytes: CopySizes | None = None
    copies: Copies | None = None
    beside_collective: float | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[MessageCores, ...] = ()
    rests_s: tuple[float, ...] = ()


ProbeId = tuple[int, int, int, int]
"""(pair, direction, bytes, repeat) of a message that is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesWanted:
    """Messages to be timed: of `sizes` between pairs of ranks, under real-time scheduling if `realtime`."""

    pairs: tuple[tuple[tuple[int, int], Sizes], ...]
    backend: Backend = Backend.AUTO
    realtime: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that a rank posted at `posted_s` of its own clock, which took `posting_s`."""

    probe: ProbeId
    posted_s: float
    posting_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMessages:
    """What one rank sent, and when of its own clock messages to it arrived; whether it ran in real time."""

    clock: ClockOffset
    realtime: bool
    sent: tuple[Sent, ...]
    arrived: Mapping[ProbeId, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCores:
    """Where a rank runs, and what it timed there: wake-ups, a computation with `busy_s[k]` ranks at it, vectors."""

    device: str
    driver: str | None
    cores: int
    kernel: str
    torch_version: str
    hops: tuple[float, ...]
    busy_s: Mapping[int, tuple[float, ...]]
    reduce_Bps: tuple[float, ...]
    update_Bps: tuple[float, ...]
