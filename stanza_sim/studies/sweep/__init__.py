"""What-if sweeps: the rows of an experiment at every point of a grid of its keys.

`vary` reads what is varied, `points` predicts the rows at one point, `table` is the file of results, `crossover` finds
where another row begins to win, `session` does it all on many cores, `report` prints it.
"""
