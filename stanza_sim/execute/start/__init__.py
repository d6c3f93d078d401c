"""Starting ranks, joining those that a launcher started, and giving them jobs."""
