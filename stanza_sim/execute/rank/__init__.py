"""What one rank runs: its engine, its transport, and what a job and its report are."""
