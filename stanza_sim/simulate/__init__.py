"""The simulator: predicts what a schedule takes on a modelled cluster."""

from stanza_sim.simulate.costs import costs_for
from stanza_sim.simulate.engines import EngineChoice
from stanza_sim.simulate.flows import simulate_flows
from stanza_sim.simulate.prediction import FlowResult, Prediction
from stanza_sim.simulate.run import Collectives, simulate

__all__ = ["Collectives", "EngineChoice", "FlowResult", "Prediction", "costs_for", "simulate", "simulate_flows"]
