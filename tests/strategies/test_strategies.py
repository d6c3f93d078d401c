"""Every strategy with every setting: legal, of the right size, and refused where it cannot be."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from stanza_sim import strategies
from stanza_sim.base.errors import InputError
from stanza_sim.model import zoo
from stanza_sim.model.profile import ModelProfile, with_boundary
from stanza_sim.schedule import Collective, Compute, Phase, Schedule, Transfer, check, from_json, parse
from tests.schedule.toys import build, toy
from tests.strategies._shared.test_model_parallel import SLICED
from tests.strategies.test_stanza import EXCHANGES, PIPELINES, PLACES

MIB = 1024 * 1024

SETTINGS: dict[str, dict[str, list[object]]] = {
    "parameter_server": {
        "servers": [None, 1, 2, 3],
        "placement": ["dedicated", "colocated"],
        "assignment": ["balanced", "cut", "mxnet", "byteps", "sliced"],
        "overlap": [True, False],
    },
    "all_reduce": {
        "overlap": [True, False],
        "first_bucket": ["1B", "1MiB"],
        "bucket": ["100B", "25MiB"],
        "algorithm": ["backend", "auto", "ring", "halving_doubling", "tree"],
        "fusion": ["ddp"],  # see test_all_reduce.py
    },
    "stanza": {
        "fc_workers": [1, 2, 3],
        "conv_exchange": ["all_reduce", "parameter_server"],
        "overlap": [True, False],
        "bucket": ["100B", "25MiB"],
    },
    "local": {},
    "fsdp": {"stage": [1, 2, 3], "overlap": [True, False], "unit_blocks": [None, 2]},
    "sharded_head": {"fc_compute": ["turns", "batch"], "overlap": [True, False], "bucket": ["100B", "25MiB"]},
    "pipeline": {"order": ["1f1b", "gpipe"], "checkpoint": ["none", "stage", "block"], "overlap": [True, False]},
    "sufficient_factors": {
        "fc_exchange": ["auto", "factors", "parameter_server"],
        "conv_exchange": ["parameter_server", "all_reduce"],
        "reconstruct": ["beside", "behind"],
    },
}
ELSEWHERE = {
    "stanza": set().union(*EXCHANGES, *PIPELINES, *(p for _, p in PLACES), {"cut", "fc_parallel", "on"}),
    "parameter_server": {"bigarray_bound", "partition", "slice", "credit", "share_pulls", "pull", "on"},
    "sharded_head": set().union(*(s for name, _, s in SLICED if name == "sharded_head")),
    "fsdp": {"unit_size", "unit_starts", "prefetch", "reshard_after_forward"},
    "pipeline": {"stages", "cuts", "microbatches", "activations", "balance"},
}
"""Settings that tests of a strategy's own try."""
CASES = [
    (name, dict(zip(choices, combination, strict=True)))
    for name, choices in SETTINGS.items()
    for combination in product(*choices.values())
]


def _fits(name: str, settings: dict[str, object], world_size: int, features: int = 7) -> bool:
    if name == "stanza":
        return world_size >= 2 * int(str(settings["fc_workers"]))
    if name == "sharded_head":
        return world_size <= features  # on the side on which the smallest layer is cut
    if name == "parameter_server":
        servers = settings["servers"]
        if settings["placement"] == "colocated":
            return servers is None or int(str(servers)) <= world_size
        return world_size > int(str(servers or 1))
    return True


def test_every_setting_is_tried() -> None:
    assert set(strategies.names()) == set(SETTINGS)
    for name, choices in SETTINGS.items():
        untried = set(strategies.get(name).Settings.model_fields) - set(choices) - ELSEWHERE.get(name, set())
        assert untried <= {"first_bucket", "bucket", "buffer", "algorithm", "fc_algorithm", "start", "local", "chunk"}


@pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_legal_wherever_it_fits(name: str, settings: dict[str, object]) -> None:
    fitted = 0
    for world_size in (1, 2, 3, 4, 5, 7, 10):
        if not _fits(name, settings, world_size):
            with pytest.raises(InputError) as e:
                build(name, toy(), world_size, **settings)
            assert e.value.hint
            continue
        schedule = build(name, toy(), world_size, **settings)
        check(schedule, toy())
        assert schedule.world_size == world_size
        assert schedule.name == name
        fitted += 1
    assert fitted


@pytest.mark.parametrize("model", (*zoo.names(), "gpt2"))
@pytest.mark.parametrize("name", SETTINGS)
def test_legal_on_the_zoo(name: str, model: str) -> None:
    profile = zoo.get(model)
    if name in ("stanza", "sharded_head") and profile.users:
        settings = next(s for n, s in CASES if n == name and _fits(n, s, 6, features=1000))
        with pytest.raises(InputError, match=r"a cut at \w+ separates the blocks .* which share"):
            build(name, profile, 6, batch=32, **settings)
        return
    for some, settings in CASES:
        if some == name and settings.get("overlap") and settings.get("bucket") != "100B":
            if not _fits(name, settings, 6, features=1000):
                continue
            if settings.get("assignment") in ("mxnet", "byteps", "sliced"):
                if settings["servers"] != 3:
                    continue  # of many bundles, one number of servers is enough
                if settings["assignment"] == "sliced":
                    settings = {**settings, "slice": 1_000_000}
            if profile.users and name in ("stanza", "sharded_head"):
                with pytest.raises(InputError, match="which share") as e:  # gpt2's ends are one table
                    build(name, profile, 6, batch=32, **settings)
                assert e.value.hint
                continue
            schedule = build(name, profile, 6, batch=32, **settings)
            check(schedule, profile)
            if model != "vgg16":
                continue
            assert parse(schedule.text()) == schedule
            assert from_json(schedule.to_json()) == schedule


def _bundled(schedule: Schedule) -> tuple[list[str], int]:
    """Tensors that are in bundles, and how many elements bundles have."""
    return sorted({t for b in schedule.bundles for t in b.tensors}), sum(b.numel for b in schedule.bundles)


@pytest.mark.parametrize("model", ["alexnet", "resnet50"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_tensor_is_in_one_bundle_and_is_updated_once(name: str, model: str) -> None:
    profile = zoo.get(model)
    for some, settings in CASES:
        if some != name or not _fits(name, settings, 6, features=1000) or settings.get("bucket") == "100B":
            continue
        schedule = build(name, profile, 6, **settings)
        assert _bundled(schedule) == (sorted(t.name for b in profile.blocks for t in b.tensors), profile.numel)
        updated = [o.target for o in schedule.ops if isinstance(o, Compute) and o.phase is Phase.UPDATE]
        assert sorted(updated) == sorted(b.name for b in schedule.bundles)


def test_every_forward_pass_waits_for_what_renews_its_parameters() -> None:
    for name, settings in CASES:
        if not _fits(name, settings, 6):
            continue
        schedule = build(name, toy(), 6, **settings)
        for op in schedule.ops:
            if isinstance(op, Compute) and op.phase is Phase.FORWARD:
                block = toy().block(op.target)
                assert bool(op.after_previous) or not block.tensors
                renewed = {t.name for t in block.tensors}
                for previous in op.after_previous:
                    source = schedule.op(previous)
                    value = source.values[0] if isinstance(source, Transfer) else getattr(source, "value", None)
                    bundle = value.name if value is not None else getattr(source, "target", "")
                    renewed -= set(schedule.bundle(bundle).tensors)
                assert not renewed, (name, settings, op.name)


@pytest.mark.parametrize(
    ("model", "mib"),
    [("alexnet", [15.6, 64, 144, 9.4]), ("vgg16", [15.6, 64, 392, 27, 27, 2.1])],
)
def test_buckets_are_those_of_ddp(model: str, mib: list[float]) -> None:
    """Sizes from torch's own rule, in launch order."""
    profile = zoo.get(model)
    schedule = build("all_reduce", profile, 4)
    reduced = [o for o in schedule.ops if isinstance(o, Collective)]
    assert [o.value.name for o in reduced] == [f"bucket{i}" for i in range(len(mib))]
    assert [o.nbytes / MIB for o in reduced] == pytest.approx(mib, rel=0.02)
    assert sum(o.nbytes for o in reduced) == profile.nbytes


def test_buckets_close_once_they_hold_their_limit() -> None:
    schedule = build("all_reduce", toy(), 4, first_bucket="17B", bucket="220B")
    # In reverse: f2.t1 16 B, f2.t0 112 B | f1.t1 28 B, f1.t0 168 B, c2.t1 20 B, c2.t0 100 B | ...
    # 28 + 168 + 20 = 216 B is not yet 220 B, so c2.t0 joins.
    assert [b.tensors for b in schedule.bundles] == [
        ("f2.t0", "f2.t1"),
        ("c2.t0", "c2.t1", "f1.t0", "f1.t1"),
        ("c1.t0", "c1.t1"),
    ]


def test_balanced_servers() -> None:
    schedule = build("parameter_server", zoo.get("vgg16"), 6, servers=2)
    load = {3: 0, 4: 0, 5: 0}
    for b in schedule.bundles:
        (owner,) = schedule.owners(b)
        load[owner] += b.numel
    assert load[3] == 0
    # classifier.0's weight alone is 74% of the model: it has a server to itself.
    assert load[4] == 512 * 7 * 7 * 4096
    assert load[4] + load[5] == zoo.get("vgg16").numel


def test_bytes_on_the_wire() -> None:
    profile, n = zoo.get("alexnet"), 6

    def sent(name: str, **settings: object) -> list[int]:
        s = build(name, profile, n, batch=128, **settings)
        total = [0] * n
        for op in s.ops:
            if isinstance(op, Transfer):
                for a, b in s.pairs(op):
                    total[a] += s.message_bytes(op, a, b)
        return total

    size = profile.nbytes
    assert sent("parameter_server") == [size] * 5 + [5 * size]
    spread = sent("parameter_server", placement="colocated", assignment="cut")
    assert spread == pytest.approx([2 * (n - 1) / n * size] * n, rel=1e-3)
    boundary = profile.conv_blocks[-1].output_numel
    act, actgrad = 128 * (boundary * 4 + 8), 128 * boundary * 4
    assert sent("stanza") == [act] * 5 + [5 * actgrad]
    assert sent("stanza", fc_workers=2) == [act] * 4 + [2 * actgrad] * 2


@pytest.mark.parametrize(
    ("name", "world_size", "settings", "message"),
    [
        ("parameter_server", 4, {"servers": 4}, "4 dedicated servers leave 0 workers of 4 nodes"),
        ("parameter_server", 4, {"servers": 9}, "9 dedicated servers leave 0 workers of 4 nodes"),
        ("parameter_server", 1, {}, "1 dedicated servers leave 0 workers of 1 nodes"),
        ("parameter_server", 4, {"servers": 5, "placement": "colocated"}, "5 colocated servers leave 4 workers"),
        ("stanza", 4, {"fc_workers": 3}, "3 FC workers of 4 nodes leave 1 CONV workers"),
        ("stanza", 4, {"fc_workers": 7}, "7 FC workers of 4 nodes leave 0 CONV workers"),
        ("stanza", 1, {}, "1 FC workers of 1 nodes leave 0 CONV workers"),
    ],
)
def test_too_many_servers_or_fc_workers(name: str, world_size: int, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as e:
        build(name, toy(), world_size, **settings)
    assert message in str(e.value)
    assert e.value.hint
    assert name in str(e.value)


@pytest.mark.parametrize(("boundary", "part"), [(5, "FC"), (0, "CONV")])
def test_layers_that_cannot_be_separated(boundary: int, part: str) -> None:
    model: ModelProfile = with_boundary(toy(), boundary)
    with pytest.raises(InputError, match=f"model toy has no {part} part"):
        build("stanza", model, 4)
    check(build("parameter_server", model, 4), model)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("parameter_server", {"servers": 0}),
        ("parameter_server", {"placement": "nowhere"}),
        ("all_reduce", {"bucket": "0B"}),
        ("all_reduce", {"bucket": 3}),
        ("all_reduce", {"buckets": "3MB"}),
        ("stanza", {"fc_workers": -1}),
    ],
)
def test_wrong_settings(name: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        strategies.get(name).Settings.model_validate(settings)


def test_no_such_strategy() -> None:
    with pytest.raises(InputError, match="there is no strategy 'builder'") as e:
        strategies.get("builder")
    assert "all_reduce, fsdp, local, parameter_server, pipeline, sharded_head, stanza" in str(e.value)


def test_a_file_that_is_dropped_in_is_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(strategies.__file__).with_name("all_reduce.py").read_text()
    (tmp_path / "dropped_in.py").write_text(source.replace('Builder("all_reduce"', 'Builder("dropped_in"'))
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    assert "dropped_in" in strategies.names()
    schedule = build("dropped_in", toy(), 3, overlap=False)
    check(schedule, toy())
    assert schedule.name == "dropped_in"
    monkeypatch.delitem(sys.modules, "stanza_sim.strategies.dropped_in")


def _how(schedule: Schedule) -> dict[str, set[tuple[str, str, int, int]]]:
    """By group: algorithm, carrier, local and chunk of its collectives."""
    found: dict[str, set[tuple[str, str, int, int]]] = {}
    for op in schedule.ops:
        if isinstance(op, Collective):
            found.setdefault(op.ranks, set()).add((op.algorithm, op.by, op.local, op.chunk))
    return found


def test_algorithms_reach_the_collectives_that_they_are_for() -> None:
    half = 512 * 1024
    assert _how(build("all_reduce", toy(), 6)) == {"worker": {("ring", "backend", 0, half)}}
    assert _how(build("all_reduce", toy(), 6, algorithm="ring")) == {"worker": {("ring", "steps", 0, half)}}
    tree = build("all_reduce", toy(), 6, algorithm="tree", chunk="1kB")
    assert _how(tree) == {"worker": {("tree", "steps", 0, 1000)}}
    both = build("stanza", toy(), 6, fc_workers=2, algorithm="hierarchical", local=2, fc_algorithm="halving_doubling")
    assert _how(both) == {
        "conv_worker": {("hierarchical", "steps", 2, half)},
        "fc_worker": {("halving_doubling", "steps", 0, half)},
    }
    check(both, toy())
    assert parse(both.text()) == both == from_json(both.to_json())
    assert "algorithm=hierarchical by=steps local=2" in both.text()


def test_auto_goes_by_size_and_number_of_ranks() -> None:
    sizes = {"first_bucket": "17B", "bucket": "220B"}  # of 128, 424 and 1,480 bytes
    schedule = build("all_reduce", toy(10), 6, algorithm="auto", start="500B", **sizes)
    found = {o.nbytes: str(o.algorithm) for o in schedule.ops if isinstance(o, Collective)}
    # With s = 500 bytes: 10 s + 5/3 S by a ring, 6 s + 7/2 S by halving and doubling, 4 s + 8 S along a tree.
    assert {n: a for n, a in found.items() if n < 222} == {128: "tree"}
    assert {a for n, a in found.items() if 222 < n < 912} == {"halving_doubling"}
    assert {a for n, a in found.items() if n > 912} == {"ring"}
    assert _how(build("all_reduce", toy(10), 2, algorithm="auto", **sizes))["worker"] == {
        ("ring", "steps", 0, 512 * 1024)
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("all_reduce", {"algorithm": "hierarchical"}, "hierarchical needs local"),
        ("all_reduce", {"local": 2}, "local is for auto or hierarchical"),
        ("all_reduce", {"algorithm": "ring", "start": "1kB"}, "start is for auto"),
        ("all_reduce", {"algorithm": "auto", "chunk": "1kB"}, "chunk is for hierarchical or tree"),
        ("stanza", {"fc_algorithm": "tree"}, "fc_algorithm is for an all-reduce that does not take place"),
        ("stanza", {"conv_exchange": "parameter_server", "algorithm": "ring"}, "algorithm is for an all-reduce that"),
    ],
)
def test_settings_of_algorithms_that_would_be_ignored(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        build(name, toy(), 6, **settings)
    assert e.value.hint
    assert f"{name}: " in str(e.value)
