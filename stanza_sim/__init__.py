"""stanza_sim: predict one training iteration on a cluster, then run the very same schedule for real."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanza_sim.base.version import __version__

if TYPE_CHECKING:
    from stanza_sim.simulate.flows import FlowResult, simulate_flows

__all__ = ["FlowResult", "__version__", "simulate_flows"]


def __getattr__(name: str) -> object:
    """Import what is offered here when it is first asked for, so that `import stanza_sim` stays quick."""
    if name in ("FlowResult", "simulate_flows"):
        from stanza_sim.simulate import flows

        return getattr(flows, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
