"""How long computations take by a device's data sheet: a roofline.

Roofline of a phase of a block with n samples (S. Williams et al., "Roofline: an insightful visual performance model",
2009): max(FLOPs / (efficiency x peak), bytes / memory bandwidth) + kernels x launch overhead. The bytes are those of
the outputs of the block's operations, each moved as often as the constants below say, and of its parameters. The
efficiency is fitted to published throughput (`stanza_sim.simulate.fit`) and takes up what the constants get wrong.

It holds for batches that fill the device; for a few samples on a large GPU it is too fast. It does not know that
an efficiency grows with the batch: the residuals of the fits, shown with every prediction, say how much that matters.
"""

from __future__ import annotations

from dataclasses import dataclass

from stanza_sim.base.precision import HALF, HALF_BYTES
from stanza_sim.cluster.device import DeviceSpec, ModelEfficiency, ModelFactor
from stanza_sim.model import zoo
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.simulate.cost_model import SGD_PASSES
from stanza_sim.simulate.fit_residual import roofline_residual

FORWARD_PASSES = 2
"""Memory passes over the outputs of a block's operations in forward: each is written, then read by the next."""
BACKWARD_INPUT_PASSES = 3
"""Read the gradient of the output and what forward saved, write the gradient of the input."""
BACKWARD_WEIGHT_PASSES = 1
"""Read the input and the gradient of the output, but of operations with weights only: about half of them."""
LOSS_PASSES = 4
"""Softmax cross-entropy over the logits: read and write, forward and backward."""
LOSS_KERNELS = 3


@dataclass(frozen=True, slots=True)
class _Work:
    """What a phase of a block needs: seconds per sample of arithmetic and memory, and seconds per call."""

    compute_s: float
    memory_s: float
    parameters_s: float
    launch_s: float

    def seconds(self, samples: int) -> float:
        return max(self.compute_s * samples, self.memory_s * samples + self.parameters_s) + self.launch_s


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
        self._itemsize = HALF_BYTES if precision in HALF else model.itemsize
        self._flops = spec.peak_flops * speed * value
        self._scale = self._itemsize / model.itemsize
        self._blocks = {block.name: block for block in model.blocks}
        self._work = {block.name: self._phases(block, self._scale) for block in model.blocks}

        note = f" ({spec.note})" if spec.note != precision else ""
        text = f"roofline {device.name}{note}, "
        if efficiency is not None:
            text += f"efficiency {efficiency:.3g} as given"
        elif fit is not None:
            text += f"{known_as} efficiency {value:.3g} fitted to {fitted_to(fit)}"
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

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        """See `CostModel`: the update is one kernel."""
        return passes * nbytes / self._bandwidth_Bps + self._launch_s


def fitted_to(fit: ModelEfficiency | ModelFactor) -> str:
    """Return how many published timings a number was fitted to and how far it is from them, in time."""
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
