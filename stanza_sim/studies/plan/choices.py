"""What is tried: the rows of the experiment, and every strategy with every setting of its `space`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stanza_sim import strategies
from stanza_sim.base.errors import InputError
from stanza_sim.base.units import exact_size, is_size, may_be_size
from stanza_sim.cluster import Cluster
from stanza_sim.experiment.file import StrategyEntry
from stanza_sim.model.profile import ModelProfile
from stanza_sim.strategies._shared.places import kinds_of_places, worth_trying


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A strategy with its settings. `first`: a row of the experiment, or a strategy's default; tried before others."""

    entry: StrategyEntry
    first: bool = False

    @property
    def label(self) -> str:
        """What the report calls it."""
        return self.entry.title

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self.entry.strategy

    def differs(self, other: Choice) -> int | None:
        """In how many settings another choice of the same strategy differs; None for another strategy."""
        if self.strategy != other.strategy:
            return None
        mine, others = vars(self.entry.settings), vars(other.entry.settings)
        return sum(bool(value != others[key]) for key, value in mine.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What could not be tried, and why.

    `kind` is `infeasible`, `memory` (of a device), or, of what could not be simulated here, `time` or `host_memory`.
    `left_nbytes` is below 0 by what a device lacks, if it is that.
    """

    choice: Choice
    kind: str
    reason: str
    left_nbytes: int | None = None


def local_size(cluster: Cluster) -> int:
    """Ranks on each host, where all hosts have the same number in rank order; else 1."""
    counts = {len(cluster.ranks_on(h)) for h in range(len(cluster.hosts))}
    if len(counts) != 1:
        return 1
    size = counts.pop()
    orderly = all(p.host == rank // size for rank, p in enumerate(cluster.placement))
    return size if orderly else 1


def choices(
    model: ModelProfile,
    *,
    world_size: int,
    batch_per_worker: int,
    local_size: int,
    rows: Sequence[StrategyEntry],
    names: Sequence[str] | None = None,
    cluster: Cluster | None = None,
) -> tuple[list[Choice], list[LeftOut]]:
    """All that is tried, in the order in which it is looked at, and strategies that have nothing to offer here.

    First the experiment's `rows`, then the default of each strategy (of `names`; all that there are), then the other
    settings of all strategies in turn, so that a search that ends early has tried some of each. Where the hosts of
    `cluster` are not alike, roles are tried at other places too.
    """
    found = [Choice(entry=row, first=True) for row in rows]
    out: list[LeftOut] = []
    spaces: list[list[Choice]] = []
    kinds = kinds_of_places(cluster) if cluster is not None else []
    for name in names if names is not None else strategies.names():
        try:
            offered = list(
                strategies.get(name).space(
                    model, world_size=world_size, batch_per_worker=batch_per_worker, local_size=local_size
                )
            )
        except InputError as error:
            out.append(
                LeftOut(choice=Choice(entry=StrategyEntry(strategy=name)), kind="infeasible", reason=error.one_line)
            )
            continue
        if kinds:
            offered += [there for settings in offered for there in _elsewhere(settings, kinds, world_size)]
        spaces.append([_choice(name, settings, first=i == 0) for i, settings in enumerate(offered)])
    found += _in_turn(spaces)
    known: dict[tuple[str, str], Choice] = {}
    for choice in found:  # a row keeps its label where a space offers the same settings
        known.setdefault((choice.strategy, choice.entry.settings.model_dump_json()), choice)
    return list(known.values()), out


def _elsewhere(settings: BaseModel, kinds: Sequence[Sequence[str]], world_size: int) -> Iterator[BaseModel]:
    """The same with its role at other places, for a strategy that has the setting."""
    if getattr(settings, "on", "none") is not None:
        return
    count = getattr(settings, "servers", None) or getattr(settings, "fc_workers", None) or 1
    if count < world_size:  # else every rank has the role
        for on in worth_trying(kinds, count):
            yield settings.model_copy(update={"on": on})


def _choice(name: str, settings: BaseModel, *, first: bool) -> Choice:
    label = in_words(name, settings)
    made = StrategyEntry.model_construct(strategy=name, label=label, settings=settings)
    return Choice(entry=made, first=first)


def _in_turn(spaces: Sequence[Sequence[Choice]]) -> Iterator[Choice]:
    """The first of each, then the rest so that at any place about the same share of every space has come."""
    placed = [(i / len(space), s, i) for s, space in enumerate(spaces) for i in range(len(space))]
    for _, s, i in sorted(placed):
        yield spaces[s][i]


def changed(settings: BaseModel) -> dict[str, str]:
    """The settings that differ from their defaults, as a user writes them."""
    given = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if value != field.get_default(call_default_factory=True):
            given[key] = _written(value, field)
    return given


def _written(value: object, field: FieldInfo) -> str:
    if isinstance(value, int) and (is_size(field.metadata) or may_be_size(field.annotation)):
        return exact_size(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(name: str, settings: BaseModel) -> str:
    """`stanza fc_workers=2 bucket=4MiB`: the strategy and what differs from its defaults."""
    return " ".join([name, *(f"{key}={value}" for key, value in changed(settings).items())])


def as_yaml(choice: Choice) -> str:
    """The line of an experiment file that makes it a row."""
    given = ", ".join(f"{key}: {value}" for key, value in changed(choice.entry.settings).items())
    return f"{{strategy: {choice.strategy}, settings: {{{given}}}}}" if given else f"{{strategy: {choice.strategy}}}"
