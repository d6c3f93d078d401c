"""What the executor counts is the closed form in the strategy's docstring, and what the simulator counts."""

from __future__ import annotations

import pytest

from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Axis
from tests.execute.execute_variants import TRAINING, job_of, run, schedule_of
from tests.schedule.toys import cluster, predict
from tests.strategies.sliced_bytes import sliced_bytes
from tests.strategies.stanza_bytes import stanza_bytes

BATCH = 6


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        (4, {}),
        (5, {"fc_workers": 2, "fc_compute": "arrival", "microbatches": 2, "activations": "bf16"}),
        (5, {"fc_workers": 2, "conv_exchange": "parameter_server", "cut": "classifier.4"}),
        (4, {"placement": "colocated", "conv_exchange": "parameter_server", "conv_servers": "sharded"}),
        (5, {"placement": "colocated", "fc_workers": 2, "microbatches": 3, "eager_backward": 1}),
        (5, {"placement": "colocated", "fc_workers": 3, "conv_exchange": "parameter_server"}),
        (5, {"fc_workers": 2, "conv_exchange": "parameter_server", "conv_servers": "single", "activations": "bf16"}),
        (4, {"fc_workers": 2, "fc_parallel": "model"}),
        (5, {"fc_workers": 2, "fc_parallel": "model", "activations": "bf16", "cut": "classifier.4"}),
        (5, {"fc_workers": 3, "fc_parallel": "model", "microbatches": 2, "conv_exchange": "parameter_server"}),
        (4, {"fc_workers": 2, "fc_parallel": "model", "placement": "colocated", "fc_compute": "arrival"}),
        (
            5,
            {
                "fc_workers": 2,
                "fc_parallel": "model",
                "placement": "colocated",
                "microbatches": 3,
                "conv_exchange": "parameter_server",
                "conv_servers": "sharded",
            },
        ),
    ],
)
def test_traffic_of_stanza(pool: Pool, tiny: ModelProfile, world: int, settings: dict[str, object]) -> None:
    """The FC part has 98% of this model's parameters."""
    schedule = schedule_of(tiny, "stanza", world, settings)
    if settings.get("fc_parallel") == "model":
        rows = schedule.cuts[0].axis is Axis.ROWS
        expected = sliced_bytes(tiny, "stanza", world, BATCH, rows=rows, **settings)  # type: ignore[arg-type]
    else:
        expected = stanza_bytes(tiny, world, BATCH, **settings)  # type: ignore[arg-type]
    predicted = predict(schedule, tiny, cluster(world), fold_ranks=False)
    measured = run(pool, job_of(tiny, schedule))
    iterations = TRAINING.iterations
    assert [(predicted.sent_bytes[r], predicted.received_bytes[r]) for r in range(world)] == expected
    assert [
        (s / iterations, r / iterations) for s, r in zip(measured.sent_bytes, measured.received_bytes, strict=True)
    ] == expected
