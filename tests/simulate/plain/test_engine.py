"""Order, rendezvous, windows, bytes and stops of the engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError, RunError, ScheduleError
from stanza_sim.cluster import Nic
from stanza_sim.schedule import Carrier, Collective, CollectiveKind, Schedule, Transfer, parse
from stanza_sim.schedule.collectives import traffic
from stanza_sim.simulate import Prediction
from stanza_sim.simulate.lowering.fold import unfolded
from stanza_sim.simulate.lowering.lower import lower
from stanza_sim.simulate.plain.engine import Engine
from stanza_sim.simulate.steady import steady_window
from stanza_sim.timeline.spans import Span
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, ZERO, Costs, build, cluster, predict, toy

MODEL = toy(200)
ONE = toy(1)

CHAIN = """\
schedule chain model=toy world=3 batch=1
group a 0
group b 1
group c 2
fc1: forward c1 @a
fpool: forward pool @a after=fc1
fc2: forward c2 @a after=fpool
act: transfer act(c2)+labels a->b one-to-one nbytes=32 channel=act after=fc2
ff1: forward f1 @b after=act
ff2: forward f2 @b after=ff1
loss: loss f2 @b after=ff2
"""


def _spans(p: Prediction, **want: object) -> list[Span]:
    return [s for s in p.timeline.spans if all(getattr(s, k) == v for k, v in want.items())]


def _most_at_once(spans: list[Span]) -> int:
    return max(sum(s.start_s <= at.start_s < s.end_s - 1e-12 for s in spans) for at in spans)


def _apart(spans: Sequence[Span]) -> bool:
    """Whether the spans follow each other without overlap."""
    ordered = sorted(spans, key=lambda s: (s.start_s, s.end_s))
    return all(a.end_s <= b.start_s + 1e-12 for a, b in pairwise(ordered))


# ---- iterations, windows and rendezvous -----------------------------------------------------------------------------


def test_a_fast_sender_is_held_back_by_the_window_of_its_receiver() -> None:
    """Rank 0 needs 1 s and 32 us, rank 1 needs 10 s: its receives are posted two iterations ahead."""
    slow = Costs(loss=10.0)
    text = parse(CHAIN)
    fast = Costs(flops_s=1.0 / 1410)  # c1, pool and c2 together: 1 s
    on = cluster(3, nic=Nic(bandwidth_Bps=1e6))
    from stanza_sim.simulate import simulate

    p = simulate(text, ONE, on, lambda r: fast if r == 0 else slow)
    assert p.steady
    assert p.iteration_s == pytest.approx(10.0)
    ends = p.timeline.iteration_end_s
    for i in range(2, 4):
        (sent,) = _spans(p, op="act", iteration=i, side="sent")
        assert sent.start_s == pytest.approx(max(ends[1][i - 2], 0.0))
        assert sent.end_s - sent.start_s == pytest.approx(32e-6)
    # The sender's own window: iteration i starts when its iteration i - 2 is complete, which needs the transfer.
    for i in range(2, 5):
        (first,) = _spans(p, op="fc1", iteration=i)
        assert first.start_s >= ends[0][i - 2]
    assert 2 not in ends  # rank 2 does nothing
    assert p.sent_bytes == {0: 32, 1: 0, 2: 0}
    assert p.received_bytes == {0: 0, 1: 32, 2: 0}


def test_ranks_that_do_nothing_do_not_hold_others_up() -> None:
    # More servers than tensors: some have nothing to serve.
    p = predict(build("parameter_server", ONE, 14, servers=12), ONE, cluster(14))
    idle = [r for r, b in p.sent_bytes.items() if b == 0]
    assert p.steady
    assert idle
    assert not set(idle) & set(p.timeline.iteration_end_s)


def test_a_computation_follows_its_lane() -> None:
    """A lane works in program order even where a later op is ready earlier; another lane does not wait for it."""
    text = """\
schedule lanes model=toy world=2 batch=1
group all 0-1
f1: forward c1 @all
f2: forward pool @all after=f1
f3: forward c2 @all after=f2
f4: forward f1 @all after=f3
f5: forward f2 @all after=f4
loss: loss f2 @all after=f5
input: backward_input f2 @all after=loss
weight: backward_weight f2 @all lane=side after=loss
held: backward_weight f1 @all after=input,weight
ready: backward_input f1 @all after=input
"""
    p = predict(parse(text), ONE, cluster(2), Costs(flops_s=1e-3, loss=1e-3))
    order = ["f1", "f2", "f3", "f4", "f5", "loss", "input", "held", "ready"]
    for i in range(3):
        (side,) = _spans(p, op="weight", iteration=i, rank=0)
        (main,) = _spans(p, op="input", iteration=i, rank=0)
        assert side.lane == "side"
        # Lanes of one rank share its device: two computations of 56 ms at once take 112 ms.
        assert side.start_s == main.start_s
        assert side.end_s == pytest.approx(side.start_s + 0.112)
        assert main.end_s == pytest.approx(side.end_s)
        spans = _spans(p, rank=0, iteration=i, lane="main")
        assert [s.op for s in sorted(spans, key=lambda s: s.start_s)] == order
        assert _apart(spans)


# ---- order of messages ----------------------------------------------------------------------------------------------

QUEUES = """\
schedule queues model=toy world=3 batch=1
group w 0
group s 1
group t 2
bundle b1 numel=1803 owners=s tensors=c1.t0,c1.t1
bundle b2 numel=5005 owners={owner} tensors=c2.t0,c2.t1
f1: forward c1 @w after_previous=pull1,pull2
f2: forward pool @w after=f1
f3: forward c2 @w after=f2
f4: forward f1 @w after=f3
f5: forward f2 @w after=f4
l: loss f2 @w after=f5
k1: backward f2 @w after=l
k2: backward f1 @w after=k1
k3: backward c2 @w after=k2
k4: backward pool @w after=k3
k5: backward c1 @w after=k4
push1: transfer grad(b1) w->s one-to-one nbytes=7212 channel=x priority={first} after=k5
push2: transfer grad(b2) w->{owner} one-to-one nbytes=20020 channel={channel} priority={second} after=k5
r1: reduce b1 @s after=push1
r2: reduce b2 @{owner} after=push2
u1: update b1 @s after=r1
u2: update b2 @{owner} after=r2
pull1: transfer param(b1) s->w one-to-one nbytes=7212 channel=p after=u1
pull2: transfer param(b2) {owner}->w one-to-one nbytes=20020 channel=p after=u2
"""


def _queues(owner: str, channel: str, first: int = 0, second: int = 0, overhead_s: float = 0.0) -> Prediction:
    schedule = parse(QUEUES.format(owner=owner, channel=channel, first=first, second=second))
    on = cluster(3, nic=Nic(bandwidth_Bps=1e6, overhead_s=overhead_s))
    return predict(schedule, MODEL, on, Costs(flops_s=1e-9))


def test_one_channel_of_a_pair_is_a_queue_in_program_order() -> None:
    # Even where priorities say otherwise.
    p = _queues("s", "x", first=9, second=0)
    for i in range(3):
        (one,) = _spans(p, op="push1", side="sent", iteration=i)
        (two,) = _spans(p, op="push2", side="sent", iteration=i)
        assert one.end_s - one.start_s == pytest.approx(7.212e-3)
        assert two.start_s == pytest.approx(one.end_s)
        assert two.end_s - two.start_s == pytest.approx(20.02e-3)


def test_channels_of_a_pair_share_the_link() -> None:
    p = _queues("s", "y")
    (one,) = _spans(p, op="push1", side="sent", iteration=1)
    (two,) = _spans(p, op="push2", side="sent", iteration=1)
    assert one.start_s == pytest.approx(two.start_s)
    assert one.end_s - one.start_s == pytest.approx(2 * 7.212e-3)
    assert two.end_s - two.start_s == pytest.approx(27.232e-3)


@pytest.mark.parametrize(
    ("first", "second", "winner"), [(0, 0, "push1"), (0, 1, "push1"), (1, 0, "push2"), (0, -1, "push2")]
)
def test_the_lowest_priority_is_posted_first(first: int, second: int, winner: str) -> None:
    """Posting takes its turn: the second message is held back by the overhead of the first."""
    p = _queues("t", "x", first, second, overhead_s=1e-3)
    starts = {}
    for op in ("push1", "push2"):
        (span,) = _spans(p, op=op, side="sent", iteration=1)
        starts[op] = span.start_s
    ready = max(s.end_s for s in _spans(p, op="k5", iteration=1))
    assert starts[winner] == pytest.approx(ready + 1e-3)
    assert max(starts.values()) == pytest.approx(ready + 2e-3)


@settings(max_examples=25, deadline=None)
@given(legal_schedules(MODEL))
def test_pairs_lanes_and_groups_are_queues(schedule: Schedule) -> None:
    """Across iterations too; and nothing starts before what it needs, or works on three iterations at once."""
    p = predict(
        schedule, MODEL, cluster(schedule.world_size, nic=Nic(bandwidth_Bps=1e6, overhead_s=1e-5)), fold_ranks=False
    )
    order = {op.name: i for i, op in enumerate(schedule.ops)}
    lanes: dict[tuple[object, ...], list[Span]] = defaultdict(list)
    ended: dict[tuple[str, int, int, str], float] = {}
    for s in p.timeline.spans:
        op = schedule.op(s.op)
        ended[s.op, s.rank, s.iteration, s.side] = s.end_s
        match op:
            case Transfer():  # a rank's spans of an op with one peer are that pair's
                to = schedule.destinations(op, s.rank)
                if s.side == "sent" and len(to) == 1:
                    lanes["pair", s.rank, to[0], op.channel].append(s)
            case Collective():
                lanes["group", op.ranks, s.rank].append(s)
            case _:
                lanes["lane", op.lane, s.rank].append(s)
    credits = {op.channel: op.credit for op in schedule.ops if isinstance(op, Transfer) and op.credit}
    for queue, spans in lanes.items():
        if queue[0] == "pair" and queue[-1] in credits:
            assert _most_at_once(spans) <= credits[queue[-1]]
            continue
        assert _apart(spans)
        # By the end, then by the order: computations of zero seconds begin and end at once.
        keys = [(s.iteration, order[s.op]) for s in spans]
        assert keys == sorted(keys)
    ends = p.timeline.iteration_end_s
    for s in p.timeline.spans:
        if s.iteration >= 2 and s.rank in ends:
            assert s.start_s >= ends[s.rank][s.iteration - 2] - 1e-12 if s.iteration - 2 < len(ends[s.rank]) else True
        for name in schedule.op(s.op).after:
            if s.side != "recv" and (name, s.rank, s.iteration, "") in ended:
                assert s.start_s >= ended[name, s.rank, s.iteration, ""] - 1e-12


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _closed_form(op: Collective, members: list[int], rank: int) -> tuple[float, float]:
    """Bytes that `rank` sends and receives in a ring."""
    n = len(members)
    if rank not in members or n == 1:
        return 0.0, 0.0
    match op.kind:
        case CollectiveKind.ALL_REDUCE:
            return (2 * (n - 1) / n * op.nbytes,) * 2
        case CollectiveKind.REDUCE_SCATTER | CollectiveKind.ALL_GATHER:
            size = op.wire.itemsize(4)
            return ((n - 1) * -(-op.nbytes // (size * n)) * float(size),) * 2  # in equal parts of whole elements
        case CollectiveKind.BROADCAST:
            at = (members.index(rank) - members.index(op.root if op.root is not None else -1)) % n
            return op.nbytes * float(at < n - 1), op.nbytes * float(at > 0)


@settings(max_examples=25, deadline=None)
@given(legal_schedules(MODEL), st.booleans())
def test_bytes_are_conserved(schedule: Schedule, fold_ranks: bool) -> None:
    p = predict(schedule, MODEL, cluster(schedule.world_size), fold_ranks=fold_ranks)
    sent = dict.fromkeys(range(schedule.world_size), 0.0)
    received = dict(sent)
    rings = 0
    for op in schedule.ops:
        if isinstance(op, Transfer):
            for a, b in schedule.pairs(op):
                sent[a] += schedule.message_bytes(op, a, b)
                received[b] += schedule.message_bytes(op, a, b)
        elif isinstance(op, Collective):
            rings += 1
            size = op.wire.itemsize(schedule.itemsize)
            steps = traffic(op, schedule.group(op.ranks), size) if op.by is Carrier.STEPS else None
            for r in sent:
                closed = _closed_form(op, list(schedule.group(op.ranks)), r)
                out, into = closed if steps is None else steps.get(r, (0, 0))
                sent[r] += out
                received[r] += into
    for r, n in p.sent_bytes.items():
        assert n == pytest.approx(sent[r], abs=rings)  # rounded to whole bytes
        assert p.received_bytes[r] == pytest.approx(received[r], abs=rings)
    sizes = p.timeline.multiplicity
    total = sum(n * sizes[r] for r, n in p.sent_bytes.items())
    stepwise = any(isinstance(op, Collective) and op.by is Carrier.STEPS for op in schedule.ops)
    if not stepwise or len(sizes) == schedule.world_size:  # the last slices of a ring are shorter
        assert total == sum(n * sizes[r] for r, n in p.received_bytes.items())
    # And so say the spans, which have the bytes that a collective sends.
    for side, want in (("sent", p.sent_bytes), *([] if stepwise else [("recv", p.received_bytes)])):
        for r in want:
            moved = sum(s.nbytes for s in _spans(p, rank=r, iteration=1, side=side))
            rings_of = sum(
                s.nbytes for s in _spans(p, rank=r, iteration=1) if isinstance(schedule.op(s.op), Collective)
            )
            if not any(isinstance(o, Collective) and o.kind is CollectiveKind.BROADCAST for o in schedule.ops):
                assert moved + rings_of == want[r]


@settings(max_examples=25, deadline=None)
@given(legal_schedules(MODEL))
def test_each_op_has_its_spans(schedule: Schedule) -> None:
    p = predict(schedule, MODEL, cluster(schedule.world_size), fold_ranks=False)
    seen = {(s.op, s.rank, s.side) for s in p.timeline.spans if s.iteration == 1}
    want = set()
    for op in schedule.ops:
        for r in range(schedule.world_size):
            if isinstance(op, Transfer):
                if any(d != r for d in schedule.destinations(op, r)):
                    want.add((op.name, r, "sent"))
                if any(s != r for s in schedule.sources(op, r)):
                    want.add((op.name, r, "recv"))
            elif r in schedule.group(op.ranks):
                want.add((op.name, r, ""))
    assert seen == want
    assert all(s.end_s >= s.start_s for s in p.timeline.spans)


# ---- steady state, bound, and what goes wrong -----------------------------------------------------------------------


def test_a_cluster_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="has 4 ranks, cluster star places 5"):
        predict(build("all_reduce", MODEL, 4), MODEL, cluster(5))


def test_an_illegal_schedule_is_refused() -> None:
    schedule = build("all_reduce", MODEL, 4)
    with pytest.raises(ScheduleError):
        predict(replace(schedule, ops=schedule.ops[1:]), MODEL, cluster(4))


def test_a_deadlock_is_reported_with_what_waits_for_what() -> None:
    """No legal schedule deadlocks; a program that waits for itself does."""
    schedule = build("parameter_server", MODEL, 3)
    on = cluster(3)
    lowered = lower(schedule, MODEL, on, unfolded(on), lambda _: SOME)
    rank_class = lowered.rank_classes[1]
    units = tuple(
        replace(u, needs=(*u.needs, u.index + 1)) if u.op.name == "bwd.c2" else u for u in rank_class.program.units
    )
    lowered.rank_classes[1] = replace(rank_class, program=replace(rank_class.program, units=units))
    with pytest.raises(RunError) as e:
        Engine(schedule, lowered).run(lambda _: False)
    assert "no op can start" in str(e.value)
    lines = {line.split(":")[0].strip(): line for line in str(e.value).splitlines()}
    assert "bwd.c2 waits for bwd.pool" in lines["rank 1, iteration 0"]
    assert "red.c2 waits for push.c2" in lines["rank 2, iteration 0"]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_costs_of_zero_do_not_hang(world_size: int) -> None:
    for name, given_settings in (("all_reduce", {}), ("parameter_server", {"placement": "colocated"})):
        p = predict(build(name, MODEL, world_size, **given_settings), MODEL, cluster(world_size), ZERO)
        assert p.steady
        assert (p.iteration_s == 0.0) == (world_size == 1)
        assert p.samples_per_s == (float("inf") if world_size == 1 else pytest.approx(4 * world_size / p.iteration_s))
        assert (p.bottleneck == "nothing takes time") == (world_size == 1)


def test_many_blocks_of_no_cost() -> None:
    """Completions at one instant are worked off in a loop: no chain is too long."""
    from tests.schedule.toys import block

    blocks = tuple(block(f"b{i}", MODEL.blocks[0].kind, [(3,)], 4) for i in range(150))
    model = replace(MODEL, blocks=blocks, boundary=150)
    p = predict(build("parameter_server", model, 2), model, cluster(2), ZERO)
    assert p.steady


def test_a_thousand_workers_cost_what_four_do() -> None:
    counts = {n: predict(build("parameter_server", MODEL, n + 1), MODEL, cluster(n + 1)).events for n in (4, 1024)}
    assert counts[1024] <= 1.2 * counts[4]
    rings = {n: predict(build("all_reduce", MODEL, n), MODEL, cluster(n)).events for n in (4, 1024)}
    assert rings[1024] <= 1.2 * rings[4]


def test_equal_inputs_give_equal_predictions() -> None:
    schedule, on = build("stanza", MODEL, 6, fc_workers=2), cluster(6, nic=Nic(bandwidth_Bps=1e6, latency_s=1e-4))
    assert predict(schedule, MODEL, on) == predict(schedule, MODEL, on)


def test_what_does_not_repeat_is_a_mean_and_says_so() -> None:
    schedule = build("all_reduce", MODEL, 3)
    p = predict(schedule, MODEL, cluster(3), max_iterations=2)
    assert not p.steady
    full = predict(schedule, MODEL, cluster(3))
    assert full.steady
    assert p.iteration_s == pytest.approx(full.iteration_s, rel=0.2)


def test_ranks_that_never_meet_are_not_steady_together() -> None:
    """Two workers that exchange nothing at different speeds: the slower one sets the pace."""
    text = "schedule s model=toy world=2 batch=1\ngroup w 0-1\n"
    before = ""
    for b in ONE.blocks:
        text += f"f.{b.name}: forward {b.name} @w {before}\n"
        before = f"after=f.{b.name}"
    p = predict(parse(text), ONE, cluster(2, speeds={1: 0.5}), Costs(flops_s=1e-3))
    assert p.iteration_s == pytest.approx(2 * 1.55)


def test_steady_window() -> None:
    even = [float(i) for i in range(6)]
    assert steady_window([even[:3]]) is None
    assert steady_window([even[:4]]) == (2, 3)
    assert steady_window([[0.0, 5.0, 6.0, 7.0]]) == (2, 3)  # iteration 0 is not counted
    assert steady_window([even[:4], [0.0, 1.0, 2.0, 3.1]]) is None
    alternating = [0.0, 1.0, 3.0, 4.0, 6.0, 7.0]
    assert steady_window([alternating]) == (3, 5)


# ---- every op kind --------------------------------------------------------------------------------------------------


def test_every_kind_of_op_in_one_schedule() -> None:
    text = """\
schedule all model=toy world=3 batch=4 microbatches=2
group w 0-2
group root 1
bundle a numel=1803 owners=w layout=cut tensors=c1.t0,c1.t1
bundle b numel=5005 owners=root tensors=c2.t0,c2.t1
bundle c numel=8407 owners=w tensors=f1.t0,f1.t1
"""
    for m in range(2):
        before = ""
        for block in MODEL.blocks:
            text += f"f.{block.name}.{m}: forward {block.name} @w microbatch={m} {before}\n"
            before = f"after=f.{block.name}.{m}"
        text += f"l.{m}: loss f2 @w microbatch={m} {before}\n"
        before = f"after=l.{m}"
        for block in reversed(MODEL.blocks):
            if block.name == "c2":
                text += f"i.c2.{m}: backward_input c2 @w microbatch={m} {before}\n"
                text += f"g.c2.{m}: backward_weight c2 @w microbatch={m} after=i.c2.{m}\n"
                before = f"after=i.c2.{m}"
            else:
                text += f"k.{block.name}.{m}: backward {block.name} @w microbatch={m} {before}\n"
                before = f"after=k.{block.name}.{m}"
    text += """\
rs: reduce_scatter grad(a) @w nbytes=7212 algorithm=ring after=k.c1.0,k.c1.1
ua: update a @w after=rs
ag: all_gather param(a) @w nbytes=7212 algorithm=ring after=ua
push: transfer grad(b) w->root fan-in nbytes=20020 channel=x after=g.c2.0,g.c2.1
rb: reduce b @root lane=side after=push
ub: update b @root lane=side after=rb
bc: broadcast param(b) @w nbytes=20020 algorithm=ring root=1 after=ub
ar: all_reduce grad(c) @w nbytes=33628 algorithm=ring after=k.f1.0,k.f1.1
uc: update c @w after=ar
"""
    schedule = parse(text.format())
    p = predict(schedule, MODEL, cluster(3, nic=Nic(bandwidth_Bps=1e6)), fold_ranks=False)
    assert p.steady
    b = 1e6
    ring = {"rs": 2 / 3 * 7212 / b, "ag": 2 / 3 * 7212 / b, "ar": 4 / 3 * 33628 / b}
    for name, seconds in ring.items():
        (span,) = _spans(p, op=name, rank=0, iteration=1)
        assert span.duration_s >= seconds * (1 - 1e-9)
    (bc,) = _spans(p, op="bc", rank=0, iteration=1)
    assert bc.duration_s == pytest.approx(20020 / b)  # a pipelined chain
    assert p.op_seconds.keys() >= {"reduce_scatter", "all_gather", "broadcast", "all_reduce", "transfer x", "reduce"}
    # Half the samples at a time.
    (f,) = _spans(p, op="f.c1.1", rank=0, iteration=1)
    assert f.duration_s == pytest.approx(SOME.forward_s(MODEL.blocks[0], 2))
