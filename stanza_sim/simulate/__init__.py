"""The simulator: predicts what a schedule takes on a modelled cluster."""

from stanza_sim.simulate.run import Prediction, simulate

__all__ = ["Prediction", "simulate"]
