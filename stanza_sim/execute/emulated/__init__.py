"""Waiting in the place of computing."""
