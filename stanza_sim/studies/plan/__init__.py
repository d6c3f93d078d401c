"""The planner: which strategy, with which settings, trains most samples per second on a cluster.

`choices` says what is tried, `memory` what fits a device, `assess` bounds and simulates one plan, `worker_pool` does so
on several cores, `search` decides the order and when to stop, `explain` says why, `answer` prints it.
"""
