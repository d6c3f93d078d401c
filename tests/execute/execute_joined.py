"""One rank under torchrun: joins, runs a job, and rank 0 prints the losses."""

from __future__ import annotations

import sys

from stanza_sim.cluster import load_cluster
from stanza_sim.execute import execute, open_workers
from stanza_sim.model.extract import extract
from tests.execute.execute_variants import job_of, schedule_of

tiny = extract("stanza_sim.model.examples:tiny_cnn", name="tiny", input_shape=(1, 8, 8))
with open_workers(load_cluster("laptop", nodes=3)) as workers:
    (measurement,) = execute([job_of(tiny, schedule_of(tiny, "stanza", 3, {}))], workers)
    if workers.is_main:
        sys.stdout.write(f"{measurement.losses!r}\n")
