"""The simulator in plain Python: events, fair sharing, and collectives step by step."""
