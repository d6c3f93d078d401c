"""Predictions held against what others published of real GPU clusters."""
