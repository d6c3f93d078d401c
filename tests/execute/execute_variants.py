"""Every variant of every strategy: what the tests of the executor run, of which the self-test runs some too."""

from __future__ import annotations

from stanza_sim.execute.rank.job import Measurement, RunJob
from stanza_sim.execute.selftest.variants import CHOSEN, TRAINING, Variant, expected_bytes, job_of, schedule_of
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.start.tasks import RunTask

__all__ = ["ROUNDED", "TRAINING", "VARIANTS", "expected_bytes", "job_of", "run", "schedule_of"]

PS, AR, ST, LO = "parameter_server", "all_reduce", "stanza", "local"
SF, FS, PI = "sufficient_factors", "fsdp", "pipeline"
VARIANTS: list[Variant] = [
    *CHOSEN,
    ("ps-2-balanced", PS, 5, {"servers": 2}),
    ("ps-2-cut", PS, 5, {"servers": 2, "assignment": "cut"}),
    ("ps-2-cut-no-overlap", PS, 4, {"servers": 2, "assignment": "cut", "overlap": False}),
    ("colocated-cut-no-overlap", PS, 4, {"placement": "colocated", "assignment": "cut", "overlap": False}),
    ("colocated-balanced", PS, 4, {"placement": "colocated"}),
    ("colocated-balanced-no-overlap", PS, 3, {"placement": "colocated", "overlap": False}),
    ("colocated-2-of-4", PS, 4, {"placement": "colocated", "servers": 2, "assignment": "cut"}),
    ("ps-2-mxnet", PS, 5, {"servers": 2, "assignment": "mxnet", "bigarray_bound": 200}),
    (  # batch normalisation's 8 elements in slices of 2: the last of 5 servers has none
        "colocated-mxnet-empty-slices",
        PS,
        5,
        {"placement": "colocated", "assignment": "mxnet", "bigarray_bound": 1},
    ),
    ("colocated-byteps", PS, 4, {"placement": "colocated", "assignment": "byteps", "partition": "2kB"}),
    ("ps-2-sliced-no-overlap", PS, 4, {"servers": 2, "assignment": "sliced", "slice": 500, "overlap": False}),
    ("ps-2-elsewhere", PS, 5, {"on": ["node-2", "node-0"]}),
    ("colocated-2-elsewhere", PS, 4, {"placement": "colocated", "on": ["node-3", "node-1"], "assignment": "cut"}),
    ("stanza-2-elsewhere-ps", ST, 5, {"on": ["node-1", "node-3"], "conv_exchange": "parameter_server"}),
    (
        "stanza-colocated-elsewhere-arrival",
        ST,
        4,
        {"placement": "colocated", "on": ["node-3", "node-2"], "fc_compute": "arrival", "microbatches": 2},
    ),
    (
        "stanza-sliced-elsewhere",
        ST,
        4,
        {"placement": "colocated", "on": ["node-3", "node-1"], "fc_parallel": "model"},
    ),
    ("ps-1-by-host", PS, 5, {"local": 2}),
    ("ps-1-by-host-each-pulls-by-step", PS, 5, {"local": 2, "share_pulls": False, "pull": "step"}),
    ("ps-2-cut-by-uneven-host", PS, 5, {"servers": 2, "assignment": "cut", "local": 2}),
    ("colocated-by-host-no-overlap", PS, 4, {"placement": "colocated", "servers": 2, "local": 2, "overlap": False}),
    (
        "colocated-sliced-by-host",
        PS,
        5,
        {"placement": "colocated", "assignment": "sliced", "slice": 400, "local": 3},
    ),
    ("all-reduce-no-overlap", AR, 4, {"overlap": False}),
    ("all-reduce-small-buckets", AR, 5, {"first_bucket": "400B", "bucket": "2kB"}),
    ("all-reduce-horovod", AR, 4, {"fusion": "horovod", "buffer": "2kB"}),
    ("one-rank", AR, 1, {}),
    ("stanza-1-no-overlap", ST, 4, {"overlap": False}),
    ("stanza-1-ps", ST, 4, {"conv_exchange": "parameter_server"}),
    ("stanza-1-ps-no-overlap", ST, 4, {"conv_exchange": "parameter_server", "overlap": False}),
    ("stanza-2-uneven", ST, 5, {"fc_workers": 2}),
    ("stanza-2-uneven-ps", ST, 5, {"fc_workers": 2, "conv_exchange": "parameter_server"}),
    ("all-reduce-by-ring", AR, 5, {"algorithm": "ring", "bucket": "2kB"}),
    ("all-reduce-by-halving-doubling", AR, 5, {"algorithm": "halving_doubling", "bucket": "2kB"}),
    ("all-reduce-by-tree", AR, 5, {"algorithm": "tree", "chunk": "1kB"}),
    ("all-reduce-by-hierarchy", AR, 4, {"algorithm": "hierarchical", "local": 2}),
    ("all-reduce-by-uneven-hierarchy", AR, 5, {"algorithm": "hierarchical", "local": 3, "chunk": "1kB"}),
    ("all-reduce-auto", AR, 5, {"algorithm": "auto", "start": "500B", "first_bucket": "400B", "bucket": "2kB"}),
    ("stanza-2-algorithms", ST, 5, {"fc_workers": 2, "algorithm": "halving_doubling", "fc_algorithm": "tree"}),
    ("stanza-3-sliced-uneven", ST, 5, {"fc_workers": 3, "fc_parallel": "model"}),
    (
        "stanza-3-sliced-algorithm",
        ST,
        4,
        {"fc_workers": 3, "fc_parallel": "model", "fc_algorithm": "tree", "conv_exchange": "parameter_server"},
    ),
    (
        "stanza-2-sliced-arrival",
        ST,
        5,
        {"fc_workers": 2, "fc_parallel": "model", "microbatches": 2, "fc_compute": "arrival"},
    ),
    ("stanza-2-sliced-colocated", ST, 4, {"fc_workers": 2, "fc_parallel": "model", "placement": "colocated"}),
    (
        "stanza-4-sliced-colocated-arrival",
        ST,
        4,
        {"fc_workers": 4, "fc_parallel": "model", "placement": "colocated", "fc_compute": "arrival"},
    ),
    ("head-uneven", "sharded_head", 5, {"overlap": False, "bucket": "100B"}),
    ("head-batch", "sharded_head", 3, {"fc_compute": "batch", "algorithm": "ring", "fc_algorithm": "halving_doubling"}),
    ("head-microbatches", "sharded_head", 4, {"fc_compute": "batch", "microbatches": 3, "eager_backward": 1}),
    ("head-turns-microbatches", "sharded_head", 3, {"microbatches": 2}),
    ("head-alone", "sharded_head", 1, {}),
    ("stanza-2-small-buckets", ST, 5, {"fc_workers": 2, "first_bucket": "100B", "bucket": "100B"}),
    ("local", LO, 3, {}),
    ("stanza-arrival", ST, 4, {"fc_compute": "arrival"}),
    ("stanza-arrival-2-uneven", ST, 5, {"fc_workers": 2, "fc_compute": "arrival", "microbatches": 2}),
    ("stanza-micro-batches", ST, 4, {"microbatches": 3, "eager_backward": 1}),
    ("stanza-cut", ST, 4, {"cut": "classifier.4", "microbatches": 2, "eager_backward": 2}),
    ("stanza-2-micro-batches", ST, 5, {"fc_workers": 2, "microbatches": 2, "conv_exchange": "parameter_server"}),
    ("stanza-colocated", ST, 4, {"placement": "colocated"}),
    ("stanza-colocated-2-uneven", ST, 5, {"placement": "colocated", "fc_workers": 2, "microbatches": 2}),
    (
        "stanza-colocated-arrival",
        ST,
        5,
        {"placement": "colocated", "fc_workers": 2, "fc_compute": "arrival", "microbatches": 2},
    ),
    ("stanza-colocated-everywhere", ST, 3, {"placement": "colocated", "fc_workers": 3}),
    (
        "stanza-sharded",
        ST,
        5,
        {"fc_workers": 2, "conv_exchange": "parameter_server", "conv_servers": "sharded", "microbatches": 2},
    ),
    (
        "stanza-single-colocated",
        ST,
        4,
        {"conv_exchange": "parameter_server", "conv_servers": "single", "placement": "colocated"},
    ),
    ("factors", SF, 4, {"fc_exchange": "factors"}),
    ("factors-auto", SF, 5, {}),
    ("factors-behind", SF, 4, {"fc_exchange": "factors", "reconstruct": "behind", "conv_exchange": "all_reduce"}),
    ("factors-none", SF, 3, {"fc_exchange": "parameter_server", "conv_exchange": "all_reduce", "bucket": "2kB"}),
    ("factors-one-rank", SF, 1, {}),
    ("fsdp", FS, 3, {}),
    ("fsdp-by-host", FS, 4, {"local": 2, "prefetch": 0}),
    ("fsdp-whole", FS, 5, {"reshard_after_forward": False, "unit_blocks": 2, "prefetch": 2}),
    ("fsdp-2-by-host", FS, 4, {"stage": 2, "local": 2}),
    ("fsdp-1-no-overlap", FS, 4, {"stage": 1, "overlap": False, "unit_size": "2kB"}),
    ("pipeline", PI, 3, {}),
    ("pipeline-gpipe-block", PI, 3, {"order": "gpipe", "checkpoint": "block"}),
    ("pipeline-replicas-stage", PI, 4, {"stages": 2, "microbatches": 4, "checkpoint": "stage", "bucket": "2kB"}),
    ("pipeline-cut-no-overlap", PI, 4, {"cuts": ["classifier.4"], "overlap": False, "algorithm": "ring"}),
    ("pipeline-alone", PI, 1, {"microbatches": 3, "checkpoint": "stage"}),
    ("stanza-colocated-servers", ST, 4, {"conv_exchange": "parameter_server", "placement": "colocated"}),
]
ROUNDED: list[Variant] = [
    ("stanza-bf16", ST, 4, {"activations": "bf16"}),
    ("stanza-bf16-sliced", ST, 5, {"activations": "bf16", "fc_workers": 2, "fc_parallel": "model"}),
    ("head-bf16", "sharded_head", 3, {"activations": "bf16"}),
    ("stanza-bf16-arrival", ST, 5, {"activations": "bf16", "fc_workers": 2, "fc_compute": "arrival"}),
    (
        "stanza-bf16-colocated",
        ST,
        4,
        {"activations": "bf16", "placement": "colocated", "microbatches": 2},
    ),
]
"""Variants that round what they send: equal to SGD within a looser tolerance."""


def run(pool: Pool, job: RunJob) -> Measurement:
    return merge(job, [r for r in pool.run(RunTask(job)) if r is not None])
