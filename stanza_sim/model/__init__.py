"""What is trained: model profiles as plain numbers, the shipped tables, and extraction from torch modules."""
