"""Small models, clusters and costs that the tests of schedules, strategies and the simulator share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stanza_sim import strategies
from stanza_sim.cluster import Cluster, Host, Loopback, Nic, Placement, star
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, ParamTensor
from stanza_sim.schedule import Schedule
from stanza_sim.simulate import Prediction, simulate

FREE = Loopback(bandwidth_Bps=1e15, latency_s=0.0, message_core_s=0.0, byte_core_s=0.0)
"""A loopback that costs nothing."""


def block(name: str, kind: BlockKind, shapes: Sequence[tuple[int, ...]], output: int, flops: int = 100) -> Block:
    """A block whose tensors are `name.t0`, `name.t1`, ..."""
    return Block(
        name=name,
        kind=kind,
        tensors=tuple(ParamTensor(name=f"{name}.t{i}", shape=s) for i, s in enumerate(shapes)),
        forward_flops=flops,
        backward_input_flops=flops,
        backward_weight_flops=flops if shapes else 0,
        bytes_touched=4 * output,
        kernels=1,
        output_shape=(output,),
    )


def toy(width: int = 1) -> ModelProfile:
    """Three CONV blocks, one of them without parameters, and two FC blocks; no size divides another."""
    conv, fc = BlockKind.CONV, BlockKind.FC
    return ModelProfile(
        name="toy",
        blocks=(
            block("c1", conv, [(9 * width,), (3,)], 10 * width, flops=500),
            block("pool", conv, [], 5 * width, flops=10),
            block("c2", conv, [(25 * width,), (5,)], 6 * width, flops=900),
            block("f1", fc, [(7, 6 * width), (7,)], 7, flops=84),
            block("f2", fc, [(4, 7), (4,)], 4, flops=56),
        ),
        boundary=3,
        input_shape=(3, 2, 2),
        num_classes=4,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds proportional to the work: exact, so that closed forms hold."""

    source: str = "test costs"
    flops_s: float = 0.0  # seconds per FLOP
    loss: float = 0.0  # seconds
    reduce_byte_s: float = 0.0
    update_byte_s: float = 0.0

    def forward_s(self, block: Block, samples: int) -> float:
        return block.forward_flops * samples * self.flops_s

    def backward_s(self, block: Block, samples: int) -> float:
        return self.backward_input_s(block, samples) + self.backward_weight_s(block, samples)

    def backward_input_s(self, block: Block, samples: int) -> float:
        return block.backward_input_flops * samples * self.flops_s

    def backward_weight_s(self, block: Block, samples: int) -> float:
        return block.backward_weight_flops * samples * self.flops_s

    def loss_s(self, block: Block, samples: int) -> float:
        return self.loss

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        return nbytes * contributions * self.reduce_byte_s

    def update_s(self, nbytes: int, passes: int = 5) -> float:
        return nbytes * self.update_byte_s

    def at_speed(self, speed: float) -> Costs:
        """The same on a device that is `speed` times as fast."""
        return Costs(
            flops_s=self.flops_s / speed,
            loss=self.loss / speed,
            reduce_byte_s=self.reduce_byte_s / speed,
            update_byte_s=self.update_byte_s / speed,
        )


ZERO = Costs()
SOME = Costs(flops_s=1e-6, loss=2e-5, reduce_byte_s=3e-9, update_byte_s=5e-9)


def cluster(
    hosts: int,
    *,
    ranks_per_host: int = 1,
    cores: int = 2,
    on_cores: bool = False,
    nic: Nic | None = None,
    loopback: Loopback = FREE,
    nics: Mapping[int, Nic] | None = None,
    speeds: Mapping[int, float] | None = None,
    placement: Sequence[int] | None = None,
) -> Cluster:
    """A star; `nics` and `speeds` override single hosts, `placement` gives each rank's host. Collectives are gloo's."""
    nic = nic or Nic(bandwidth_Bps=1e6)
    made = [
        Host(
            name=f"h{i}",
            cores=cores,
            nic=(nics or {}).get(i, nic),
            devices=() if on_cores else ("gpu",) * (len(placement) if placement else ranks_per_host),
            device_speed=(speeds or {}).get(i, 1.0),
            loopback=loopback,
        )
        for i in range(hosts)
    ]
    result = replace(star(made, ranks_per_host=ranks_per_host), uses_nccl=False)
    if placement is None:
        return result
    used = [0] * hosts
    places = []
    for h in placement:
        places.append(Placement(host=h, device=None if on_cores else used[h]))
        used[h] += 1
    return replace(result, placement=tuple(places))


def build(name: str, model: ModelProfile, world_size: int, batch: int = 4, **settings: object) -> Schedule:
    """The schedule of a strategy with these settings."""
    strategy = strategies.get(name)
    return strategy.build(
        model, world_size=world_size, batch_per_worker=batch, settings=strategy.Settings.model_validate(settings)
    )


def predict(
    schedule: Schedule,
    model: ModelProfile,
    on: Cluster,
    costs: Costs = SOME,
    *,
    fold_ranks: bool = True,
    max_iterations: int = 40,
    engine: str = "auto",
) -> Prediction:
    """Simulate with `costs` at the speed of each rank's host."""
    made = {h.device_speed: costs.at_speed(h.device_speed) for h in on.hosts}
    return simulate(
        schedule,
        model,
        on,
        lambda rank: made[on.host_of(rank).device_speed],
        fold_ranks=fold_ranks,
        max_iterations=max_iterations,
        engine=engine,
    )
