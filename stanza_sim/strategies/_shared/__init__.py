"""What strategies share: the builder of schedules, and the parts that several are made of."""
