"""Training: passes, parameters, samples and data of one rank."""
