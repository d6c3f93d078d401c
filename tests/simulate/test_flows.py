"""Flow-level cases: reference answers, both solvers against an independent one, malformed input."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.simulate import flows as module
from stanza_sim.simulate import simulate_flows
from stanza_sim.simulate.flow_case import check_case

CASES = sorted((Path(__file__).parent / "network").glob("*.json"))


def load(name: str) -> dict[str, Any]:
    path = Path(__file__).parent / "network" / f"{name}.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "arrays"])
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_reference_cases(path: Path, compiled: bool) -> None:
    """The answers of SimGrid 4.1 (pure max-min), confirmed by a second solver, to 1e-9."""
    if compiled:
        pytest.importorskip("numba")
    case = json.loads(path.read_text())
    found = simulate_flows(case, engine="compiled" if compiled else "plain").completion_s
    expected = case["simgrid_completion_s"]
    assert found.keys() == expected.keys()
    for flow, seconds in expected.items():
        assert found[flow] == pytest.approx(seconds, rel=1e-9, abs=1e-15), flow


def brute_force(case: dict[str, Any]) -> dict[str, float]:
    """Progressive filling written anew, all rates from scratch at every event: slow and plain."""
    capacity = {x["name"]: x["bandwidth"] for x in case["links"]}
    latency = {x["name"]: x.get("latency", 0.0) for x in case["links"]}
    routes = {(r["src"], r["dst"]): r["links"] for r in case["routes"]}
    flows = {f["id"]: f for f in case["flows"]}
    own = {k: [] if f["src"] == f["dst"] else routes[f["src"], f["dst"]] for k, f in flows.items()}
    done: dict[str, float] = {}
    begin: dict[str, float] = {}
    left: dict[str, float] = {}
    now = 0.0
    while len(done) < len(flows):
        for k, f in flows.items():
            if k not in begin and all(d in done for d in f.get("deps", [])):
                release = max([f.get("start", 0.0), *(done[d] for d in f.get("deps", []))]) + f.get("delay", 0.0)
                begin[k] = release + sum(latency[q] for q in own[k])
        changed = False
        for k, t in begin.items():
            if k not in done and k not in left and t <= now * (1 + 1e-12):
                if flows[k]["bytes"] == 0 or not own[k]:
                    done[k], changed = t, True
                else:
                    left[k] = float(flows[k]["bytes"])
        if changed:
            continue
        rates: dict[str, float] = {}
        room, open_ = dict(capacity), set(left)
        while open_:
            users = {q: [k for k in open_ if q in own[k]] for q in room}
            q = min((q for q in users if users[q]), key=lambda q: room[q] / len(users[q]))
            share = room[q] / len(users[q])
            for k in users[q]:
                rates[k] = share
                open_.discard(k)
                for r in own[k]:
                    room[r] = max(0.0, room[r] - share)
        for k in rates:  # conservation, and each flow has a full link on which no other is faster
            held = False
            for q in own[k]:
                on = [rates[j] for j in rates if q in own[j]]
                assert sum(on) <= capacity[q] * (1 + 1e-9)
                held |= sum(on) >= capacity[q] * (1 - 1e-9) and rates[k] >= max(on) * (1 - 1e-9)
            assert held
        ends = {k: now + left[k] / rates[k] for k in rates}
        nxt = min([*ends.values(), *(t for k, t in begin.items() if k not in done and k not in left)])
        for k in list(left):
            left[k] -= rates[k] * (nxt - now)
            if ends[k] <= nxt * (1 + 1e-12):
                done[k] = nxt
                del left[k]
        now = nxt
    return done


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(2, 5))
    rate = st.sampled_from([1e6, 2e6, 3e6, 7.5e6, 1e7])
    hosts = [f"h{i}" for i in range(n)]
    links = [
        {"name": f"{h}.{side}", "bandwidth": draw(rate), "latency": draw(st.sampled_from([0.0, 1e-6, 1e-3]))}
        for h in hosts
        for side in ("up", "down")
    ]
    links += [{"name": f"core{i}", "bandwidth": draw(rate), "latency": 0.0} for i in range(2)]
    routes = []
    for a in hosts:
        for b in hosts:
            if a != b:
                middle = draw(st.sampled_from([[], ["core0"], ["core1"], ["core0", "core1"]]))
                routes.append({"src": a, "dst": b, "links": [f"{a}.up", *middle, f"{b}.down"]})
    flows: list[dict[str, Any]] = []
    for k in range(draw(st.integers(1, 12))):
        flow: dict[str, Any] = {
            "id": f"f{k}",
            "src": draw(st.sampled_from(hosts)),
            "dst": draw(st.sampled_from(hosts)),
            "bytes": draw(st.sampled_from([0, 1, 1000, 10**6, 10**6, 3 * 10**6])),
        }
        if draw(st.booleans()):
            flow["start"] = draw(st.sampled_from([0.0, 0.1, 0.25, 1.0]))
        if draw(st.booleans()):
            flow["delay"] = draw(st.sampled_from([0.0, 0.05]))
        if flows and draw(st.booleans()):
            flow["deps"] = draw(st.lists(st.sampled_from([f["id"] for f in flows]), unique=True, max_size=3))
        flows.append(flow)
    return {"hosts": hosts, "links": links, "routes": routes, "flows": flows}


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_brute_force(case: dict[str, Any]) -> None:
    expected = brute_force(case)
    found = simulate_flows(case)
    for flow, seconds in expected.items():
        assert found.completion_s[flow] == pytest.approx(seconds, rel=1e-9, abs=1e-12)
    assert all(0 <= u <= 1 + 1e-9 for u in found.utilisation.values())
    assert found.makespan_s == max(found.completion_s.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_arrays_equal_plain(case: dict[str, Any]) -> None:
    pytest.importorskip("numba")
    checked = check_case(case)
    (plain, plain_limit), (arrays, arrays_limit) = module._run(checked), module._run_compiled(checked)
    assert arrays == pytest.approx(plain, rel=1e-12, abs=1e-15)
    assert [x < 0 for x in arrays_limit] == [x < 0 for x in plain_limit]


def test_bottleneck_and_utilisation() -> None:
    found = simulate_flows(load("a_incast_n2_equal"))
    assert found.bottleneck["push0"] == "server_down"
    assert found.bottleneck["pull1"] == "server_up"
    assert found.utilisation["server_down"] == pytest.approx(0.04 / 0.080004)


def test_optional_keys_and_extra_keys() -> None:
    case = {
        "hosts": ["a", "b"],
        "links": [{"name": "l", "bandwidth": 1e6}],
        "routes": [{"src": "a", "dst": "b", "links": ["l"]}],
        "flows": [{"id": "x", "src": "a", "dst": "b", "bytes": 10**6}, {"id": "y", "src": "a", "dst": "a", "bytes": 5}],
        "comment": "ignored",
    }
    assert simulate_flows(case).completion_s == {"x": 1.0, "y": 0.0}
    assert simulate_flows({**case, "flows": []}).completion_s == {}


def broken(change: str) -> dict[str, Any]:
    case = load("a_incast_n2_equal")
    link, route, flow = case["links"][0], case["routes"][0], case["flows"][0]
    match change:
        case "unknown link":
            route["links"][0] = "nowhere"
        case "does not connect":
            route["links"][0] = "w1_up"
        case "no links":
            route["links"] = []
        case "negative bytes":
            flow["bytes"] = -1
        case "circle":
            flow["deps"] = ["pull0"]
        case "self":
            flow["deps"] = ["push0"]
        case "zero bandwidth":
            link["bandwidth"] = 0
        case "infinite":
            link["bandwidth"] = math.inf
        case "not a number":
            flow["start"] = math.nan
        case "disconnected":
            case["routes"] = case["routes"][1:]
        case "unknown host":
            flow["dst"] = "nobody"
        case "unknown dependency":
            flow["deps"] = ["nothing"]
        case "twice":
            case["flows"].append(dict(flow))
        case "missing":
            del case["links"]
        case "text":
            flow["bytes"] = "many"
        case "bool":
            flow["bytes"] = True
        case "misspelt":
            flow["dependencies"] = []
    return case


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("unknown link", "nowhere"),
        ("does not connect", "does not connect"),
        ("no links", "no links"),
        ("negative bytes", "greater than or equal to 0"),
        ("circle", "circle"),
        ("self", "circle"),
        ("zero bandwidth", "greater than 0"),
        ("infinite", "finite"),
        ("not a number", "finite|greater"),
        ("disconnected", "no route connects"),
        ("unknown host", "nobody"),
        ("unknown dependency", "nothing"),
        ("twice", "twice"),
        ("missing", "(?i)required"),
        ("text", "number"),
        ("bool", "number"),
        ("misspelt", "(?i)extra"),
    ],
)
def test_malformed(change: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        simulate_flows(broken(change))


_ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_cases_never_crash(data: st.DataObject) -> None:
    """Whatever is replaced, removed or doubled, the answer is a result or an `InputError`."""
    case = copy.deepcopy(load("g_multi_bottleneck_zero_latency"))
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = case
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
                at = at[key]
                continue
            match data.draw(st.sampled_from(["replace", "remove", "double"])):
                case "replace":
                    at[key] = data.draw(_ATOMS)
                case "remove":
                    del at[key]
                case "double" if isinstance(at, list):
                    at.append(copy.deepcopy(at[key]))
            break
    try:
        found = simulate_flows(case)
    except InputError:
        return
    assert all(math.isfinite(t) and t >= 0 for t in found.completion_s.values())
