"""Why an iteration takes as long as it does, and what would make it shorter, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from stanza_sim.base.units import format_time

MOST_KINDS = 3
"""So many kinds of op of the path are named, those that take longest."""


class Cause(StrEnum):
    """What sets the time of an iteration.

    `COMPUTE` and `NETWORK`: computations everywhere, or the rates of no one place. `HOST`: computations on some hosts
    that others wait for. `LANE`: sums and updates at servers. `LINK`: the rate of one kind of link. `LATENCY`: what
    messages take beside the rates of links. `BALANCE`: computation and messages hide each other. `NOTHING` takes time.
    """

    COMPUTE = "compute"
    HOST = "host"
    LANE = "lane"
    NETWORK = "network"
    LINK = "link"
    LATENCY = "latency"
    BALANCE = "balance"
    NOTHING = "nothing"


class What(StrEnum):
    """What is made faster."""

    COMPUTE = "compute"
    NETWORK = "network"
    RATES = "rates"
    LATENCY = "latency"
    LINK = "link"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """How long an iteration takes, in seconds, were `what` so many `times` as fast (infinity: it takes no time).

    `place` says in words which links or hosts.
    """

    what: What
    times: float
    iteration_s: float
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Explanation:
    """Why an iteration takes `iteration_s` seconds.

    `path` has the seconds per iteration that the critical path spends on each kind of op, and in waits before it, the
    most first. `cause` is what sets them, and `place` where, in words. `effects` are what was simulated again; without
    any, that would have taken too long, and there is no cause.
    """

    iteration_s: float
    path: Mapping[str, float]
    cause: Cause | None = None
    place: str = ""
    effects: tuple[Effect, ...] = ()

    def saved(self, effect: Effect) -> float:
        """The share of an iteration that a change saves; negative where it takes longer."""
        return 1 - effect.iteration_s / self.iteration_s if self.iteration_s else 0.0

    def effect(self, what: What, times: float, place: str = "") -> Effect | None:
        """The effect of one change, if it was simulated."""
        return next((e for e in self.effects if (e.what, e.times, e.place) == (what, times, place)), None)

    def sentences(self) -> list[str]:
        """A few plain sentences: the path, the cause, and what would help."""
        return [text for text in (self._path(), self._cause(), self._whole(), self._places()) if text]

    def __str__(self) -> str:
        return " ".join(self.sentences())

    def __repr__(self) -> str:
        cause = "not simulated" if self.cause is None else f"{self.cause} {self.place}".rstrip()
        return f"<Explanation of {format_time(self.iteration_s)} an iteration: {cause}>"

    def _path(self) -> str:
        named = list(self.path.items())
        told = [f"{kind} {format_time(seconds)}" for kind, seconds in named[:MOST_KINDS]]
        if rest := named[MOST_KINDS:]:
            told.append(f"others {format_time(sum(seconds for _, seconds in rest))}")
        return f"An iteration takes {format_time(self.iteration_s)}; on its critical path are {_listed(told)}."

    def _cause(self) -> str:
        def saves(what: What, times: float, place: str = "") -> str:
            effect = self.effect(what, times, place)
            return "an unknown part" if effect is None else _percent(self.saved(effect))

        where = self.place
        match self.cause:
            case None:
                return "It is too large to be simulated again, so what would help is not known."
            case Cause.NOTHING:
                return "Nothing takes time."
            case Cause.BALANCE:
                return "Computation and messages hide each other: neither alone is the cause."
            case Cause.COMPUTE:
                return f"The cause is computation, everywhere: twice as fast it would save {saves(What.COMPUTE, 2.0)}."
            case Cause.HOST:
                share = saves(What.HOST, 2.0, where)
                return f"The cause is computation on {where}: twice as fast there it would save {share}."
            case Cause.LANE:
                share = saves(What.HOST, 2.0, where)
                return f"The cause is sums and updates on {where}: computing twice as fast there would save {share}."
            case Cause.LINK:
                return f"The cause is the rate of {where}: twice as much would save {saves(What.LINK, 2.0, where)}."
            case Cause.NETWORK:
                share = saves(What.RATES, 2.0)
                return f"The cause is the rate of the network, in no one place: twice as much would save {share}."
            case Cause.LATENCY:
                lost, rate = saves(What.LATENCY, inf), saves(What.RATES, inf)
                return (
                    "The cause is what messages take whatever their size, latencies and overheads: without these it "
                    f"would save {lost}, with infinite rates {rate}."
                )

    def _whole(self) -> str:
        told = []
        for what, words in ((What.COMPUTE, "with free computation"), (What.NETWORK, "with an infinitely fast network")):
            if (effect := self.effect(what, inf)) is not None:
                told.append(f"{words} {format_time(effect.iteration_s)} ({_change(self.saved(effect))})")
        return f"It would take {_listed(told)}." if told else ""

    def _places(self) -> str:
        """What else would help, twice as fast."""
        told = [
            f"{'the rate of' if e.what is What.LINK else 'computing on'} {e.place} {_percent(self.saved(e))}"
            for e in sorted(self.effects, key=lambda e: e.iteration_s)
            if e.place and e.place != self.place and self.saved(e) >= 0.005
        ]
        return f"Twice as much would save: {'; '.join(told)}." if told else ""


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _percent(share: float) -> str:
    return f"{max(share, 0.0):.0%}" if share >= 0.005 else "nothing"


def _change(share: float) -> str:
    return f"-{share:.0%}" if share >= 0.005 else "no change" if share > -0.005 else f"+{-share:.0%}"
