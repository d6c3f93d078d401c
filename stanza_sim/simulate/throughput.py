"""Costs scaled to a throughput that is known of one device: `throughput:` of a model.

One factor multiplies a device's times of all passes, losses and updates, so that a step on one device (forward, loss,
backward and update of every block) takes `batch / samples_per_s` at the batch that was stated. Other batches follow the
costs that are scaled. Sums of what others sent stay as they are: training on one device has none.
"""

from __future__ import annotations

from stanza_sim.base.config import near
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.device import load_device
from stanza_sim.model.profile import Block, ModelProfile, Throughput
from stanza_sim.simulate.cost_model import SGD_PASSES, CostModel, step_s
from stanza_sim.simulate.residual import Residual, within

GIVEN = 0.05
"""How far off times may be that were scaled to a given throughput: of published rows inside one host, predicted from
that source's own single-GPU throughput, the middle one was off by 5.3%."""


class ScaledCosts:
    """The costs of `base` times one factor, such that `model` reaches the samples/s of `given` at its batch.

    `speed` is how fast the device of `base` is, relative to the device that `given` is about; `passes` are those of an
    update over the parameters. Raises `InputError` if
    a step costs nothing that could be scaled.
    """

    def __init__(
        self, base: CostModel, model: ModelProfile, given: Throughput, speed: float = 1.0, passes: int = SGD_PASSES
    ) -> None:
        predicted_s = step_s(base, model, given.batch, update_passes=passes) * speed
        if not predicted_s > 0:
            raise InputError(f"a step of {model.name} takes no time that could be scaled", where="throughput")
        self.factor = given.batch / given.samples_per_s / predicted_s
        """What each time is multiplied by."""
        self._base, self._given = base, given

    @property
    def source(self) -> str:
        """Where the scaled numbers come from, and to what they were scaled."""
        given = self._given
        to = f"{given.samples_per_s:g} samples/s on {given.device} at batch {given.batch} as given"
        return f"{self._base.source}, scaled by {self.factor:.3g} to {to}"

    @property
    def residual(self) -> Residual:
        """What a given throughput leaves, whatever the base's own residual is; see `GIVEN`."""
        return within(GIVEN, f"throughput of {self._given.device} as given, taken to be within {GIVEN:.0%}")

    def forward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._base.forward_s(block, samples) * self.factor

    def backward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._base.backward_s(block, samples) * self.factor

    def backward_input_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._base.backward_input_s(block, samples) * self.factor

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._base.backward_weight_s(block, samples) * self.factor

    def loss_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._base.loss_s(block, samples) * self.factor

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """As `base` has it: no training on one device sums up what others sent."""
        return self._base.reduce_s(nbytes, contributions)

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        """See `CostModel`."""
        return self._base.update_s(nbytes, passes) * self.factor


def throughput_of(model: ModelProfile, device: str) -> Throughput | None:
    """Return what is given of `model` on a device, by the device's own name or as a cluster's file names it."""
    for given in model.throughput:
        if given.device in (device, load_device(device).name):
            return given
    return None


def with_given_throughput(
    base: CostModel, model: ModelProfile, device: str, speed: float = 1.0, passes: int = SGD_PASSES
) -> CostModel:
    """Return `base`, costs of a device `speed` times as fast as `device`, scaled if `model` has its throughput."""
    given = throughput_of(model, device)
    return base if given is None else ScaledCosts(base, model, given, speed, passes)


def check_throughput(model: ModelProfile, cluster: Cluster) -> None:
    """Raise `InputError` if `model` has throughputs of devices, and of none that `cluster` computes on.

    What is given of further devices is for other clusters; they must be known.
    """
    if not model.throughput:
        return
    used = sorted({cluster.device_of(rank) for rank in range(cluster.world_size)})
    names = {name for device in used for name in (device, load_device(device).name)}
    for given in model.throughput:
        if given.device not in names:
            try:
                load_device(given.device)
            except InputError:
                where, hint = f"throughput.{given.device}", near(given.device, used)
                message = f"there is no device {given.device!r}; the ranks of {cluster.name} compute on"
                raise InputError(f"{message} {', '.join(used)}", where=where, hint=hint) from None
    if not any(given.device in names for given in model.throughput):
        stated = ", ".join(given.device for given in model.throughput)
        raise InputError(
            f"{model.name}: throughput of {stated}, but the ranks of {cluster.name} compute on {', '.join(used)}",
            where="throughput",
            hint="state that of a device of this cluster, or leave it out",
        )
