"""Predictions held against measurements that others published: training runs, NCCL's all-reduce, single GPUs.

`tables` reads the files, `rules` says which cluster and experiment a row stands for, `training`, `nccl` and `single`
predict rows, `scores` sums up the errors, `report` and `picture` show them, and `session` does it all for the command.
"""
