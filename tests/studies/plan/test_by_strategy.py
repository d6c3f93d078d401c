"""What a search says of each strategy: shares of the time, memory left, or why none fits."""

import io

import pytest
from rich.console import Console

from stanza_sim.experiment.file import StrategyEntry, load_experiment
from stanza_sim.studies.plan.assess import Score, weigh
from stanza_sim.studies.plan.by_strategy import by_strategy, print_strategies, shares, strategies_object, what_helps
from stanza_sim.studies.plan.choices import Choice, LeftOut
from stanza_sim.studies.plan.search import SearchResult, Stop
from stanza_sim.studies.plan.session import problems_of


def choice(name: str, label: str = "", **settings: object) -> Choice:
    entry = {"strategy": name, "label": label or name, "settings": settings}
    return Choice(entry=StrategyEntry.model_validate(entry))


@pytest.fixture(scope="module")
def found() -> SearchResult:
    """Weights, gradients and momentum of the head are 21 GB where a rank has all of it, and a GPU has 16 GB."""
    model = "models=[{model: iresnet18, boundary: head, factory_kwargs: {classes: 2600000}}]"
    overrides = ["cluster=ec2-p3-10", "nodes=4", "network.rate=25Gbps", "batch_per_worker=4", model]
    (problem,) = problems_of(load_experiment("ec2_v100", overrides), ())
    scores: list[Score] = []
    out: list[LeftOut] = []
    for one in (
        choice("sharded_head", fc_compute="batch"),
        choice("all_reduce"),
        choice("all_reduce", "small buckets", bucket="5MiB"),
        choice("stanza"),
        choice("stanza", "two", fc_workers=2, fc_parallel="model"),
        choice("parameter_server", "one server"),
    ):
        weighed = weigh(problem, one)
        if weighed.score is not None:
            scores.append(weighed.score)
        else:
            out.append(LeftOut(choice=one, kind=weighed.kind, reason=weighed.reason, left_nbytes=weighed.left_nbytes))
    ranked = tuple(sorted(scores, key=lambda one: one.order))
    return SearchResult(
        ranked=ranked, evaluated=5, pruned=0, same=0, unreached=0, left_out=tuple(out), stop=Stop.COMPLETE
    )


def test_the_fastest_first_then_what_does_not_fit_with_what_lacks_least(found: SearchResult) -> None:
    every = {one.strategy: one for one in by_strategy(found)}
    assert list(every) == ["stanza", "sharded_head", "all_reduce", "parameter_server"] or list(every) == [
        *("sharded_head", "stanza", "all_reduce", "parameter_server")
    ]
    for name in ("all_reduce", "parameter_server"):
        assert every[name].best is None
        assert "most of it for" in every[name].why_none
    assert every["all_reduce"].why_none.startswith("none of 2 fits; all_reduce lacks least, ")
    assert every["parameter_server"].why_none.startswith("one server: rank ")
    stanza = every["stanza"]
    assert stanza.best is not None
    assert stanza.why_none == ""
    assert [one.choice.label for one in stanza.left_out] == ["stanza"]
    assert (stanza.left_out[0].left_nbytes or 0) < 0 < (stanza.best.left_nbytes or 0)
    assert stanza.best.memory_nbytes + (stanza.best.left_nbytes or 0) == 16_000_000_000


def test_shares_are_of_the_whole_iteration(found: SearchResult) -> None:
    for one in found.ranked:
        computing, exposed, bubble = shares(one)
        assert computing + exposed + bubble == pytest.approx(1)
        assert exposed == pytest.approx(one.prediction.exposed_comm_s / one.prediction.iteration_s)


def test_printed_and_as_json(found: SearchResult) -> None:
    out = io.StringIO()
    print_strategies(found, None, Console(file=out, width=80, highlight=False))
    text = out.getvalue()
    assert text.split()[:4] == ["best", "of", "each", "strategy"]
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "none of 2 fits" in text
    told = {str(one["strategy"]): one for one in strategies_object(found)}
    assert told["all_reduce"]["label"] is None
    assert told["all_reduce"]["left_out"] == {"memory": 2}
    assert told["stanza"]["label"] == "two"
    assert "holds a part of them on each rank" in what_helps(found)
