"""What a server costs that is a process on a host's cores: sums and updates at the rate that the topology states.

The source of both: contributions stream through the process once, so adding up takes their bytes over `reduce_Bps`,
and an update by SGD with momentum the bytes of the parameters over it (see `stanza_sim.cluster.Host`). A rank on the
cores of a host with devices does nothing else.
"""

from __future__ import annotations

from typing import NoReturn

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import format_bytes
from stanza_sim.cluster.hardware import Host
from stanza_sim.model.profile import Block
from stanza_sim.simulate.cost_model import SGD_PASSES, CostModel
from stanza_sim.simulate.residual import Residual, residual_of


class ServerCosts:
    """Sums and updates at `reduce_Bps`; the rest as `passes` says, or an `InputError` without them."""

    def __init__(self, host: Host, reduce_Bps: float, passes: CostModel | None) -> None:
        self._host, self._reduce_Bps, self._passes = host, reduce_Bps, passes

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        text = f"sums and updates on the host's cores at {format_bytes(self._reduce_Bps)}/s (reduce_rate)"
        return text if self._passes is None else f"{self._passes.source}; {text}"

    @property
    def residual(self) -> Residual:
        """That of the passes; sums and updates go at the rate that is stated."""
        rate = "sums at the rate that the topology states"
        return Residual(basis=rate) if self._passes is None else residual_of(self._passes)

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """Each contribution is read once."""
        return contributions * nbytes / self._reduce_Bps

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        """The parameters pass once with SGD with momentum; other optimisers take times in proportion to the bytes."""
        return nbytes / self._reduce_Bps * passes / SGD_PASSES

    def forward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._refuse(block) if self._passes is None else self._passes.forward_s(block, samples)

    def backward_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._refuse(block) if self._passes is None else self._passes.backward_s(block, samples)

    def backward_input_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._refuse(block) if self._passes is None else self._passes.backward_input_s(block, samples)

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._refuse(block) if self._passes is None else self._passes.backward_weight_s(block, samples)

    def loss_s(self, block: Block, samples: int) -> float:
        """See `CostModel`."""
        return self._refuse(block) if self._passes is None else self._passes.loss_s(block, samples)

    def _refuse(self, block: Block) -> NoReturn:
        what = f"block {block.name} would be computed on the cores of {self._host.name}, which has devices"
        hint = "place servers only on its cores, such as parameter_server with placement: dedicated and as many servers"
        raise InputError(what, hint=hint)
