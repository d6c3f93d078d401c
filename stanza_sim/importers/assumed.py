"""What cluster files state where neither a foreign file nor the user says it: alike for all formats."""

from __future__ import annotations

CORES = 64
"""Cores of a host: with ranks on devices they hardly matter."""
PRESET = "rdma"
"""The transport of NICs: its latency, overhead and efficiency hold for what is not stated."""
EFFICIENCY = 0.97
"""What payload gets of a link between switches, as `PRESET` has it for a NIC."""
