"""One schedule, one set of rules: random schedules and events, held against the rules written a second time.

The same events (a computation is done, a message has arrived or left, in the same order) go to the rules themselves, to
the plain simulator and to the executor's threads; what each starts and posts, in which order, must be what
`tests/schedule/progress_rules.py` says. The compiled simulator must have every span of the plain one.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import RunError
from stanza_sim.cluster import Cluster, Nic, Staging
from stanza_sim.execute.rank import engine as executor
from stanza_sim.schedule import Collective, Compute, Schedule, Transfer, UnitKind, parse, program, progress, project
from stanza_sim.schedule.progress import Issue, Key, Progress
from stanza_sim.simulate.compiled import builder as compiled_builder
from stanza_sim.simulate.compiled.engine import CompiledEngine
from stanza_sim.simulate.compiled.graph import graph_of
from stanza_sim.simulate.lowered import Activity, Lowered
from stanza_sim.simulate.lowering.arrays import lower_to_arrays
from stanza_sim.simulate.lowering.fold import fold, unfolded
from stanza_sim.simulate.lowering.lower import lower
from stanza_sim.simulate.plain import engine as plain
from stanza_sim.simulate.plain.clock import SimClock
from stanza_sim.simulate.plain.fabric import Listener
from tests.schedule.progress_rules import Entry, Log, Recorder, check_log
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import Costs, cluster, toy

EXAMPLES = 2000 if settings().max_examples >= 2000 else 200 if os.environ.get("CI") else 50
"""Random schedules for each engine: in a nightly run, in CI, and while working."""
EVENTS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODEL = toy()
ITERATIONS = 3
ISSUES = st.sampled_from([Issue.EAGER, Issue.EAGER, Issue.IN_ORDER])

LATER_SEND_FIRST = """
schedule s model=toy world=2 batch=1
group a 0
group b 1
f: forward c1 @a
g: forward pool @a after=f
late: transfer act(pool) a->b one-to-one nbytes=20 after=g
early: transfer act(c1) a->b one-to-one nbytes=40 after=f
"""
"""Until the rules were written once, the simulator posted `early` first, and the executor waited for `late`."""
FAN_OUT = """
schedule s model=toy world=4 batch=1
group a 0
group b 1-3
f: forward c1 @a
out: transfer act(c1) a->b fan-out nbytes=40 after=f
"""
"""The simulator chose among sends as a whole, the executor among messages to each destination."""
COLLECTIVE_BESIDE_SEND = """
schedule s model=toy world=2 batch=1
group w 0-1
group a 0
group b 1
f: forward c1 @w
ar: all_reduce grad(w.c1) @w nbytes=48 algorithm=ring after=f
out: transfer act(c1) a->b one-to-one nbytes=40 priority=1 after=f
"""
"""In the simulator the collective waited for the poster."""
UPDATE_AFTER_SEND = """
schedule s model=toy world=2 batch=1
group a 0
group b 1
bundle w.c1 numel=12 owners=a layout=replicated tensors=c1.t0,c1.t1
f: forward c1 @a
u: update w.c1 @a after=f
pull: transfer param(w.c1) a->b one-to-one nbytes=48 after=u
"""
"""Only the executor let the next update wait until `pull` had left."""
CREDIT_AND_PRIORITY = """
schedule s model=toy world=2 batch=1
group a 0
group b 1
f: forward c1 @a
g: forward pool @a after=f
h: forward c2 @a after=g
x: transfer act(c1) a->b one-to-one nbytes=40 priority=9 credit=1 after=f
y: transfer act(pool) a->b one-to-one nbytes=20 priority=5 credit=1 after=f
z: transfer act(c2) a->b one-to-one nbytes=24 priority=1 credit=1 after=g
"""
"""With credit, the executor had chosen what goes next before it could be posted, the simulator when it was."""
UNEVEN_SLICES = """
schedule s model=toy world=3 batch=1
group w 0-2
f: forward c1 @w
ar: all_reduce grad(w.f2) @w nbytes=128 algorithm=ring by=steps after=f
"""
"""Of 32 elements three ranks have 11, 11 and 10: staged, they copy unlike many bytes, and were folded into one."""
KEPT = [parse(t) for t in (LATER_SEND_FIRST, FAN_OUT, COLLECTIVE_BESIDE_SEND, UPDATE_AFTER_SEND, CREDIT_AND_PRIORITY)]
"""Schedules on which simulator and executor differed, each in one of the rules."""


def kept(test: Callable[..., None]) -> Callable[..., None]:
    """Add the schedules on which the engines once differed."""
    for schedule in KEPT:
        for issue in (Issue.EAGER, Issue.IN_ORDER):
            test = example(schedule=schedule, seed=1, issue=issue)(test)
    return test


# ---- the rules themselves -------------------------------------------------------------------------------------------


def messages_of(schedule: Schedule, rank: int) -> dict[int, int]:
    """Messages of each unit of a rank; those of no bytes are not sent."""
    return {
        u.index: sum(1 for p in u.peers if _nbytes(schedule, u, rank, p))
        for u in project(schedule, rank).units
        if isinstance(u.op, Transfer)
    }


def _nbytes(schedule: Schedule, unit: Any, rank: int, peer: int) -> int:
    ends = (rank, peer) if unit.kind is UnitKind.SEND else (peer, rank)
    return schedule.message_bytes(unit.op, *ends)


def any_order(core: Recorder, rng: random.Random) -> Log:
    """Let the events of one rank happen in any order that could be, and post at any time."""
    units, messages = core.units, dict(core.log.messages)
    under_way: list[tuple[str, Key]] = []

    def take(out: Any) -> None:
        under_way.extend(("complete", key) for key in out.start)
        accepted = [(i, u) for i, us in out.issue for u in us]
        if core.issue is not Issue.IN_ORDER:
            accepted = [(i, u.index) for i in out.opened for u in units if u.kind is UnitKind.RECV]
        for i, u in accepted:
            if units[u].kind is UnitKind.RECV:
                under_way.extend([("arrived", (i, u))] * messages.get(u, 0))
            else:
                under_way.append(("complete", (i, u)))

    take(core.begin())
    while under_way or core:
        if core and (not under_way or rng.random() < 0.4):
            assert len(core) > 0
            posted = core.next_post()
            assert posted is not None
            under_way.append(("complete", posted))
            continue
        what, key = under_way.pop(rng.randrange(len(under_way)))
        take(core.complete(key) if what == "complete" else core.arrived(key))
    assert core.next_post() is None and len(core) == 0
    assert core.finished
    return core.log


@kept
@EVENTS
@given(schedule=legal_schedules(MODEL), seed=st.integers(0, 2**16), issue=ISSUES)
def test_the_rules_in_any_order_of_events(schedule: Schedule, seed: int, issue: Issue) -> None:
    rng = random.Random(seed)
    rank = seed % schedule.world_size
    core = Recorder(project(schedule, rank), messages_of(schedule, rank), iterations=ITERATIONS, issue=issue)
    check_log(any_order(core, rng))


# ---- the plain simulator --------------------------------------------------------------------------------------------


class AnyFabric:
    """Lets everything take a time drawn at random; a rank's messages neither meet nor wait for those of others.

    Messages of one rank and channel leave and arrive in the order in which they are posted, as on a real connection.
    """

    def __init__(self, lowered: Lowered, clock: SimClock, listener: Listener, rng: random.Random, issue: Issue) -> None:
        self.lowered, self.clock, self.listener, self.rng, self.issue = lowered, clock, listener, rng, issue
        self.last: dict[object, float] = {}
        self.accepted: dict[tuple[int, int, str], int] = {}

    def begin(self, key: object, iteration: int, activity: Activity, then: Callable[[], None]) -> None:
        self.clock.after(self.rng.random(), then)

    def post(self, a: int, i: int, u: int) -> None:
        op = self.lowered.rank_classes[a].program.units[u].op
        got = self.accepted.pop((a, i, op.name), None)

        def through() -> None:
            if got is not None:  # in order, an op's messages are waited for together
                self.listener.arrived(a, i, got, 0.0)
            self.listener.sent(a, i, u, 0.0)

        self.in_turn((a, op.channel, "out"), through)  # type: ignore[union-attr]

    def open(self, a: int, i: int) -> None:
        for u, classes in self.lowered.rank_classes[a].arrivals.items():
            if classes:
                self.arrive(a, i, u)

    def accept(self, a: int, i: int, u: int) -> None:
        units = self.lowered.rank_classes[a].program.units
        sends = [v for v in units if v.op is units[u].op and v.kind is UnitKind.SEND]
        if any(self.lowered.rank_classes[a].sends[v.index] for v in sends):
            self.accepted[a, i, units[u].op.name] = u
        else:
            self.arrive(a, i, u)

    def arrive(self, a: int, i: int, u: int) -> None:
        channel = self.lowered.rank_classes[a].program.units[u].op.channel  # type: ignore[union-attr]
        self.in_turn((a, channel, "in"), lambda: self.listener.arrived(a, i, u, 0.0))

    def in_turn(self, queue: object, then: Callable[[], None]) -> None:
        at = max(self.clock.now, self.last.get(queue, 0.0)) + self.rng.random() + 1e-3
        self.last[queue] = at
        self.clock.wake(at, then)

    def background_bytes(self) -> dict[int, float]:
        return {}


@contextmanager
def recorded(module: Any, core: type[Progress] = Recorder) -> Iterator[list[Any]]:
    """Have `module` drive rules that keep a log."""
    made: list[Any] = []

    class Kept(core):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    before = module.Progress
    module.Progress = Kept
    try:
        yield made
    finally:
        module.Progress = before


def simulated(schedule: Schedule, seed: int, issue: Issue, overhead_s: float) -> list[Log]:
    """The logs of all ranks of the plain engine on a fabric that lets things take any time."""
    rng = random.Random(seed)
    on = cluster(schedule.world_size, nic=Nic(bandwidth_Bps=1e6, overhead_s=overhead_s))
    lowered = lower(schedule, MODEL, on, unfolded(on), lambda _: Costs(flops_s=1e-3))
    with recorded(plain) as cores:
        engine = plain.Engine(
            schedule,
            lowered,
            issue=issue,
            fabric=lambda *args: AnyFabric(*args, rng, issue),  # type: ignore[arg-type]
        )
        engine.run(lambda ends: len(ends[0]) >= ITERATIONS)
    return [core.log for core in cores]


@kept
@EVENTS
@given(schedule=legal_schedules(MODEL), seed=st.integers(0, 2**16), issue=ISSUES)
def test_the_plain_simulator_keeps_the_rules(schedule: Schedule, seed: int, issue: Issue) -> None:
    logs = simulated(schedule, seed, issue, overhead_s=[0.0, 0.3][seed % 2])
    assert len(logs) == schedule.world_size
    assert sum(map(check_log, logs)) >= schedule.world_size


# ---- the executor ---------------------------------------------------------------------------------------------------


class Gates:
    """What happens at an executor's rank, when the test says so."""

    def __init__(self) -> None:
        self.gates: dict[object, threading.Event] = defaultdict(threading.Event)
        self.lock = threading.Lock()

    def __getitem__(self, key: object) -> threading.Event:
        with self.lock:
            return self.gates[key]


class Gated:
    """The work and the messages of one rank: each waits until its gate is opened."""

    def __init__(self, schedule: Schedule, rank: int, gates: Gates) -> None:
        self.schedule, self.rank, self.gates = schedule, rank, gates
        self.names: dict[tuple[int, str], list[str]] = defaultdict(list)

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        self.gates[op.name, iteration].wait()
        return 0.0, 0.0

    def collective(self, op: Collective, iteration: int) -> None:
        self.gates[op.name, iteration].wait()

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> object:
        return self.gates[op.name, iteration, "sent"]

    def incoming(self, op: Transfer, iteration: int, src: int) -> object:
        return self.gates[op.name, iteration, "recv"]

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        pass

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        return self.schedule.message_bytes(op, src, dst)

    def send(self, gate: Any, dst: int, channel: str) -> Any:
        return gate

    receive = send

    def together(self, sends: list[Any], receives: list[Any], channel: str) -> list[Any]:
        return [gate for gate, _ in [*sends, *receives]]

    def send_tagged(self, gate: Any, dst: int, op: Transfer) -> Any:
        return gate

    receive_tagged = send_tagged

    def next_tag(self, src: int, channel: str) -> str:
        told = self.gates["name", src, channel]
        while True:
            with self.gates.lock:
                if self.names[src, channel]:
                    return self.names[src, channel].pop(0)
                told.clear()
            told.wait()

    def tell(self, src: int, op: Transfer) -> None:
        with self.gates.lock:
            self.names[src, op.channel].append(op.name)
        self.gates["name", src, op.channel].set()


def drained(log: Log) -> Log:
    """The log of rules that are told the events of `log` and post all that may be posted after each."""
    core = Recorder(log.program, log.messages, iterations=ITERATIONS, issue=log.issue)
    ahead = [(what, key) for what, key, _ in log.entries if what in ("complete", "arrived")]
    core.begin()
    while core.next_post() is not None:
        pass
    waiting: list[tuple[str, Key]] = []
    for event in ahead:  # a send of the log may be posted later here, where others went first
        waiting.append(event)
        while (now := next((e for e in waiting if _can(core, e)), None)) is not None:
            waiting.remove(now)
            (core.complete if now[0] == "complete" else core.arrived)(now[1])
            while core.next_post() is not None:
                pass
    return core.log


def _can(core: Recorder, event: tuple[str, Key]) -> bool:
    what, key = event
    if key[0] >= ITERATIONS:
        return False
    if what == "arrived":
        return key[0] < core.opened
    started = {k for _, _, f in core.log.entries if f for k in f[0]}  # type: ignore[attr-defined]
    posted = {k for w, k, _ in core.log.entries if w == "post"}
    issued = {(i, u) for _, _, f in core.log.entries if f for i, us in f[1] for u in us}  # type: ignore[attr-defined]
    return key in started | posted | issued


def executed(schedule: Schedule, rank: int, wanted: Log) -> Log:
    """The log of an executor's rank to which the events of `wanted` happen in that order."""
    gates = Gates()
    gated = Gated(schedule, rank, gates)
    made_program = project(schedule, rank)
    with recorded(executor) as cores:
        engine: Any = executor.Engine(
            made_program,
            ITERATIONS,
            gated,
            gated,
            tagged=gated,
            issue=wanted.issue,  # type: ignore[arg-type, var-annotated]
        )
    # Each send is waited for by the thread of its destination, as if something depended on it.
    sends = [u for u in made_program.units if u.kind is UnitKind.SEND]
    endpoints = {(p, u.op.channel): None for u in sends for p in engine._tables.peers[u.index]}  # type: ignore[union-attr]
    engine._tables = replace(
        engine._tables, awaited_sends=frozenset(u.index for u in sends), awaited_from=tuple(endpoints)
    )
    log: Log = cores[0].log
    failed: list[BaseException] = []

    def run() -> None:
        try:
            engine.run(timeout_s=20)
        except BaseException as error:  # noqa: BLE001 - reported below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    units = made_program.units
    done = 0
    for at, (what, key, _) in enumerate(wanted.entries):
        if what == "begin":
            continue
        unit = units[key[1]]
        if what == "complete":
            side = ("sent",) if unit.kind is UnitKind.SEND else ()
            gates[(unit.op.name, key[0], *side)].set()
        elif what == "arrived":
            if unit.op.credit and wanted.issue is not Issue.IN_ORDER:  # type: ignore[union-attr]
                for p in engine._tables.peers[key[1]]:
                    gated.tell(p, unit.op)  # type: ignore[arg-type]
            gates[unit.op.name, key[0], "recv"].set()
        if wanted.issue is Issue.IN_ORDER and what == "arrived" and at + 1 < len(wanted.entries):
            following = wanted.entries[at + 1]
            if following[0] == "complete" and units[following[1][1]].op is unit.op:
                continue  # the messages of one op are waited for together
        done = at + 1
        until = time.perf_counter() + 10
        while len(_units_only(log, engine)) < done and time.perf_counter() < until and not failed:
            time.sleep(1e-5)
    engine._done.set()
    thread.join(10)
    if failed:
        raise failed[0]
    return Log(log.program, log.messages, log.iterations, log.issue, _units_only(log, engine))


def _units_only(log: Log, engine: Any) -> list[Entry]:
    """The entries of a log, with one arrival for all messages of a receive."""
    found: list[Entry] = []
    seen: dict[Key, int] = defaultdict(int)
    for entry in list(log.entries):
        if entry[0] == "arrived":
            seen[entry[1]] += 1
            if seen[entry[1]] < len(engine._tables.peers[entry[1][1]]):
                continue
        found.append(entry)
    return found


@kept
@EVENTS
@given(schedule=legal_schedules(MODEL), seed=st.integers(0, 2**16), issue=ISSUES)
def test_the_executor_starts_and_posts_what_the_simulator_does(schedule: Schedule, seed: int, issue: Issue) -> None:
    """The events of the simulator's rank happen at the executor's, in the same order."""
    rank = seed % schedule.world_size
    wanted = drained(simulated(schedule, seed, issue, overhead_s=0.0)[rank])
    check_log(wanted)
    if not wanted.program.units:  # an executor's rank that has nothing to do does not begin
        return
    assert executed(schedule, rank, wanted).entries == wanted.entries


# ---- the compiled simulator -----------------------------------------------------------------------------------------


def spans_of(engine: Any) -> dict[tuple[str, int, int, str], tuple[float, float]]:
    spans = engine.log().spans() if isinstance(engine, CompiledEngine) else engine.spans
    return {(s.op, s.rank, s.iteration, s.side): (s.start_s, s.end_s) for s in spans if s.iteration < ITERATIONS}


def both(
    schedule: Schedule, on: Cluster, costs: Costs, issue: Issue = Issue.EAGER
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The spans of the plain and of the compiled engine."""
    alone = unfolded(on)
    reading = plain.Engine(schedule, lower(schedule, MODEL, on, alone, lambda _: costs), issue=issue)
    reading.run(lambda ends: len(ends[0]) >= ITERATIONS + 1)
    arrays = lower_to_arrays(schedule, MODEL, on, alone, lambda _: costs)
    quick = CompiledEngine(graph_of(schedule, arrays, issue), arrays, ())
    quick.run(lambda ends: len(ends[0]) >= ITERATIONS + 1)
    return spans_of(reading), spans_of(quick)


def any_network(schedule: Schedule, rng: random.Random) -> tuple[Cluster, Costs]:
    """A star of drawn rates and overheads, on which the devices of all, of some or of no hosts are staged."""
    rate_Bps, latency_s, overhead_s = rng.uniform(1e3, 1e6), rng.choice([0.0, 1e-4]), rng.choice([0.0, 7e-4])
    on = cluster(schedule.world_size, nic=Nic(bandwidth_Bps=rate_Bps, latency_s=latency_s, overhead_s=overhead_s))
    staging = Staging(bandwidth_Bps=rng.uniform(1e4, 1e6), latency_s=2e-4)
    share = rng.choice([0.0, 0.0, 0.5, 1.0])
    hosts = tuple(replace(h, staging=staging) if rng.random() < share else h for h in on.hosts)
    return replace(on, hosts=hosts), Costs(flops_s=rng.uniform(1e-6, 1e-4), update_byte_s=rng.uniform(0, 1e-6))


def same_spans(found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, span in wanted.items():
        assert found[key] == pytest.approx(span, rel=1e-9, abs=1e-12), key


@pytest.mark.skipif(find_spec("numba") is None, reason="needs numba")
@kept
@EVENTS
@given(schedule=legal_schedules(MODEL), seed=st.integers(0, 2**16), issue=ISSUES)
def test_the_compiled_simulator_has_every_span_of_the_plain_one(schedule: Schedule, seed: int, issue: Issue) -> None:
    reading, quick = both(schedule, *any_network(schedule, random.Random(seed)), issue)
    same_spans(quick, reading)


@example(schedule=parse(UNEVEN_SLICES), seed=0, issue=Issue.EAGER)
@kept
@EVENTS
@given(schedule=legal_schedules(MODEL), seed=st.integers(0, 2**16), issue=ISSUES)
def test_a_folded_simulation_has_the_spans_of_those_that_stand_for_the_others(
    schedule: Schedule, seed: int, issue: Issue
) -> None:
    on, costs = any_network(schedule, random.Random(seed))
    found = []
    for folding in (fold(schedule, on), unfolded(on)):
        engine = plain.Engine(schedule, lower(schedule, MODEL, on, folding, lambda _: costs), issue=issue)
        engine.run(lambda ends: len(ends[0]) >= ITERATIONS + 1)
        found.append(spans_of(engine))
    stand = {members[0] for members in fold(schedule, on).classes}
    folded, whole = found
    same_spans(folded, {key: span for key, span in whole.items() if key[1] in stand})


# ---- faults are found -----------------------------------------------------------------------------------------------


def _no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "posting_order", lambda _: ({}, {}))


def _wide_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WINDOW", 3)


def _no_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "_priority", lambda *_: 0)


def _more_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.Line, "may_go", property(lambda line: len(line.waiting)))
    monkeypatch.setattr(progress.Line, "has_credit", True)


def _no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_overwritten", lambda _: {})


def _busy_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.Lane, "busy", property(lambda _: False, lambda *_: None))


Fault = Callable[[pytest.MonkeyPatch], None]
FAULTS: list[Fault] = [_no_order, _wide_window, _no_priority, _more_credit, _no_gate, _busy_lanes]


def _found() -> bool:
    """Whether any order of events of the kept schedules is not as the rules say."""
    for schedule in KEPT:
        for seed in range(20):
            for rank in range(schedule.world_size):
                core = Recorder(project(schedule, rank), messages_of(schedule, rank), iterations=4)
                try:
                    check_log(any_order(core, random.Random(seed)))
                except (AssertionError, RunError):
                    return True
    return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_a_fault_in_a_rule_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _found()
    fault(monkeypatch)
    assert _found()


@pytest.mark.parametrize(
    ("name", "instead"),
    [("posting_order", lambda _: ({}, {})), ("_priority", lambda _: 0), ("_credit", lambda *_: 0)],
    ids=["order", "priority", "credit"],
)
def test_a_fault_in_the_compiled_engine_is_found(name: str, instead: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    on = cluster(2, nic=Nic(bandwidth_Bps=1e3, overhead_s=0.5))

    def same() -> bool:
        pairs = [both(schedule, on, Costs(flops_s=1 / 500)) for schedule in KEPT if schedule.world_size == 2]
        return all(
            reading.keys() == quick.keys() and all(quick[k] == pytest.approx(reading[k], rel=1e-9) for k in reading)
            for reading, quick in pairs
        )

    assert same()
    monkeypatch.setattr(compiled_builder, name, instead)
    assert not same()
