"""How far the costs of a scenario may be off: those of computations as their sources say, those of the network too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stanza_sim.base.units import format_rate
from stanza_sim.cluster import Cluster
from stanza_sim.profiles.network import NetworkProfile
from stanza_sim.simulate.cost_model import CostModel, RankCosts
from stanza_sim.simulate.residual import Residual, of_ratios, residual_of, within

STATED_NETWORK = 0.15
"""How far off messages may be on a network that a topology states and nobody measured: published rows over several
hosts came within -9 to +12% (TCP) and 13% (NCCL over InfiniBand, nine in ten) once the rate that their transport
reaches was known. `uncertainty.network` of an experiment replaces it."""


AS_GIVEN = Residual(basis="as given")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """The residual of the network, and of all computations if it is not what each cost model says of itself."""

    network: Residual = AS_GIVEN
    computation: Residual | None = None

    def of(self, costs: CostModel) -> Residual:
        """How far off the computations of a cost model may be."""
        return self.computation or residual_of(costs)

    def computations(self, costs: RankCosts, ranks: int) -> tuple[Residual, ...]:
        """The residuals of all ranks' computations, each once."""
        return tuple(dict.fromkeys(self.of(costs(rank)) for rank in range(ranks)))

    def most_reversed(self, costs: RankCosts, ranks: int) -> float:
        """By what factor the ratio of two predictions that share these costs may change between opposite corners."""
        residuals = [self.network, *self.computations(costs, ranks)]
        return max(one.high for one in residuals) / min(one.low for one in residuals)

    def basis(self, costs: RankCosts, ranks: int) -> str:
        """What a prediction rests on and how far that can be trusted, in words."""
        computations = dict.fromkeys(one.basis for one in self.computations(costs, ranks))
        text = f"computation: {' and '.join(computations)}"
        return f"network: {self.network.basis}; {text}" if ranks > 1 else text


def network_residual(
    cluster: Cluster, network: NetworkProfile | None, stated: float | None, *, with_rate: bool = True
) -> Residual:
    """How far off messages may be on `cluster`, which has the times of `network` if that was measured.

    A share that was `stated` goes before both; `with_rate` names the rate of its NICs.
    """
    hosts = {place.host for place in cluster.placement}
    where = "inside the host" if len(hosts) < 2 else ""
    if stated is not None:
        return within(stated, _joined(where, as_stated(stated)))
    if network is not None and network.pairs and not where:
        ratios = [p.goodput_Bps.value / end for p in network.pairs for end in (p.goodput_Bps.low, p.goodput_Bps.high)]
        found = of_ratios(1 / ratio for ratio in ratios if ratio > 0)
        most = max(found.high, 1 / found.low) - 1
        basis = f"calibrated with single messages ({network.date}), repeated within {most:.0%}"
        return Residual(low=found.low, high=found.high, basis=basis)
    nics = [] if where else [cluster.hosts[host].nic for host in hosts]
    presets = sorted({nic.transport.preset for nic in nics if nic.transport.preset is not None})
    stated_by = f"published defaults of {' and '.join(presets)}" if presets else "as the topology states"
    rates = _rates(nic.bandwidth_Bps for nic in nics) if nics and with_rate else ()
    basis = _joined(where, stated_by, *rates, f"taken to be within {STATED_NETWORK:.0%}")
    return within(STATED_NETWORK, basis)


def as_stated(share: float) -> str:
    """A residual that an experiment states, in words."""
    return f"within {share:.0%}, as stated" if share else "exact, as stated"


def _rates(rates_Bps: Iterable[float]) -> tuple[str, ...]:
    ordered = sorted(set(rates_Bps))
    ends = ordered if len(ordered) < 3 else [ordered[0], ordered[-1]]
    return (" to ".join(map(format_rate, ends)),)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
