"""What sets the time of an iteration: the critical path says on what it is spent, and what-ifs what would help.

Each what-if is a simulation. Places that are alike (links of one rate, NICs and hosts of one kind with the same roles)
are made faster together, and named by the busiest. Of links both directions are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import inf

from stanza_sim.cluster.hardware import LinkKind, kinds_of
from stanza_sim.experiment.scenario import MOST_EVENTS, Scenario
from stanza_sim.experiment.what_if import Change
from stanza_sim.report.compare import op_kind
from stanza_sim.report.explanation import Cause, Effect, Explanation, What
from stanza_sim.schedule import Compute, Schedule
from stanza_sim.simulate import Prediction
from stanza_sim.timeline.critical_path import CriticalPath, StepKind

REPEATS = 5
"""What varies by chance is simulated so often, always with the same draws."""
MOST_PLACES = 4
"""So many kinds of links are made faster, the busiest, and of hosts, those that are longest on the path."""
LEAST_BUSY = 0.05
"""Links that are less busy are left as they are."""
TOLD = 0.1
"""Where neither free computation nor an infinitely fast network saves so much, they hide each other."""
MOST_OF_IT = 0.5
"""A place is the cause where it, twice as fast, saves this share of what is saved with all like it twice as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Links or hosts that are alike, by index, and what they are called."""

    name: str
    members: tuple[int, ...]


def explain(scenario: Scenario, prediction: Prediction, path: CriticalPath) -> Explanation:
    """Explain a prediction of `scenario` by its critical path, and by some dozen simulations unless it is too large."""
    schedule = scenario.schedule
    shares = _shares(schedule, path)
    count = 1 if prediction.repeats is None else prediction.repeats.count
    if prediction.events > MOST_EVENTS * count:
        return Explanation(iteration_s=prediction.iteration_s, path=shares)
    predicted_s = prediction.iteration_s
    if scenario.by_chance:
        scenario = replace(scenario, repeats=REPEATS)
        predicted_s = scenario.predict().iteration_s
    if predicted_s <= 0:
        return Explanation(iteration_s=predicted_s, path=shares, cause=Cause.NOTHING)
    effects: list[Effect] = []

    def saved(what: What, times: float, change: Change, place: str = "") -> float:
        effect = Effect(what=what, times=times, iteration_s=_again(change.of(scenario)), place=place)
        effects.append(effect)
        return 1 - effect.iteration_s / predicted_s

    computing = saved(What.COMPUTE, inf, Change(compute=inf))
    sending = saved(What.NETWORK, inf, Change(network=inf, latency=inf))
    cause, place = Cause.BALANCE, ""
    if max(computing, sending) >= TOLD:
        if computing > sending:
            cause, place = _in_computing(scenario, path, saved)
        else:
            cause, place = _in_network(scenario, prediction, saved)
    return Explanation(iteration_s=predicted_s, path=shares, cause=cause, place=place, effects=tuple(effects))


_Saved = Callable[..., float]
"""Simulates a change, notes its effect, and returns the share of an iteration that it saves."""


def _again(scenario: Scenario) -> float:
    return scenario.predict().iteration_s


def _shares(schedule: Schedule, path: CriticalPath) -> dict[str, float]:
    """Seconds per iteration that the path spends on each kind of op, and in waits before it, the most first."""
    total: defaultdict[str, float] = defaultdict(float)
    for step in path:
        kind = op_kind(schedule.op(step.op))
        total[f"waits before {kind}" if step.kind is StepKind.WAIT else kind] += step.seconds / path.iterations
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _in_computing(scenario: Scenario, path: CriticalPath, saved: _Saved) -> tuple[Cause, str]:
    schedule = scenario.schedule
    spent: defaultdict[int, float] = defaultdict(float)  # of each host
    sums = total = 0.0
    for step in path:
        op = schedule.op(step.op)
        if isinstance(op, Compute) and step.kind is StepKind.COMPUTE:
            total += step.seconds
            sums += step.seconds * op.phase.on_bundle
            spent[scenario.cluster.placement[step.rank].host] += step.seconds
    everywhere = saved(What.COMPUTE, 2.0, Change(compute=2.0))
    places = _computing(scenario)
    longest = sorted(places, key=lambda p: -sum(spent[h] for h in p.members))[:MOST_PLACES]
    gains = {
        p.name: everywhere
        if len(places) == 1
        else saved(What.HOST, 2.0, Change(hosts=dict.fromkeys(p.members, 2.0)), p.name)
        for p in longest
    }
    best = max(gains, key=lambda name: gains[name])
    if sums > MOST_OF_IT * total:
        if len(places) == 1:
            saved(What.HOST, 2.0, Change(compute=2.0), best)
        return Cause.LANE, best
    if len(places) > 1 and gains[best] >= MOST_OF_IT * everywhere:
        others = max((gain for name, gain in gains.items() if name != best), default=0.0)
        if others < MOST_OF_IT * gains[best]:
            return Cause.HOST, best
    return Cause.COMPUTE, ""


def _in_network(scenario: Scenario, prediction: Prediction, saved: _Saved) -> tuple[Cause, str]:
    rates, latency = saved(What.RATES, inf, Change(network=inf)), saved(What.LATENCY, inf, Change(latency=inf))
    twice = saved(What.RATES, 2.0, Change(network=2.0))
    places = _links(scenario, prediction)
    gains = {
        p.name: saved(What.LINK, 2.0, Change(links=dict.fromkeys(p.members, 2.0)), p.name) for p in places[:MOST_PLACES]
    }
    if latency > rates:
        return Cause.LATENCY, ""
    best = max(gains, key=lambda name: gains[name], default="")
    if best and gains[best] >= MOST_OF_IT * twice > 0:
        return Cause.LINK, best
    return Cause.NETWORK, ""


# ---- places ----------------------------------------------------------------------------------------------------------


def _roles(scenario: Scenario) -> list[str]:
    """What the ranks of each host do, in words."""
    groups = [g for g in scenario.schedule.groups if "." not in g.name]
    named: list[dict[str, None]] = [{} for _ in scenario.cluster.hosts]
    for group in groups:
        for rank in group.ranks:
            named[scenario.cluster.placement[rank].host][group.name] = None
    return [" + ".join(names) for names in named]


def _hosts(scenario: Scenario) -> list[tuple[str, list[int]]]:
    """Hosts of one kind whose ranks have the same roles, with these; hosts without any are left out."""
    roles = _roles(scenario)
    alike: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for h, kind in enumerate(kinds_of(scenario.cluster.hosts)):
        if roles[h]:
            alike[kind, roles[h]].append(h)
    return [(role, hosts) for (_, role), hosts in alike.items()]


def _computing(scenario: Scenario) -> list[Place]:
    """Hosts that are alike."""
    hosts = scenario.cluster.hosts
    return [
        Place(name=f"{_all(hosts[of[0]].name, len(of))} ({role})", members=tuple(of)) for role, of in _hosts(scenario)
    ]


def _links(scenario: Scenario, prediction: Prediction) -> list[Place]:
    """Links that are alike and busy, the busiest first: NICs of hosts that are, and others of one kind and rate."""
    cluster, busy = scenario.cluster, prediction.utilisation
    found: list[tuple[float, Place]] = []

    def busiest(links: Collection[int]) -> tuple[float, int]:
        return max((busy.get(cluster.links[q].label, 0.0), -q) for q in links)

    nics: set[int] = set()
    for role, hosts in _hosts(scenario):
        of_host = {q: h for h in hosts for sides in cluster.nic_links_of(h) for q in sides}
        if not of_host:
            continue
        nics |= of_host.keys()
        share, q = busiest(of_host)
        name = _all(f"{cluster.hosts[of_host[-q]].name}'s NIC", sum(len(cluster.hosts[h].nics) for h in hosts))
        found.append((share, Place(name=f"{name} ({role})", members=tuple(of_host))))
    rest: defaultdict[tuple[LinkKind, float], list[int]] = defaultdict(list)
    for q, link in enumerate(cluster.links):
        if q not in nics:
            kind = LinkKind.DEVICE_OUT if link.kind is LinkKind.DEVICE_IN else link.kind
            rest[kind, link.bandwidth_Bps].append(q)
    for links in rest.values():
        share, q = busiest(links)
        found.append((share, Place(name=_all(cluster.links[-q].label, len(links)), members=tuple(links))))
    return [place for share, place in sorted(found, key=lambda one: -one[0]) if share >= LEAST_BUSY]


def _all(name: str, count: int) -> str:
    """One of so many that are alike, in words."""
    return name if count == 1 else f"{name} and {count - 1} more like it"
