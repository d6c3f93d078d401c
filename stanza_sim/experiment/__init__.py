"""From an experiment file to its result: what it says, its scenarios, their predictions and runs."""
