"""An emulated cluster on one Linux machine: a topology as network namespaces whose links are shaped.

`network` says what a cluster comes down to and what cannot be emulated, `shaping` and `plan` turn that into commands;
all three are pure. `shell` runs commands, `registry` remembers what was made, `processes` finds what runs inside, and
`bed.Testbed` puts these together. `guard` is a process that takes a testbed down when its owner is killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stanza_sim.testbed.bed import Made, Testbed, collect, take_down
    from stanza_sim.testbed.network import GOODPUT_SHARE

__all__ = ["GOODPUT_SHARE", "Made", "Testbed", "collect", "take_down"]


def __getattr__(name: str) -> object:
    """Import what is offered here when it is first asked for, so that the guard stays small."""
    if name == "GOODPUT_SHARE":
        from stanza_sim.testbed import network

        return network.GOODPUT_SHARE
    if name in __all__:
        from stanza_sim.testbed import bed

        return getattr(bed, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
