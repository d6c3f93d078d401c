"""Predictions held against measurements that others published: training runs, NCCL's all-reduce, single GPUs.

`tables` reads the files, `rules` says which cluster and experiment a row stands for, `training` predicts rows, `scores`
sums up the errors, `report`, `markdown` and `picture` show them, and `session` does all of it for the command.
"""
