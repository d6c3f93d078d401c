"""How long computations take on a device that does nothing else: measured where there is a profile, else a roofline.

Roofline of a phase of a block with n samples (S. Williams et al., "Roofline: an insightful visual performance model",
2009): max(FLOPs / (efficiency x peak), bytes / memory bandwidth) + kernels x launch overhead. The bytes are those of
the outputs of the block's operations, each moved as often as the constants below say, and of its parameters. The
efficiency is fitted to published throughput (`stanza_sim.simulate.fit`) and takes up what the constants get wrong.

It holds for batches that fill the device; for a few samples on a large GPU it is too fast. It does not know that
an efficiency grows with the batch: the residuals of the fits, shown with every prediction, say how much that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.device import DeviceSpec, ModelEfficiency, load_device
from stanza_sim.model import zoo
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.profiles.blocks import BlockTime, Profile, require
from stanza_sim.simulate.residual import Residual, within
from stanza_sim.simulate.roofline_residual import roofline_residual

FORWARD_PASSES = 2
"""Memory passes over the outputs of a block's operations in forward: each is written, then read by the next."""
BACKWARD_INPUT_PASSES = 3
"""Read the gradient of the output and what forward saved, write the gradient of the input."""
BACKWARD_WEIGHT_PASSES = 1
"""Read the input and the gradient of the output, but of operations with weights only: about half of them."""
UPDATE_PASSES = 5
"""SGD with momentum reads parameter, gradient and momentum and writes parameter and momentum."""
LOSS_PASSES = 4
"""Softmax cross-entropy over the logits: read and write, forward and backward."""
LOSS_KERNELS = 3
HALF = ("fp16", "bf16")
"""Precisions whose activations take 2 bytes; all others take the model's item size."""


class CostModel(Protocol):
    """Seconds of each kind of computation on an otherwise idle device; `source` is printed with every prediction.

    It may also have a `residual`, how far off all of these may be together: see `residual_of`.

    A block may be a slice of one of the model's, with its name and its share of the work.
    """

    @property
    def source(self) -> str:
        """Where the numbers come from, in words."""
        ...

    def forward_s(self, block: Block, samples: int) -> float:
        """Forward pass of `block` over `samples` samples."""
        ...

    def backward_s(self, block: Block, samples: int) -> float:
        """Input gradient and weight gradient of `block` in one go."""
        ...

    def backward_input_s(self, block: Block, samples: int) -> float:
        """Gradient with respect to the input of `block` only."""
        ...

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """Gradient with respect to the parameters of `block` only."""
        ...

    def loss_s(self, block: Block, samples: int) -> float:
        """Loss and its gradient, from the output of the last block."""
        ...

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """Sum of `contributions` buffers of `nbytes` each."""
        ...

    def update_s(self, nbytes: int) -> float:
        """Optimiser step on `nbytes` of parameters."""
        ...


@dataclass(frozen=True, slots=True)
class _Work:
    """What a phase of a block needs: seconds per sample of arithmetic and memory, and seconds per call."""

    compute_s: float
    memory_s: float
    parameters_s: float
    launch_s: float

    def seconds(self, samples: int) -> float:
        return max(self.compute_s * samples, self.memory_s * samples + self.parameters_s) + self.launch_s


def residual_of(costs: object) -> Residual:
    """How far off the times of a cost model may be, as its `residual` says; one that says nothing is taken as exact."""
    found = getattr(costs, "residual", None)
    return found if isinstance(found, Residual) else Residual(basis="times as given")


class RooflineCosts:
    """Costs from a device's data sheet and the efficiency that the model reaches on it.

    `speed` scales the whole device (0.5: everything takes twice as long). `efficiency` replaces the device's own
    figure for the model. Raises `InputError` for a precision that the device has no data for.
    """

    def __init__(
        self,
        device: DeviceSpec,
        model: ModelProfile,
        precision: str = "fp32",
        speed: float = 1.0,
        *,
        efficiency: float | None = None,
    ) -> None:
        spec = device.precision(precision)
        known_as = measured_name(model)
        fit = spec.models.get(known_as)
        value = efficiency if efficiency is not None else fit.value if fit else spec.default
        self._bandwidth_Bps = device.memory_bandwidth_Bps * speed
        self._launch_s = device.launch_overhead_s / speed
        self._itemsize = 2 if precision in HALF else model.itemsize
        self._flops = spec.peak_flops * speed * value
        self._scale = self._itemsize / model.itemsize
        self._blocks = {block.name: block for block in model.blocks}
        self._work = {block.name: self._phases(block, self._scale) for block in model.blocks}

        note = f" ({spec.note})" if spec.note != precision else ""
        text = f"roofline {device.name}{note}, "
        if efficiency is not None:
            text += f"efficiency {efficiency:.3g} as given"
        elif fit is not None:
            text += f"{known_as} efficiency {value:.3g} fitted to {_fitted_to(fit)}"
        elif spec.models:
            text += f"efficiency {value:.3g} of other models (not measured for {model.name}; {spec.default_source})"
        else:
            text += f"efficiency {value:.3g} ({spec.default_source})"
        self.source = text if speed == 1.0 else f"{text}, at {speed:g} of its speed"
        self.residual = roofline_residual(spec, known_as, efficiency)

    def _phases(self, block: Block, scale: float) -> tuple[_Work, _Work, _Work]:
        """Return the work of forward, backward_input and backward_weight; `scale` is that of the item size."""
        touched_s = block.bytes_touched * scale / self._bandwidth_Bps
        parameters_s = block.numel * self._itemsize / self._bandwidth_Bps
        weights = sum(len(tensor.shape) > 1 for tensor in block.tensors)
        return (
            _Work(
                compute_s=block.forward_flops / self._flops,
                memory_s=FORWARD_PASSES * touched_s,
                parameters_s=parameters_s,
                launch_s=block.kernels * self._launch_s,
            ),
            _Work(
                compute_s=block.backward_input_flops / self._flops,
                memory_s=BACKWARD_INPUT_PASSES * touched_s,
                parameters_s=parameters_s if block.backward_input_flops else 0.0,
                launch_s=block.kernels * self._launch_s,
            ),
            _Work(
                compute_s=block.backward_weight_flops / self._flops,
                memory_s=BACKWARD_WEIGHT_PASSES * touched_s if weights else 0.0,
                parameters_s=parameters_s,
                launch_s=weights * self._launch_s,
            ),
        )

    def _of(self, block: Block) -> tuple[_Work, _Work, _Work]:
        """The work of a block of the model, or of a slice of one, which has its name and numbers of its own."""
        if self._blocks.get(block.name) is block:
            return self._work[block.name]
        return self._phases(block, self._scale)

    def forward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._of(block)[0].seconds(samples)

    def backward_input_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._of(block)[1].seconds(samples)

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._of(block)[2].seconds(samples)

    def backward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        _, gradient, weight = self._of(block)
        return gradient.seconds(samples) + weight.seconds(samples)

    def loss_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        nbytes = LOSS_PASSES * samples * block.output_numel * self._itemsize
        return nbytes / self._bandwidth_Bps + LOSS_KERNELS * self._launch_s

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """Reads each contribution and writes the sum, at the memory bandwidth."""
        return (contributions + 1) * nbytes / self._bandwidth_Bps + self._launch_s

    def update_s(self, nbytes: int) -> float:
        """See `CostModel` and `UPDATE_PASSES`."""
        return UPDATE_PASSES * nbytes / self._bandwidth_Bps + self._launch_s


def _fitted_to(fit: ModelEfficiency) -> str:
    """Return how many published timings an efficiency was fitted to and how far it is from them, in time."""
    rows = [row for row in fit.timings if row.fitted]
    notes = []
    if len(rows) > 1:
        low, high = min(row.ratio for row in rows), max(row.ratio for row in rows)
        notes.append(f"residual {low - 1:+.0%}..{high - 1:+.0%}")
    if any(row.batch_assumed for row in rows):
        notes.append("its batch assumed")
    text = "1 published timing" if len(rows) == 1 else f"{len(rows)} published timings"
    return f"{text} ({', '.join(notes)})" if notes else text


def measured_name(model: ModelProfile) -> str:
    """Return the name under which a model's efficiency is listed: the shipped one's, whatever the user calls it.

    That is also where a model was scaled from: scaling multiplies the work, and leaves alone how fast it is done.
    """
    for name, source in zoo.SOURCES.items():
        if source.factory in (model.factory, model.scaled_from):
            return name
    # Somebody else's network that happens to be called vgg16 has not been measured.
    return f"{model.name} (not the shipped one)" if model.name in zoo.SOURCES else model.name


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

    def update_s(self, nbytes: int) -> float:
        """See `CostModel`."""
        return (nbytes / self._profile.update_Bps + self._profile.op_overhead_s) / self._speed


def _interpolate(rows: list[tuple[int, float]], samples: int) -> float:
    """Return the time for `samples` from (samples, seconds), ascending: linear between, proportional outside."""
    if samples <= rows[0][0]:
        return rows[0][1] * samples / rows[0][0]
    for (a, time_a), (b, time_b) in pairwise(rows):
        if samples <= b:
            return time_a + (time_b - time_a) * (samples - a) / (b - a)
    return rows[-1][1] * samples / rows[-1][0]


class RankCosts(Protocol):
    """The cost model of each rank: call it with a rank. `source` says in words where the numbers come from."""

    @property
    def source(self) -> str:
        """The sources of all ranks' numbers."""
        ...

    def __call__(self, rank: int, /) -> CostModel:
        """Return the cost model of the device that `rank` computes on."""
        ...


class Costs:
    """The cost model of each rank, by its device and its host's speed. Call it with a rank."""

    def __init__(self, cluster: Cluster, make: Callable[[str, float], CostModel]) -> None:
        self._cluster = cluster
        self._models: dict[tuple[str, float], CostModel] = {}
        for rank in range(cluster.world_size):
            key = (cluster.device_of(rank), cluster.host_of(rank).device_speed)
            if key not in self._models:
                self._models[key] = make(*key)

    def __call__(self, rank: int) -> CostModel:
        """Return the cost model of the device that `rank` computes on."""
        return self._models[self._cluster.device_of(rank), self._cluster.host_of(rank).device_speed]

    @property
    def source(self) -> str:
        """The sources of all devices, each once."""
        return "; ".join(dict.fromkeys(model.source for model in self._models.values()))


def is_of_device(profile: Profile, device: DeviceSpec) -> bool:
    """Return whether a profile was measured on such a device (`cpu` is any CPU; GPUs by the name in their driver's)."""
    kind, _, name = profile.device.lower().partition(" ")
    return kind == "cpu" if device.name == "cpu" else kind != "cpu" and device.name.lower() in name


def costs_for(cluster: Cluster, model: ModelProfile, precision: str = "fp32", profile: Profile | None = None) -> Costs:
    """Return the costs of every rank of `cluster`: the profile's where it is of the rank's device, else a roofline.

    Raises `InputError` if a device has no data for the precision, and if a profile is given that is of another model
    or precision or of none of the cluster's devices.
    """
    if profile is not None:
        require(profile, model, precision)
    used: list[str] = []

    def make(name: str, speed: float) -> CostModel:
        device = load_device(name)
        if profile is not None and is_of_device(profile, device):
            used.append(name)
            return MeasuredCosts(profile, model, precision, speed)
        return RooflineCosts(device, model, precision, speed)

    costs = Costs(cluster, make)
    if profile is not None and not used:
        names = sorted({cluster.device_of(rank) for rank in range(cluster.world_size)})
        raise InputError(
            f"the profile was measured on {profile.device}, the ranks of {cluster.name} compute on {', '.join(names)}",
            hint="leave the profile out, or measure one on that device with --execute --save-profile",
        )
    return costs
