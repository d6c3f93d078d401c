"""Many scenarios at once: the search for the best plan, sweeps, validation."""
