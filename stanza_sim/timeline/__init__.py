"""What happened when, as both engines tell it, and what is measured on it."""

from stanza_sim.timeline.spans import Span, Timeline

__all__ = ["Span", "Timeline"]
