"""A small schedule with timelines made by hand, so that every number of a report is known beforehand."""

from collections.abc import Callable

import pytest

from stanza_sim.execute.rank.job import Measurement, Score
from stanza_sim.report.result import Row
from stanza_sim.schedule import Schedule, parse
from stanza_sim.simulate import Prediction
from stanza_sim.timeline.spans import Span, Timeline

TEXT = """\
schedule allreduce model=net world=2 batch=4
group worker 0-1
bundle b numel=10 owners=worker tensors=w
fwd: forward l @worker after_previous=upd
loss: loss l @worker after=fwd
bwd: backward l @worker after=loss
ar: all_reduce grad(b) @worker nbytes=40 algorithm=ring after=bwd
upd: update b @worker after=ar
"""


@pytest.fixture
def schedule() -> Schedule:
    return parse(TEXT)


@pytest.fixture
def make_timeline() -> Callable[..., Timeline]:
    def make(times: dict[str, float], *, wait: float = 0.0, iterations: int = 6, first: int = 0, **more) -> Timeline:
        """Both ranks do `times` one after another in each iteration, then nothing for `wait` seconds."""
        spans, ends, now = [], [], 0.0
        for i in range(iterations):
            for op, seconds in times.items():
                lane = "" if op == "ar" else "main"
                for rank in (0, 1):
                    if i >= first:
                        at = {"start_s": now, "end_s": now + seconds}
                        spans.append(Span(op=op, rank=rank, iteration=i, lane=lane, side="", **at))
                now += seconds
            ends.append(now)
            now += wait
        return Timeline(spans=tuple(spans), iteration_end_s=dict.fromkeys((0, 1), tuple(ends)), first_iteration=first)

    return make


PREDICTED = {"fwd": 1e-3, "loss": 0.1e-3, "bwd": 2e-3, "ar": 4e-3, "upd": 0.5e-3}
MEASURED = {"fwd": 1.5e-3, "loss": 0.1e-3, "bwd": 2e-3, "ar": 6e-3, "upd": 0.4e-3}


@pytest.fixture
def make_row(schedule, make_timeline) -> Callable[..., Row]:
    def make(*, measured: bool = False, **changes) -> Row:
        prediction = Prediction(
            timeline=make_timeline(PREDICTED),
            iteration_s=7.6e-3,
            samples_per_s=8 / 7.6e-3,
            exposed_comm_s=4e-3,
            idle_s=0.0,
            bound_s=4e-3,
            bottleneck="node-0 transmit side (worker, 1 more like it), 53% busy",
            cost_source="roofline V100, by hand",
            utilisation={},
            op_seconds={},
            sent_bytes={},
            received_bytes={},
            iterations=6,
            steady=True,
            events=0,
        )
        measurement = Measurement(
            timeline=make_timeline(MEASURED, first=2),
            iteration_s=10e-3,
            iteration_s_min=9.5e-3,
            iteration_s_max=12.25e-3,
            samples_per_s=800.0,
            losses=tuple(2.0 - 0.05 * i for i in range(30)),
            scores=(Score(iteration=20, loss=0.2, accuracy=0.953),),
            sent_bytes=(),
            received_bytes=(),
            hosts=(),
        )
        facts = {
            "label": "all-reduce",
            "model": "net",
            "strategy": "all_reduce",
            "settings": {"overlap": True},
            "cluster": "star",
            "nodes": 2,
            "batch_per_worker": 4,
            "precision": "fp32",
            "seed": 1,
            "schedule": schedule,
            "prediction": prediction,
            "measurement": measurement if measured else None,
        }
        return Row(**(facts | changes))

    return make
