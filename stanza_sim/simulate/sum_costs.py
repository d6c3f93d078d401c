"""How long computations take on a GPU: a sum over kinds of op, with constants from one fit over published timings.

What the device needs for a pass over a block with n samples is the sum over kinds of op of

    flops[kind] x FLOPs / peak  +  bytes[kind] x bytes touched / memory bandwidth

and what the host needs is `launch.forward` or `launch.backward` for each kernel. Both go on at once, the host ahead of
the device, but not perfectly: a step takes (device^p + host^p)^(1/p), p = `launch.overlap`; so it takes at least what
the host needs. With `Launch.GRAPHS` (CUDA graphs, compiled steps) a kernel costs the device file's `launch_overhead`.

The constants are those of the device file (`stanza_sim.simulate.fit` writes them, with residuals). Under autocast
(fp16, bf16) activations and the weights that products read take 2 bytes; the master weights are cast in every step,
losses, updates and blocks that say so (heads with a margin) are in fp32, their products in TF32 where a device can.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from stanza_sim.base.config import near
from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.base.precision import HALF, HALF_BYTES, Precision
from stanza_sim.cluster.device import DeviceSpec, Residuals, WorkConstants
from stanza_sim.model.module_work import ModuleWork
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, OpWork, PassWork
from stanza_sim.simulate.cost_model import SGD_PASSES
from stanza_sim.simulate.fit_residual import sum_residual
from stanza_sim.simulate.roofline import (
    BACKWARD_INPUT_PASSES,
    BACKWARD_WEIGHT_PASSES,
    FORWARD_PASSES,
    LOSS_KERNELS,
    LOSS_PASSES,
    fitted_to,
    measured_name,
)

CAST_NBYTES = 6
"""Autocast reads 4 bytes of each parameter and writes 2 in forward; in backward its gradient is cast back."""
LOSS_ITEMSIZE = 4
"""Losses are computed in fp32, under autocast too."""


OUTSIDE = (Precision.TF32, Precision.FP32)
"""In which precision autocast leaves what it does not cast: the first of these that a device has."""


class Launch(StrEnum):
    """How kernels reach the device: op by op from Python, or recorded once and replayed."""

    EAGER = "eager"
    GRAPHS = "graphs"


def launch_of(name: str) -> Launch:
    """Return the launch mode called `name`. Raises `InputError`."""
    try:
        return Launch(name)
    except ValueError:
        raise InputError(f"there is no launch mode {name!r}", hint=near(name, list(Launch))) from None


@dataclass(frozen=True, slots=True)
class PassTime:
    """Seconds of a pass on the device, for each sample and whatever their number, and of the host."""

    sample_s: float
    fixed_s: float
    host_s: float

    def device_s(self, samples: int) -> float:
        """Seconds on the device."""
        return self.sample_s * samples + self.fixed_s


class WorkTimes:
    """Seconds of work by kind of op on a device at a precision.

    Raises `InputError` for a precision that the device has no data for, or no constants.
    """

    def __init__(self, device: DeviceSpec, precision: str, speed: float, launch: Launch) -> None:
        spec = device.precision(precision)
        if spec.constants is None or device.launch is None:
            raise InputError(f"device {device.name} has no constants for {spec.name}")
        self.constants: WorkConstants = spec.constants
        self._half = spec.name in HALF
        self._peak_flops = spec.peak_flops * speed
        outside = next((name for name in OUTSIDE if name in device.precisions), None) if self._half else None
        self._whole = None if outside is None else WorkTimes(device, outside, speed, launch)
        self._bandwidth_Bps = device.memory_bandwidth_Bps * speed
        self._overlap = device.launch.overlap
        eager = launch is Launch.EAGER
        forward_s = device.launch.forward_s if eager else device.launch_overhead_s
        backward_s = device.launch.backward_s if eager else device.launch_overhead_s
        self._host_s = (forward_s / speed, backward_s / speed, backward_s / speed)

    def passes(self, work: Iterable[OpWork], numel: int, itemsize: int = 4) -> tuple[PassTime, PassTime, PassTime]:
        """Return the times of forward, input gradient and weight gradient of work with `numel` parameters."""
        width = HALF_BYTES / itemsize if self._half else 1.0
        cast_s = CAST_NBYTES * numel * self._bytes(OpKind.ELEMENTWISE) if self._half else 0.0
        found = []
        for i, extra_s in enumerate((cast_s, 0.0, cast_s)):
            sample_s, fixed_s, host_s = 0.0, extra_s, 0.0
            for one in work:
                amount = one.passes[i]
                byte_s = self._bytes(one.kind) * width
                flop_s = self.constants.flops.get(one.kind, 1.0) / self._peak_flops
                sample_s += flop_s * amount.flops + byte_s * amount.sample_nbytes
                fixed_s += byte_s * amount.fixed_nbytes
                host_s += self._host_s[i] * amount.kernels
            found.append(PassTime(sample_s, fixed_s, host_s))
        forward, inputs, weights = found
        return forward, inputs, weights

    def outside_autocast(self) -> WorkTimes:
        """Return the times of what autocast leaves in fp32; these times where that makes no difference."""
        return self._whole or self

    def loss(self, output_numel: int) -> PassTime:
        """Return the time of softmax cross-entropy over the logits of samples, forward and backward."""
        sample_s = LOSS_PASSES * output_numel * LOSS_ITEMSIZE * self._bytes(OpKind.ELEMENTWISE)
        return PassTime(sample_s, 0.0, LOSS_KERNELS * self._host_s[0])

    def together_s(self, device_s: float, host_s: float) -> float:
        """Return the seconds of a step that the device and the host need so much of."""
        if not device_s or not host_s:
            return device_s + host_s
        p = self._overlap
        return float((device_s**p + host_s**p) ** (1 / p))

    def update_s(self, nbytes: float, passes: int = SGD_PASSES) -> float:
        """See `CostModel`: the update is one kernel."""
        return passes * nbytes / self._bandwidth_Bps

    def reduce_s(self, nbytes: float, contributions: int) -> float:
        """Reads each contribution and writes the sum, at the memory bandwidth."""
        return (contributions + 1) * nbytes / self._bandwidth_Bps

    def _bytes(self, kind: OpKind) -> float:
        return self.constants.nbytes.get(kind, 1.0) / self._bandwidth_Bps


def module_step_s(
    device: DeviceSpec,
    known: ModuleWork,
    precision: str,
    samples: int,
    *,
    launch: Launch = Launch.EAGER,
    update: bool = True,
) -> float:
    """Return the seconds of a training step of a module with `samples` samples; `update`: the optimiser's included."""
    times = WorkTimes(device, precision, 1.0, launch)
    passes = (*times.passes(known.work, known.numel), times.loss(known.output_numel))
    device_s, host_s = sum(one.device_s(samples) for one in passes), sum(one.host_s for one in passes)
    return times.together_s(device_s, host_s) + (times.update_s(known.numel * 4) if update else 0.0)


class SumCosts:
    """Costs from a device's constants by kind of op, times the factor of a model that was measured on the device.

    `speed` scales the whole device (0.5: everything takes twice as long). Without `factored` a measured model is
    computed like any other. Raises `InputError` as `WorkTimes` does.
    """

    def __init__(
        self,
        device: DeviceSpec,
        model: ModelProfile,
        precision: str = "fp32",
        speed: float = 1.0,
        *,
        launch: Launch = Launch.EAGER,
        factored: bool = True,
    ) -> None:
        spec = device.precision(precision)
        self._times = WorkTimes(device, precision, speed, launch)
        constants = self._times.constants
        known_as = measured_name(model)
        fit = constants.models.get(known_as) if factored else None
        self._factor = fit.value if fit else 1.0
        self._overhead_s = device.launch_overhead_s / speed
        self._itemsize = model.itemsize
        self._blocks = {block.name: block for block in model.blocks}
        self._passes = {block.name: self._phases(block) for block in model.blocks}
        self._loss = self._times.loss(model.blocks[-1].output_numel)
        every = [one for passes in self._passes.values() for one in passes] + [self._loss]
        self._step = PassTime(
            sum(one.sample_s for one in every), sum(one.fixed_s for one in every), sum(one.host_s for one in every)
        )
        note = f" ({spec.note})" if spec.note != precision else ""
        text = f"sum model {device.name}{note}, "
        if fit is not None:
            text += f"{known_as} times {fit.value:.3g}, fitted to {fitted_to(fit)}"
        else:
            text += _trust(constants, model.name)
        if launch is not Launch.EAGER:
            text += f", launched by {launch.value}"
        self.source = text if speed == 1.0 else f"{text}, at {speed:g} of its speed"
        self.residual = sum_residual(constants, None if fit is None else known_as)

    def _phases(self, block: Block) -> tuple[PassTime, PassTime, PassTime]:
        times = self._times.outside_autocast() if block.fp32 else self._times
        return times.passes(block.work or roughly(block, self._itemsize), block.numel, self._itemsize)

    def _of(self, block: Block) -> tuple[PassTime, PassTime, PassTime]:
        """The passes of a block of the model, or of a slice of one, which has its name and numbers of its own."""
        if self._blocks.get(block.name) is block:
            return self._passes[block.name]
        return self._phases(block)

    def _seconds(self, passes: Iterable[PassTime], samples: int) -> float:
        """What passes take within a step of `samples` samples, in which the host is ahead of the device."""
        step_s, host_s = self._step.device_s(samples), self._step.host_s
        within = self._times.together_s(step_s, host_s) / (step_s + host_s) if step_s + host_s else 1.0
        return self._factor * within * sum(one.device_s(samples) + one.host_s for one in passes)

    def forward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._seconds(self._of(block)[:1], samples)

    def backward_input_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._seconds(self._of(block)[1:2], samples)

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._seconds(self._of(block)[2:], samples)

    def backward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._seconds(self._of(block)[1:], samples)

    def loss_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._seconds((self._times.loss(block.output_numel),), samples)

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """Reads each contribution and writes the sum, at the memory bandwidth."""
        return self._times.reduce_s(nbytes, contributions) + self._overhead_s

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        """See `CostModel`: the update is one kernel."""
        return self._times.update_s(nbytes, passes) + self._overhead_s


def roughly(block: Block, itemsize: int) -> tuple[OpWork, ...]:
    """Return the work of a block of which only totals are known: 3x3 convolutions (FC part: linear layers), and memory.

    Outputs are moved as often as a roofline assumes.
    """
    product = OpKind.LINEAR if block.kind is BlockKind.FC else OpKind.CONV_3X3
    weights = sum(len(tensor.shape) > 1 for tensor in block.tensors)
    parameters, touched = block.numel * itemsize, block.bytes_touched
    inputs = block.backward_input_flops > 0
    return (
        OpWork(
            kind=product,
            forward=PassWork(flops=block.forward_flops, fixed_nbytes=parameters, kernels=weights),
            backward_input=PassWork(flops=block.backward_input_flops, fixed_nbytes=parameters * inputs),
            backward_weight=PassWork(flops=block.backward_weight_flops, fixed_nbytes=parameters, kernels=weights),
        ),
        OpWork(
            kind=OpKind.ELEMENTWISE,
            forward=PassWork(sample_nbytes=FORWARD_PASSES * touched, kernels=max(0, block.kernels - weights)),
            backward_input=PassWork(sample_nbytes=BACKWARD_INPUT_PASSES * touched, kernels=block.kernels),
            backward_weight=PassWork(sample_nbytes=BACKWARD_WEIGHT_PASSES * touched if weights else 0),
        ),
    )


def _trust(constants: WorkConstants, model: str) -> str:
    """Return how far the sum can be trusted for a model that was not measured."""
    known = constants.residuals
    if known is None:
        return f"{constants.source}; not measured for {model}"
    return f"{in_words(known)} (not measured for {model})"


def in_words(known: Residuals) -> str:
    """Return residuals, of models left out of the fit, as they stand in a line under a table."""
    many = f"{known.models} models" if known.models != 1 else "1 model"
    return f"median error {known.median:.0%} on {many}"
