"""Timing blocks, messages and cores on all ranks."""
