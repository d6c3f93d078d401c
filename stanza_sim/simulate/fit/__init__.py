"""Fits the constants of GPUs, by kind of op, to published timings of training steps, and writes them into device files.

`python -m stanza_sim.simulate.fit` replaces what stands below the marker line in `stanza_sim/data/devices/*.yaml`. All
rows of `stanza_sim/data/gpu_timings.csv` and `single_timings.csv` are fitted at once (`solve`).
"""
