"""On what a rank's times are measured: the GPU, the libraries and the switches in force, by name."""

from __future__ import annotations

from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.devices import provenance


def provenance_of(context: Context) -> dict[str, str]:
    """What is known of the GPU on which this rank computes; nothing of the host's cores."""
    gpu = context.decision.gpu(context.rank)
    return {} if gpu is None else provenance(gpu).as_text()
