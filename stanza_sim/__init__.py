"""stanza_sim: predict one training iteration on a cluster, then run the very same schedule for real."""

__version__ = "0.1.0"
