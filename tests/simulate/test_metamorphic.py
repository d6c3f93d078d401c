"""What a change of a scenario must do to its prediction, whatever it is: scaled, renamed, permuted, a part faster.

Times alone cannot be checked without a second simulator; how they change can. Where a faster part may make training
slower, and why, is in `test_anomalies.py`: what has no exception is stated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Host, Loopback, Nic, Placement, TokenBucket, Traffic, Transport, load_cluster
from stanza_sim.cluster.faster import with_slower_network
from stanza_sim.cluster.hardware import Losses
from stanza_sim.cluster.wiring import LinkDirection, Wiring
from stanza_sim.model import zoo
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Algorithm, Carrier, Collective, CollectiveKind, Ranks, Schedule, Transfer, Wire
from stanza_sim.schedule.wires import Wires, with_wires
from stanza_sim.simulate import Prediction
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import FREE, Costs, block, build, predict

T = TypeVar("T")
EXAMPLES = settings().max_examples if settings().max_examples >= 1000 else 15
many = settings(max_examples=EXAMPLES, deadline=None)

CONV, FC = BlockKind.CONV, BlockKind.FC
MODEL = ModelProfile(
    name="even",
    blocks=(
        block("c1", CONV, [(600,)], 40, flops=500),
        block("pool", CONV, [], 20, flops=10),
        block("c2", CONV, [(1200,), (120,)], 24, flops=900),
        block("f1", FC, [(240, 24), (240,)], 240, flops=840),
        block("f2", FC, [(60, 240), (60,)], 60, flops=560),
    ),
    boundary=3,
    input_shape=(3, 2, 2),
    num_classes=60,
)
"""Whatever is cut into up to six slices is cut evenly, so that it does not matter who has which."""
COSTS = Costs(flops_s=1e-6, loss=2e-5, reduce_byte_s=3e-9, update_byte_s=5e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A cluster to be: a tree of switches, so that there is one way between any two hosts."""

    hosts: tuple[Host, ...]
    placement: tuple[Placement, ...]
    at: tuple[int, ...]  # the switch of each host
    trunks: Mapping[tuple[int, int], LinkDirection]
    switches: int

    def cluster(self, hosts: Sequence[int] | None = None, switches: Sequence[int] | None = None) -> Cluster:
        """The cluster, with hosts and switches (and so all links) in another order."""
        hosts, switches = hosts or range(len(self.hosts)), switches or range(self.switches)
        new = {s: i for i, s in enumerate(switches)}
        wiring = Wiring(switches=[f"s{s}" for s in switches])
        for i, h in enumerate(hosts):
            wiring.attach(i, 1, new[self.at[h]])
        for a, b in sorted(self.trunks, key=lambda pair: (new[pair[1]], new[pair[0]])):
            wiring.trunks[new[a], new[b]] = self.trunks[a, b]
        placed = [replace(p, host=list(hosts).index(p.host)) for p in self.placement]
        made = [self.hosts[h] for h in hosts]
        links, fabric = wiring.lay_out(made)
        return Cluster(
            name="tree",
            hosts=tuple(made),
            switches=tuple(wiring.switches),
            links=tuple(links),
            placement=tuple(placed),
            fabric=fabric,
            uses_nccl=False,
        )


SIZES = st.sampled_from([0.25, 1.0, 1.0, 3.0])


@st.composite
def nics(draw: st.DrawFn) -> Nic:
    rate = 1e6 * draw(SIZES)
    odd = draw(st.sampled_from(["", "", "bucket", "background", "transport"]))
    return Nic(
        bandwidth_Bps=rate,
        latency_s=draw(st.sampled_from([0.0, 5e-5, 4e-4])),
        overhead_s=draw(st.sampled_from([0.0, 3e-5])),
        bucket=TokenBucket(nbytes=2000.0, peak_Bps=4 * rate) if odd == "bucket" else None,
        background=Traffic(bandwidth_Bps=rate / 5) if odd == "background" else None,
        transport=Transport(stream_Bps=rate / 3, process_Bps=rate / 2, message_core_s=5e-5, byte_core_s=1e-7)
        if odd == "transport"
        else Transport(),
    )


@st.composite
def worlds(draw: st.DrawFn, ranks: int) -> World:
    count = draw(st.integers(1, ranks))
    on_cores = draw(st.booleans())
    kinds = draw(st.lists(nics(), min_size=1, max_size=2))
    placed = [*range(count), *(draw(st.integers(0, count - 1)) for _ in range(ranks - count))]
    hosts = tuple(
        Host(
            name=f"h{h}",
            cores=draw(st.integers(1, 3)),
            nic=draw(st.sampled_from(kinds)),
            devices=() if on_cores else ("gpu",) * placed.count(h),
            device_speed=draw(st.sampled_from([0.5, 1.0, 1.0])),
            loopback=draw(st.sampled_from([FREE, Loopback(bandwidth_Bps=5e6)])),
            losses=draw(st.sampled_from([Losses(), Losses(iteration_overhead_s=1e-4, collective_share=0.25)])),
        )
        for h in range(count)
    )
    used = [0] * count
    places = []
    for h in placed:
        places.append(Placement(host=h, device=None if on_cores else used[h]))
        used[h] += 1
    switches = draw(st.integers(1, 3))
    trunks = {}
    for s in range(1, switches):
        above = draw(st.integers(0, s - 1))
        trunks[s, above] = LinkDirection(bandwidth_Bps=1e6 * draw(SIZES), latency_s=2e-5)
        trunks[above, s] = LinkDirection(bandwidth_Bps=1e6 * draw(SIZES), latency_s=1e-5)
    at = tuple(draw(st.integers(0, switches - 1)) for _ in range(count))
    return World(hosts=hosts, placement=tuple(places), at=at, trunks=trunks, switches=switches)


def run(schedule: Schedule, on: Cluster, costs: Costs = COSTS, model: ModelProfile = MODEL) -> Prediction:
    return predict(schedule, model, on, costs, engine="plain")


def same(a: Prediction, b: Prediction, times: float = 1.0) -> None:
    """`b` is `a`, with times so many times as long."""
    for name in ("iteration_s", "bound_s", "exposed_comm_s", "idle_s"):
        assert getattr(b, name) == pytest.approx(times * getattr(a, name), rel=1e-6, abs=1e-9 * times), name
    assert sum(b.sent_bytes.values()) == sum(a.sent_bytes.values())


# ---- everything so many times as slow ------------------------------------------------------------------------------


def slower(on: Cluster, times: float) -> Cluster:
    """All times of the cluster multiplied, all rates divided; computations are slowed down by their costs."""

    def traffic(one: Traffic | None) -> Traffic | None:
        return None if one is None else replace(one, bandwidth_Bps=one.bandwidth_Bps / times)

    on = with_slower_network(on, times)
    return replace(
        on,
        links=tuple(replace(link, background=traffic(link.background)) for link in on.links),
        hosts=tuple(
            replace(
                host,
                nic=replace(host.nic, background=traffic(host.nic.background)),
                losses=replace(host.losses, iteration_overhead_s=host.losses.iteration_overhead_s * times),
            )
            for host in on.hosts
        ),
    )


@many
@given(data=st.data(), times=st.sampled_from([1e-6, 0.3, 7.0, 1e3]))
def test_everything_slower_takes_as_much_longer(data: st.DataObject, times: float) -> None:
    schedule = data.draw(legal_schedules(MODEL))
    on = data.draw(worlds(schedule.world_size)).cluster()
    same(run(schedule, on), run(schedule, slower(on, times), COSTS.at_speed(1 / times)), times)


@pytest.mark.parametrize(
    ("settings", "cores"),
    [({"fc_workers": 2}, 4), ({"microbatches": 2}, 2), ({"microbatches": 2}, 4)],
)
def test_a_laptop_twice_as_fast_takes_half_as_long(settings: dict[str, object], cores: int) -> None:
    """Messages, additions and computations share its cores. A weight of so many bytes/s put this 2% off."""
    model = zoo.get("alexnet")
    on = load_cluster("laptop", nodes=6)
    on = replace(on, hosts=tuple(replace(host, cores=cores) for host in on.hosts))
    costs = Costs(flops_s=1e-11, loss=1e-4, reduce_byte_s=2e-10, update_byte_s=5e-10)
    schedule = build("stanza", model, 6, **settings)
    same(run(schedule, on, costs, model), run(schedule, slower(on, 0.5), costs.at_speed(2.0), model), 0.5)


# ---- other names ---------------------------------------------------------------------------------------------------


def named(thing: T, names: Mapping[str, str]) -> T:
    """`thing` with other names wherever `names` has one, also before `.recv` and `.sent`."""

    def new(value: Any) -> Any:
        if isinstance(value, Enum):
            return value
        if isinstance(value, str):
            stem, dot, end = value.rpartition(".")
            if value in names or end not in ("recv", "sent"):
                return names.get(value, value)
            return f"{names.get(stem, stem)}{dot}{end}"
        if isinstance(value, tuple):
            return tuple(map(new, value))
        if isinstance(value, Ranks) or not is_dataclass(value) or isinstance(value, type):
            return value
        changed = {f.name: new(getattr(value, f.name)) for f in fields(value) if f.init}
        return replace(value, **changed)

    found: T = new(thing)
    return found


@many
@given(data=st.data(), salt=st.integers(0, 3))
def test_names_mean_nothing(data: st.DataObject, salt: int) -> None:
    """Nor does their order in the alphabet. (MXNet and BytePS choose servers by hashes of names.)"""
    schedule = data.draw(legal_schedules(MODEL))
    on = data.draw(worlds(schedule.world_size)).cluster()
    known = {MODEL.name, *(b.name for b in MODEL.blocks), *(t.name for b in MODEL.blocks for t in b.tensors)}
    known |= {x.name for x in (*schedule.groups, *schedule.bundles, *schedule.ops)}
    known |= {*(host.name for host in on.hosts), *on.switches}
    names = {name: f"n{sha256(f'{salt}{name}'.encode()).hexdigest()[:10]}" for name in sorted(known)}
    found = run(named(schedule, names), replace(named(on, names), name=on.name), model=named(MODEL, names))
    same(run(schedule, on), found)


# ---- another order -------------------------------------------------------------------------------------------------


@many
@given(data=st.data())
def test_the_order_of_hosts_and_links_means_nothing(data: st.DataObject) -> None:
    """Where each rank is stays what it is. (Of several shortest ways the first is taken: here there is one.)"""
    schedule = data.draw(legal_schedules(MODEL))
    world = data.draw(worlds(schedule.world_size))
    hosts = data.draw(st.permutations(range(len(world.hosts))))
    switches = data.draw(st.permutations(range(world.switches)))
    same(run(schedule, world.cluster()), run(schedule, world.cluster(hosts, switches)))


@many
@given(data=st.data())
def test_ranks_that_are_alike_are_interchangeable(data: st.DataObject) -> None:
    """On hosts that are alike, any rank may play any part.

    (Collectives by steps have an order of their own. A broadcast goes along a chain, whose last rank sends nothing: so
    with one, all ranks move on by so many.)
    """
    schedule = data.draw(legal_schedules(MODEL))
    n = schedule.world_size
    nic = data.draw(nics())
    host = Host(name="h", cores=2, nic=nic, devices=("gpu",))
    alike = World(
        hosts=tuple(replace(host, name=f"h{h}") for h in range(n)),
        placement=tuple(Placement(host=h, device=0) for h in range(n)),
        at=(0,) * n,
        trunks={},
        switches=1,
    ).cluster()
    part = data.draw(st.permutations(range(n)))
    if any(isinstance(op, Collective) and op.kind is CollectiveKind.BROADCAST for op in schedule.ops):
        part = [(rank + part[0]) % n for rank in range(n)]

    def by_backend(s: Schedule) -> Schedule:
        how = {"algorithm": Algorithm.RING, "by": Carrier.BACKEND, "local": 0}
        return replace(s, ops=tuple(replace(op, **how) if isinstance(op, Collective) else op for op in s.ops))

    def played(s: Schedule) -> Schedule:
        groups = tuple(replace(g, ranks=Ranks.of([part[r] for r in g.ranks])) for g in s.groups)
        ops = tuple(
            replace(op, root=part[op.root]) if isinstance(op, Collective) and op.root is not None else op
            for op in s.ops
        )
        return replace(s, groups=groups, ops=ops)

    schedule = by_backend(schedule)
    same(run(schedule, alike), run(played(schedule), alike))


# ---- a part faster, or more to move --------------------------------------------------------------------------------


def faster_parts(world: World) -> list[tuple[str, Callable[[float], World]]]:
    """Each part of a world with what makes it faster: by so many times its rate, or its times divided."""

    def host(h: int, change: Callable[[Host, float], Host]) -> Callable[[float], World]:
        def made(times: float) -> World:
            hosts = tuple(change(one, times) if i == h else one for i, one in enumerate(world.hosts))
            return replace(world, hosts=hosts)

        return made

    def trunk(pair: tuple[int, int]) -> Callable[[float], World]:
        def made(times: float) -> World:
            line = world.trunks[pair]
            wider = replace(line, bandwidth_Bps=times * line.bandwidth_Bps)
            return replace(world, trunks={**world.trunks, pair: wider})

        return made

    def nic(**of: Callable[[float, float], float]) -> Callable[[Host, float], Host]:
        def changed(one: Host, times: float) -> Host:
            return replace(one, nic=replace(one.nic, **{k: f(getattr(one.nic, k), times) for k, f in of.items()}))

        return changed

    found: list[tuple[str, Callable[[float], World]]] = []
    for h in range(len(world.hosts)):
        found += [
            (f"device of h{h}", host(h, lambda one, times: replace(one, device_speed=times * one.device_speed))),
            (f"rate of h{h}", host(h, nic(bandwidth_Bps=lambda v, t: v * t))),
            (f"latency of h{h}", host(h, nic(latency_s=lambda v, t: v / t))),
            (f"overhead of h{h}", host(h, nic(overhead_s=lambda v, t: v / t))),
        ]
    return found + [(f"trunk {pair}", trunk(pair)) for pair in world.trunks]


def without_sharing(world: World) -> World:
    """Each rank alone on its device, messages without work of cores, bursts and other traffic."""
    hosts = tuple(
        replace(
            host,
            devices=("gpu",) * max(1, sum(p.host == h for p in world.placement)),
            nic=replace(host.nic, transport=Transport(), bucket=None, background=None),
            loopback=FREE,
            losses=Losses(),
        )
        for h, host in enumerate(world.hosts)
    )
    used = [0] * len(hosts)
    places = []
    for p in world.placement:
        places.append(Placement(host=p.host, device=used[p.host]))
        used[p.host] += 1
    return replace(world, hosts=hosts, placement=tuple(places))


@many
@given(data=st.data(), ranks=st.integers(1, 5), times=st.sampled_from([1.01, 2.0, 50.0]), overlap=st.booleans())
def test_where_nothing_competes_a_faster_part_is_never_slower(
    data: st.DataObject, ranks: int, times: float, overlap: bool
) -> None:
    """Of all-reduces one moves at a time, and a lane computes in program order: when each begins is a sum of times and
    a maximum of such, which grows with every one of them."""
    schedule = build("all_reduce", MODEL, ranks, overlap=overlap, first_bucket="4kB", bucket="10kB")
    world = without_sharing(data.draw(worlds(ranks)))
    what, faster = data.draw(st.sampled_from(faster_parts(world)))
    before, after = run(schedule, world.cluster()), run(schedule, faster(times).cluster())
    assert after.iteration_s <= before.iteration_s * (1 + 1e-9), what
    assert after.bound_s <= before.bound_s * (1 + 1e-9), what


@many
@given(data=st.data(), times=st.sampled_from([1.01, 2.0, 50.0]))
def test_no_bound_grows_with_a_faster_part(data: st.DataObject, times: float) -> None:
    """Whatever messages compete for: no order of the same work on the faster parts takes longer at least."""
    schedule = data.draw(legal_schedules(MODEL))
    world = data.draw(worlds(schedule.world_size))
    what, faster = data.draw(st.sampled_from(faster_parts(world)))
    before, after = run(schedule, world.cluster()), run(schedule, faster(times).cluster())
    assert after.bound_s <= before.bound_s * (1 + 1e-9), what
    assert after.iteration_s >= after.bound_s * (1 - 1e-9), what


@many
@given(data=st.data(), wire=st.sampled_from([Wire.BF16, Wire.FP16]))
def test_more_bytes_are_never_faster(data: st.DataObject, wire: Wire) -> None:
    """Nowhere by the bound; by the prediction where nothing competes."""
    schedule = data.draw(legal_schedules(MODEL, rounded=False))
    world = data.draw(worlds(schedule.world_size))
    few = with_wires(schedule, MODEL, Wires(activations=wire, gradients=wire))
    assert sum(op.nbytes for op in few.ops if isinstance(op, (Transfer, Collective))) < sum(
        op.nbytes for op in schedule.ops if isinstance(op, (Transfer, Collective))
    )
    on = world.cluster()
    assert run(few, on).bound_s <= run(schedule, on).bound_s * (1 + 1e-9)
    alone = without_sharing(world).cluster()
    reduced = build("all_reduce", MODEL, schedule.world_size, first_bucket="4kB", bucket="10kB")
    halved = with_wires(reduced, MODEL, Wires(activations=wire, gradients=wire))
    assert run(halved, alone).iteration_s <= run(reduced, alone).iteration_s * (1 + 1e-9)
