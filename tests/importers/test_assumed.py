"""What importers assume is what the preset that they write says."""

from __future__ import annotations

from stanza_sim.cluster.transports import load_transport
from stanza_sim.importers.assumed import EFFICIENCY, PRESET


def test_links_have_the_efficiency_of_the_preset_of_nics() -> None:
    assert load_transport(PRESET).efficiency == EFFICIENCY
