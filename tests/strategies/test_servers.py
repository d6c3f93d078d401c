"""Parameter servers: who has what by the rules of MXNet, BytePS and P3, bytes that move, parts of tensors, priority."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from stanza_sim import strategies
from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.cluster import Nic
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Compute, Layout, Phase, Schedule, Transfer, check, from_json, parse
from stanza_sim.simulate.lowering.arrays import message_count
from stanza_sim.strategies import parameter_server
from stanza_sim.strategies._shared.assignment import djb2
from tests.schedule.toys import Costs, build, cluster, predict, toy

PIECES = [
    {"assignment": "byteps", "partition": "40B"},
    {"assignment": "byteps", "partition": "100B", "credit": 2},
    {"assignment": "sliced", "slice": 7},
    {"assignment": "sliced", "slice": 1, "credit": 0},
]


def _elements(schedule: Schedule, model: ModelProfile) -> dict[int, int]:
    """Elements at each server, by its place among the servers; slices as MXNet cuts them, but for rounding."""
    servers = list(schedule.group("server"))
    found = dict.fromkeys(range(len(servers)), 0)
    for b in schedule.bundles:
        owners = list(schedule.owners(b))
        for r in owners:
            found[servers.index(r)] += b.numel // len(owners)
    return found


def test_mxnet_cuts_big_arrays_and_hashes_small_ones() -> None:
    model = zoo.get("vgg16")
    schedule = build("parameter_server", model, 7, servers=3, assignment="mxnet")
    tensors = [t for b in model.blocks for t in b.tensors]
    expected = dict.fromkeys(range(3), 0)
    for key, t in enumerate(tensors):
        if t.numel >= 10**6:
            for j in range(3):
                expected[j] += t.numel // 3
        else:
            expected[(key * 9973) % 3] += t.numel
    assert _elements(schedule, model) == expected
    cut = {b.name for b in schedule.bundles if b.layout is Layout.SHARDED}
    assert "classifier.0.weight" in cut
    assert "features.0.weight" not in cut
    small = build("parameter_server", model, 7, servers=3, assignment="mxnet", bigarray_bound=200_000_000)
    assert all(b.layout is Layout.REPLICATED for b in small.bundles)


def test_byteps_cuts_tensors_in_pieces_and_hashes_their_keys() -> None:
    model = zoo.get("alexnet")
    schedule = build("parameter_server", model, 6, servers=2, assignment="byteps")
    tensors = [t for b in model.blocks for t in b.tensors]
    for key, t in enumerate(tensors):
        pieces = [b for b in schedule.bundles if b.tensors == (t.name,)]
        sizes = [b.numel for b in sorted(pieces, key=lambda b: b.start)]
        whole, rest = divmod(t.numel, 1_024_000)
        assert sizes == [1_024_000] * whole + ([rest] if rest else [])
        for p, b in enumerate(sorted(pieces, key=lambda b: b.start)):
            assert list(schedule.owners(b)) == [4 + djb2(key * 65536 + p) % 2]


def test_djb2_is_that_of_the_decimal_digits() -> None:
    assert djb2(0) == 5381 * 33 + ord("0")
    assert djb2(12) == (5381 * 33 + ord("1")) * 33 + ord("2")
    digits = str(2**40)
    n = len(digits)
    whole = 5381 * 33**n + sum(ord(c) * 33 ** (n - 1 - i) for i, c in enumerate(digits))
    assert whole > 2**64
    assert djb2(2**40) == whole % 2**64


def test_slices_go_to_the_servers_in_turn() -> None:
    model = toy(10)
    schedule = build("parameter_server", model, 4, placement="colocated", servers=3, assignment="sliced", slice=50)
    order = {t.name: i for i, t in enumerate(t for b in model.blocks for t in b.tensors)}
    slices = sorted(schedule.bundles, key=lambda b: (order[b.tensors[0]], b.start))
    assert [list(schedule.owners(b)) for b in slices] == [[i % 3] for i in range(len(slices))]
    assert max(b.numel for b in slices) == 50


@pytest.mark.parametrize("settings", [{"assignment": "mxnet", "bigarray_bound": 40}, *PIECES])
@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
@pytest.mark.parametrize("overlap", [True, False])
def test_legal_and_of_two_forms(settings: dict[str, object], placement: str, overlap: bool) -> None:
    model = toy()
    for world, servers in ((2, 1), (4, 2), (5, 3)):
        options = {**settings, "placement": placement, "servers": servers, "overlap": overlap}
        schedule = build("parameter_server", model, world, **options)
        check(schedule, model)
        assert parse(schedule.text()) == schedule
        assert from_json(schedule.to_json()) == schedule
        assert sum(b.numel for b in schedule.bundles) == model.numel


@pytest.mark.parametrize(
    "settings", [{}, {"assignment": "cut"}, {"assignment": "mxnet", "bigarray_bound": 40}, *PIECES]
)
@pytest.mark.parametrize(("placement", "k"), [("dedicated", 2), ("colocated", 5)])
def test_bytes_are_those_of_the_closed_form(settings: dict[str, object], placement: str, k: int) -> None:
    """As the docstring of `build` has it, and as the simulator counts them."""
    model, n = toy(3), 5
    schedule = build("parameter_server", model, n, placement=placement, servers=k, **settings)
    at = dict.fromkeys(schedule.group("server"), 0)
    for b in schedule.bundles:
        owners = list(schedule.owners(b))
        size = -(-b.numel // len(owners)) if b.layout is Layout.SHARDED else b.numel
        for i, r in enumerate(owners):
            at[r] += 4 * (min((i + 1) * size, b.numel) - min(i * size, b.numel))
    workers = list(schedule.group("worker"))
    assert sum(at.values()) == model.nbytes
    for fold_ranks in (True, False):
        p = predict(schedule, model, cluster(n), fold_ranks=fold_ranks)
        for r, sent in p.sent_bytes.items():
            worker = model.nbytes - at.get(r, 0) if r in workers else 0
            server = (len(workers) - (r in workers)) * at.get(r, 0)
            assert sent == worker + server
            assert p.received_bytes[r] == worker + server
        assert p.iteration_s >= p.bound_s * (1 - 1e-9)


def test_a_forward_pass_waits_for_its_own_slices_only() -> None:
    schedule = build("parameter_server", toy(), 4, assignment="sliced", slice=3, servers=2)
    for op in schedule.ops:
        if isinstance(op, Compute) and op.phase is Phase.FORWARD:
            own = {f"pull.{b.name}" for b in schedule.bundles if b.tensors[0].startswith(f"{op.target}.")}
            assert set(op.after_previous) == own


def test_priority_lets_the_first_block_overtake() -> None:
    """A slow network: with credit the pushes of the first block go before those of the last that still wait."""
    model = toy(40)
    costs = Costs(flops_s=2e-7)
    on = cluster(3, nic=Nic(bandwidth_Bps=1e6, latency_s=1e-6))
    times = {}
    for credit in (0, 1):
        options = {"placement": "colocated", "assignment": "sliced", "slice": 40, "credit": credit}
        schedule = build("parameter_server", model, 3, **options)
        p = predict(schedule, model, on, costs)
        times[credit] = p.iteration_s
        sent = {s.op: s.end_s for s in p.timeline.spans if s.iteration == 2 and s.side == "sent" and s.rank == 1}
        first = max(t for name, t in sent.items() if name.startswith("push.c1."))
        last = max(t for name, t in sent.items() if name.startswith("push."))
        assert (first < last) == (credit == 1)
    assert times[1] < times[0]


PARTS = """schedule s model=toy world=2 batch=1 microbatches=1 itemsize=4
group w 0
group s 1
bundle a numel=5 owners=s layout=replicated tensors=c1.t0
bundle b numel=4 owners=s layout=replicated start=5 tensors=c1.t0
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", None),
        ("numel=5", "numel=4", "bundle b has the elements 5 to 9 of its tensors, and bundle a ends at 4"),
        ("numel=4", "numel=3", "bundle b ends at element 8 of its tensors, they have 9"),
        ("numel=5", "numel=6", "bundle b has the elements 5 to 9 of its tensors, and bundle a ends at 6"),
        ("numel=5", "numel=0", "bundle a has the elements 0 to 0 of its tensors, and they begin at 0"),
        ("layout=replicated start=5", "layout=cut start=5", "bundle b is a part of its tensors"),
        ("start=5 tensors=c1.t0", "start=5 tensors=c1.t1", "its tensors have"),
        ("start=5 tensors=c1.t0", "start=5 tensors=c1.t0,c1.t1", "is in two bundles"),
    ],
)
def test_parts_of_tensors_must_fit_together(old: str, new: str, message: str | None) -> None:
    text = PARTS.replace(old, new, 1) if old else PARTS
    if message is None:
        check(parse(text), toy())
        return
    with pytest.raises(ScheduleError) as e:
        check(parse(text), toy())
    assert message in str(e.value)


def test_a_channel_has_one_credit() -> None:
    schedule = build("parameter_server", toy(), 3, assignment="sliced", slice=3)
    ops = list(schedule.ops)
    at = [i for i, op in enumerate(ops) if isinstance(op, Transfer) and op.channel == "push"]
    for credit, where in ((2, at[1]), (-1, at[0])):
        wrong = replace(ops[where], credit=credit)
        with pytest.raises(ScheduleError, match=f"credit={credit} is not that of its channel"):
            check(replace(schedule, ops=(*ops[:where], wrong, *ops[where + 1 :])), toy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bigarray_bound": 5}, "bigarray_bound is for the assignment mxnet"),
        ({"assignment": "mxnet", "partition": "5kB"}, "partition is for the assignment byteps"),
        ({"assignment": "byteps", "slice": 5}, "slice is for the assignment sliced"),
    ],
)
def test_settings_that_would_be_ignored(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        build("parameter_server", toy(), 4, **settings)
    assert e.value.hint
    assert "parameter_server: " in str(e.value)


@pytest.mark.parametrize(
    ("key", "small", "least"),
    [
        ("slice", {"assignment": "sliced", "slice": 9}, 1385),
        ("partition", {"assignment": "byteps", "partition": "9B"}, "5540B"),
    ],
)
def test_pieces_that_would_be_too_many(key: str, small: dict[str, object], least: int | str) -> None:
    """VGG-16 has 138,357,544 parameters in 32 tensors; the size that the message names is not refused."""
    with pytest.raises(
        InputError, match=f"parameter_server: {key}: model vgg16 would be cut in .* the most\n  use {least} or"
    ) as e:
        build("parameter_server", zoo.get("vgg16"), 4, **small)
    assert e.value.hint
    pieces = len(build("parameter_server", zoo.get("vgg16"), 4, **{**small, key: least}).bundles)
    assert 99_000 < pieces <= 100_000


@pytest.mark.parametrize("settings", [{"slice": 0}, {"credit": -1}, {"partition": "0B"}, {"assignment": "hash"}])
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        strategies.get("parameter_server").Settings.model_validate(settings)


@pytest.mark.parametrize(("world_size", "local_size"), [(1, 1), (2, 1), (3, 1), (10, 1), (4, 4), (8, 2), (9, 4)])
def test_the_space_of_settings_is_what_build_accepts(world_size: int, local_size: int) -> None:
    model = toy()
    found = list(parameter_server.space(model, world_size=world_size, batch_per_worker=4, local_size=local_size))
    assert found
    assert world_size == 1 or found[0] == parameter_server.Settings()
    assert len({str(s) for s in found}) == len(found) < 300
    for settings in found:
        schedule = parameter_server.build(model, world_size=world_size, batch_per_worker=4, settings=settings)
        check(schedule, model)
        assert message_count(schedule)


@pytest.mark.parametrize(
    ("n", "settings"),
    [
        (5, {"local": 2}),
        (8, {"local": 3, "servers": 2, "assignment": "cut"}),
        (6, {"local": 2, "placement": "colocated", "assignment": "cut"}),
        (7, {"local": 4, "placement": "colocated", "assignment": "sliced", "slice": 20}),
    ],
)
def test_bytes_by_host_are_those_of_the_closed_form(n: int, settings: dict[str, object]) -> None:
    """As the docstring of `build` has it, and as the simulator counts them, on hosts of so many ranks."""
    model, local = toy(3), int(str(settings["local"]))
    schedule = build("parameter_server", model, n, **settings)
    check(schedule, model)
    workers, servers = list(schedule.group("worker")), list(schedule.group("server"))
    hosts = [workers[i : i + local] for i in range(0, len(workers), local)]
    sent, received = dict.fromkeys(range(n), 0), dict.fromkeys(range(n), 0)
    for place, b in enumerate(schedule.bundles):
        owners = list(schedule.owners(b))
        size = -(-b.numel // len(owners))
        share = {r: 4 * (min((i + 1) * size, b.numel) - min(i * size, b.numel)) for i, r in enumerate(owners)}
        for host in hosts:
            lead = host[place % local % len(host)]
            pushed = 4 * b.numel - share.get(lead, 0)
            sent[lead] += pushed + 4 * b.numel * (len(host) - 1)
            received[lead] += pushed + 4 * b.numel * (len(host) - 1)
            for r in set(host) - {lead}:
                sent[r] += 4 * b.numel
                received[r] += 4 * b.numel
            for r in set(servers) - {lead}:
                sent[r] += share.get(r, 0)
                received[r] += share.get(r, 0)
    placement = [r // local for r in range(n)]
    on = cluster(max(placement) + 1, placement=placement)
    for fold_ranks in (True, False):
        p = predict(schedule, model, on, fold_ranks=fold_ranks)
        assert p.sent_bytes.items() <= sent.items()
        assert p.received_bytes.items() <= received.items()
        assert p.iteration_s >= p.bound_s * (1 - 1e-9)


def test_hosts_that_add_up_first_push_once_each() -> None:
    """The bytes that a dedicated server receives are those of the hosts, not those of the workers."""
    model = toy(3)
    for local, hosts in ((None, 8), (2, 4), (4, 2), (8, 1)):
        p = predict(build("parameter_server", model, 9, local=local), model, cluster(9))
        assert p.received_bytes[8] == hosts * model.nbytes


def test_servers_beside_workers_are_on_as_many_hosts_as_can_be() -> None:
    schedule = build("parameter_server", toy(), 8, placement="colocated", servers=2, local=4)
    assert list(schedule.group("server")) == [0, 4]
    assert list(build("parameter_server", toy(), 8, placement="colocated", servers=2).group("server")) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], None),
        ([("sum.c2", " partial ", " reduce ")], "only an owner of bundle c2 may reduce it"),
        ([("sum.c2", " after=gather.c2", "")], "no transfer brings part(c2) before it is added up"),
        ([("gather.c2", " after=bwd.c2", "")], "grad(c2) needs the backward pass of c2"),
        ([("push.c2", "after=sum.c2", "after=gather.c2")], "sum(c2) is not there before it is used"),
        ([("push.c2", "lead.0->server", "lead.1->server"), ("push.c2", "sum.c2", "bwd.c2")], "sum(c2) is not there"),
        ([("push.c2", "sum(c2) lead.0", "grad(c2) lead.0")], "grad(c2) of rank 0 is sent twice"),
        ([("push.c2", "sum(c2) lead.0->server fan-in", "sum(c2) lead.0->lead.0 one-to-one")], "goes to owners"),
        (
            [("gather.c2", "worker->lead.0 blocked", "lead.0->lead.0 one-to-one")],
            "param(c2) would be overwritten while a pass may still read it (rank 1)",
        ),
        (
            [
                ("gather.c2", "worker->lead.0 blocked", "lead.0->lead.0 one-to-one"),
                ("spread.c2", "lead.0->worker blocked", "lead.0->lead.0 one-to-one"),
            ],
            "grad(c2) of rank 1 is not sent",
        ),
        (
            [("sum.c2", "sum.c2: ", "sum.c2: partial c2 @lead.0 lane=local after=gather.c2\nagain: ")],
            "added up there, once",
        ),
        (
            [
                (
                    "push.c2",
                    "push.c2: ",
                    "again: transfer sum(c2) lead.0->server fan-in nbytes=120 after=sum.c2\npush.c2: ",
                )
            ],
            "must go to the owners as a sum, once",
        ),
        ([("spread.c2", "lead.0->worker", "lead.1->worker"), ("spread.c2", "pull.c2", "bwd.c2")], "did not pull it"),
        ([("spread.c2", "blocked", "explicit pairs=0>3")], "rank 3 is sent copy(c2) by rank 0"),
    ],
)
def test_partial_sums_count_every_gradient_once(changes: list[tuple[str, str, str]], message: str | None) -> None:
    lines = build("parameter_server", toy(), 5, local=2).text().splitlines()
    for op, old, new in changes:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{op}: "))
        assert old in lines[at]
        lines[at] = lines[at].replace(old, new)
    text = "\n".join(lines)
    if message is None:
        check(parse(text), toy())
        return
    with pytest.raises(ScheduleError) as e:
        check(parse(text), toy())
    assert message in str(e.value)


# ---- who pulls, and when ---------------------------------------------------------------------------------------------


def test_each_worker_pulls_where_pulls_are_not_shared() -> None:
    model = toy()
    shared, each = (
        build("parameter_server", model, 9, servers=1, local=4, share_pulls=shares) for shares in (True, False)
    )
    for schedule, pullers in ((shared, 2), (each, 8)):
        check(schedule, model)
        pulls = [op for op in schedule.ops if isinstance(op, Transfer) and op.channel == "pull"]
        assert {len(schedule.group(op.dst)) for op in pulls} == {pullers}
        assert sum(op.nbytes for op in pulls) == model.nbytes
    assert any(op.name.startswith("spread.") for op in shared.ops)
    assert not any(op.name.startswith("spread.") for op in each.ops)


def test_pulls_by_step_wait_for_the_last_update_and_forward_passes_for_their_own() -> None:
    model = toy()
    schedule = build("parameter_server", model, 3, servers=1, pull="step")
    check(schedule, model)
    updates = {op.name for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.UPDATE}
    pulls = [op for op in schedule.ops if isinstance(op, Transfer) and op.channel == "pull"]
    assert pulls
    assert all(updates <= set(op.after) for op in pulls)
    forward = [op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.FORWARD]
    assert all(len(op.after_previous) <= 1 for op in forward)
    slow = cluster(3, nic=Nic(bandwidth_Bps=1e6))
    ready = build("parameter_server", model, 3, servers=1)
    times = [predict(s, model, slow, Costs()).iteration_s for s in (ready, schedule)]
    assert times[0] < times[1]


def test_pulls_are_shared_only_among_workers_of_a_host() -> None:
    with pytest.raises(InputError, match="share pulls only with local"):
        build("parameter_server", toy(), 4, share_pulls=False)
    with pytest.raises(ValidationError, match="pull"):
        build("parameter_server", toy(), 4, pull="later")
