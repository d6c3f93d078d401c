"""How long computations take by a profile of measured block times."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import update_passes
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.profiles.blocks import BlockTime, Profile, require
from stanza_sim.simulate.cost_model import SGD_PASSES
from stanza_sim.simulate.residual import Residual, within


class MeasuredCosts:
    """Costs from a profile: exact where the number of samples was measured.

    Between two measured numbers a time is interpolated, outside it is proportional to the nearest one; `source`
    tells which numbers have been asked for and not measured. Raises `InputError` if the profile is of another model
    or precision, or lacks a time.
    """

    def __init__(self, profile: Profile, model: ModelProfile, precision: str = "fp32", speed: float = 1.0) -> None:
        require(profile, model, precision)
        self._profile, self._speed = profile, speed
        self._rows: dict[str, list[BlockTime]] = {}
        for row in sorted(profile.blocks, key=lambda row: row.samples):
            self._rows.setdefault(row.block, []).append(row)
        self._found: dict[tuple[str, int, str, int], float] = {}
        self._estimated: set[int] = set()
        self._blocks = {block.name: block for block in model.blocks}
        self._sliced: set[str] = set()

    @property
    def source(self) -> str:
        """Where the numbers come from, and what had to be estimated between them so far."""
        profile = self._profile
        measured = sorted({row.samples for row in profile.blocks})
        text = f"measured on {profile.device} ({profile.date}, {profile.ranks_at_once} ranks at once)"
        text += f" for {', '.join(map(str, measured))} samples"
        if self._estimated:
            text += f"; from these estimated for {', '.join(map(str, sorted(self._estimated)))}"
        if self._sliced:
            text += f"; slices of {', '.join(sorted(self._sliced))} by their share of the FLOPs"
        return text if self._speed == 1.0 else f"{text}, at {self._speed:g} of its speed"

    @property
    def residual(self) -> Residual:
        """Half the spread of repeated timings, in the mean over blocks weighted by their times."""
        rows = self._profile.blocks
        total_s = sum(row.forward_s + row.backward_s for row in rows)
        spread = sum(row.spread * (row.forward_s + row.backward_s) for row in rows) / total_s if total_s else 0.0
        return within(spread / 2, f"block times measured, repeated within {spread / 2:.0%}")

    def _share(self, block: Block) -> float:
        """The share of a block that a slice of it is, by FLOPs; 1 of the block itself."""
        whole = self._blocks.get(block.name, block)
        if whole is block or not whole.forward_flops or whole.forward_flops == block.forward_flops:
            return 1.0
        self._sliced.add(block.name)
        return block.forward_flops / whole.forward_flops

    def _time(self, block: Block, samples: int, kind: str, value: Callable[[BlockTime], float | None]) -> float:
        """Return the time of a phase with the overhead of an op."""
        key = (block.name, block.forward_flops, kind, samples)
        if key not in self._found:
            rows = [(row.samples, s) for row in self._rows[block.name] if (s := value(row)) is not None]
            if not rows:
                raise InputError(f"the profile of {self._profile.date} has no {kind} time for block {block.name!r}")
            if samples not in dict(rows):
                self._estimated.add(samples)
            seconds = _interpolate(rows, samples) * self._share(block)
            self._found[key] = (seconds + self._profile.op_overhead_s) / self._speed
        return self._found[key]

    def forward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._time(block, samples, "forward", lambda row: row.forward_s)

    def backward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._time(block, samples, "backward", lambda row: row.backward_s)

    def backward_input_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._time(block, samples, "backward_input", lambda row: row.backward_input_s)

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._time(block, samples, "backward_weight", lambda row: row.backward_weight_s)

    def loss_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._time(block, samples, "loss", lambda row: row.loss_s)

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """See `CostModel`; the profile's rate is that of reading the contributions."""
        return (contributions * nbytes / self._profile.reduce_Bps + self._profile.op_overhead_s) / self._speed

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        """See `CostModel`; updates of another optimiser than the one measured take times in proportion to the bytes."""
        measured = update_passes(self._profile.moments)
        return (nbytes / self._profile.update_Bps * passes / measured + self._profile.op_overhead_s) / self._speed


def _interpolate(rows: list[tuple[int, float]], samples: int) -> float:
    """Return the time for `samples` from (samples, seconds), ascending: linear between, proportional outside."""
    if samples <= rows[0][0]:
        return rows[0][1] * samples / rows[0][0]
    for (a, time_a), (b, time_b) in pairwise(rows):
        if samples <= b:
            return time_a + (time_b - time_a) * (samples - a) / (b - a)
    return rows[-1][1] * samples / rows[-1][0]
