"""Rules of sufficient factors: each kept, and each broken once."""

from __future__ import annotations

import pytest

from stanza_sim.base.errors import ScheduleError
from stanza_sim.schedule import check, from_json, parse
from tests.schedule.toys import cluster, predict, toy

MODEL = toy()

# Two micro-batches; rank 2 serves: it reconstructs f1 from the workers' factors, and they pull what it updates.
SERVED = """\
schedule s model=toy world=3 batch=4 microbatches=2
group worker 0-1
group server 2
group both 0-2
group one 1
bundle wf2 numel=32 owners=worker layout=replicated tensors=f2.t0,f2.t1
bundle wf1 numel=49 owners=server layout=replicated tensors=f1.t0,f1.t1
bundle conv numel=42 owners=worker layout=replicated tensors=c1.t0,c1.t1,c2.t0,c2.t1
a0: forward c1 @worker
b0: forward pool @worker after=a0
c0: forward c2 @worker after=b0
d0: forward f1 @worker after=c0
e0: forward f2 @worker after=d0
l0: loss f2 @worker after=e0
f0: backward_input f2 @worker after=l0
g0: backward_input f1 @worker after=f0
h0: backward c2 @worker after=g0
i0: backward pool @worker after=h0
j0: backward c1 @worker after=i0
a1: forward c1 @worker microbatch=1
b1: forward pool @worker microbatch=1 after=a1
c1: forward c2 @worker microbatch=1 after=b1
d1: forward f1 @worker microbatch=1 after=c1
e1: forward f2 @worker microbatch=1 after=d1
l1: loss f2 @worker microbatch=1 after=e1
f1: backward_input f2 @worker microbatch=1 after=l1
g1: backward_input f1 @worker microbatch=1 after=f1
h1: backward c2 @worker microbatch=1 after=g1
i1: backward pool @worker microbatch=1 after=h1
j1: backward c1 @worker microbatch=1 after=i1
fac2: transfer factors(wf2) worker->worker all-pairs nbytes=176 channel=factors after=f0,f1
fac1: transfer factors(wf1) worker->server fan-in nbytes=208 channel=factors after=g0,g1
rec2: reconstruct wf2 @worker lane=factors after=fac2
upd2: update wf2 @worker lane=factors after=rec2,f0,f1
rec1: reconstruct wf1 @server after=fac1
upd1: update wf1 @server after=rec1
pull1: transfer param(wf1) server->worker fan-out nbytes=196 channel=pull after=upd1
ar: all_reduce grad(conv) @worker nbytes=168 algorithm=ring after=j0,j1
upd: update conv @worker after=ar
"""

BROKEN: dict[str, tuple[str, str, str, str]] = {
    "bytes": ("nbytes=176", "nbytes=88", "nbytes=88, but the values have 176 bytes", "fac2"),
    "every micro-batch": ("after=f0,f1", "after=f0", "factors(wf2) need the gradient of the output of f2", "fac2"),
    "its pass": ("after=g0,g1", "after=f0,f1", "factors(wf1) need the gradient of the output of f1", "fac1"),
    "brought": ("lane=factors after=fac2", "lane=factors", "no transfer brings factors(wf2) before they", "rec2"),
    "arrived": ("lane=factors after=fac2", "lane=factors after=fac2.sent", "no transfer brings factors(wf2)", "rec2"),
    "never brought": ("update wf1 @server after=rec1", "update wf1 @server lane=x", "grad(wf1) needs the", "upd1"),
    "owners": ("factors(wf1) worker->server fan-in", "factors(wf1) worker->both all-pairs", "goes to owners", "fac1"),
    "by an owner": ("rec1: reconstruct wf1 @server", "rec1: reconstruct wf1 @worker", "only an owner of", "rec1"),
    "one transfer": ("rec2: ", "again: transfer factors(wf2) worker->worker all-pairs nbytes=176 after=f0,f1\nrec2: ",
                     "fac2 moves factors(wf2) already: samples would count twice", "again"),
    "complete": ("factors(wf2) worker->worker all-pairs", "factors(wf2) worker->worker one-to-one",
                 "factors go from every source to every destination", "fac2"),
    "no micro-batch": ("after=f0,f1", "microbatch=1 after=f0,f1", "factors are of the whole batch", "fac2"),
    "a linear layer": ("factors(wf2) worker->worker all-pairs nbytes=176", "factors(conv) worker->worker all-pairs "
                       "nbytes=176", "bundle conv is not the parameters of one linear layer", "fac2"),
    "alone": ("factors(wf2) worker->worker all-pairs nbytes=176", "factors(wf2)+labels worker->worker all-pairs "
              "nbytes=192", "factors(wf2) travels in a message of its own", "fac2"),
    "collective": ("all_reduce grad(conv)", "all_reduce factors(conv)", "is not the parameters of one linear", "ar"),
    "reduced as factors": ("ar: all_reduce grad(conv) @worker nbytes=168", "ar: all_reduce factors(wf2) @worker "
                           "nbytes=168", "a collective moves gradients or parameters of a bundle, or", "ar"),
    "pull in place": ("channel=pull after=upd1", "channel=pull", "param(wf1) would be overwritten", "pull1"),
}  # fmt: skip


def test_the_base_is_legal_and_reads_back() -> None:
    schedule = parse(SERVED)
    check(schedule, MODEL)
    assert parse(schedule.text()) == schedule == from_json(schedule.to_json())
    predicted = predict(schedule, MODEL, cluster(3), fold_ranks=False)
    assert predicted.sent_bytes[2] == 2 * 196
    assert predicted.received_bytes[2] == 2 * 208


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule(rule: str) -> None:
    old, new, message, op = BROKEN[rule]
    assert SERVED.count(old) == 1, "the replacement is not unique"
    broken = parse(SERVED.replace(old, new))
    with pytest.raises(ScheduleError) as e:
        check(broken, MODEL)
    assert message in str(e.value)
    line = next(x for x in broken.text().splitlines() if x.startswith(f"{op}: "))
    assert f"in: {line}" in str(e.value)


def test_every_worker_sends_its_factors() -> None:
    text = SERVED.replace("factors(wf2) worker->worker", "factors(wf2) one->worker")
    with pytest.raises(ScheduleError, match="all ranks that compute block f2 are needed, and one is not all of them"):
        check(parse(text), MODEL)


def test_gradients_and_factors_of_one_bundle() -> None:
    both = SERVED.replace("f0: backward_input f2", "f0: backward f2").replace(
        "f1: backward_input f2", "f1: backward f2"
    )
    both = both.replace("rec2: ", "more: all_reduce grad(wf2) @worker nbytes=128 algorithm=ring after=f0,f1\nrec2: ")
    with pytest.raises(ScheduleError, match=r"more moves grad\(wf2\): samples would count twice"):
        check(parse(both), MODEL)


def test_a_rank_that_computes_others_samples() -> None:
    """Factors are of a worker's batch; what else a rank computes would not be counted."""
    text = SERVED.replace("d0: ", "act: transfer act(c2)+labels worker->worker all-pairs nbytes=64 after=c0 "
                          "arrives_as=2\nd2: forward f1 @worker microbatch=2 after=act\nd0: ")  # fmt: skip
    with pytest.raises(ScheduleError, match="a rank of worker computes more than its batch of 4 samples"):
        check(parse(text), MODEL)
