"""The simulator on arrays, compiled where numba is installed."""
