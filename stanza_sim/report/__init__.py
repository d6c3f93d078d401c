"""Reports made from timelines: tables, JSON, CSV, and what explains the difference of prediction and measurement."""
