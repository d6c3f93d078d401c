"""Rules of what stands before the ops of a schedule: its sizes, names, groups and bundles."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from stanza_sim.base.errors import ScheduleError
from stanza_sim.base.optimizers import STATE
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.ops import NAME, Bundle, Keep, Layout
from stanza_sim.schedule.schedule import Schedule

NAME_HINT = "names have letters, digits and _ . - / and no spaces, so that the printed form reads back"


def check_header(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError` for the first of these rules that `schedule` breaks."""
    _sizes(schedule)
    _names(schedule, model)
    _groups(schedule)
    numel = {t.name: t.numel for b in model.blocks for t in b.tensors}
    for b in schedule.bundles:
        _bundle(schedule, model, b, numel)
    _once(schedule)
    for tensors, parts in _families(schedule.bundles).items():
        _pieces(schedule, parts, sum(numel[t] for t in tensors))
    if schedule.model != model.name:
        raise _wrong(schedule, f"was made for model {schedule.model}, not {model.name}")


def _wrong(schedule: Schedule, message: str, hint: str | None = None) -> ScheduleError:
    return ScheduleError(message, where=f"schedule {schedule.name}", hint=hint)


def _sizes(s: Schedule) -> None:
    """Counts are positive, and the batch is cut evenly."""
    for what, value in (
        ("world", s.world_size),
        ("batch", s.batch_per_worker),
        ("microbatches", s.microbatches),
        ("itemsize", s.itemsize),
    ):
        if value < 1:
            raise _wrong(s, f"{what}={value} must be at least 1")
    if not 0 <= s.moments < len(STATE):
        raise _wrong(s, f"moments={s.moments} must be 0, 1 or 2", "0: SGD without momentum, 1: with it, 2: Adam")
    if s.batch_per_worker % s.microbatches:
        raise _wrong(s, f"a batch of {s.batch_per_worker} cannot be cut in {s.microbatches} equal micro-batches")


def _names(s: Schedule, model: ModelProfile) -> None:
    """Names read back from the printed form, and mean one thing."""
    for kind, names, once in (
        ("schedule", [s.name], True),
        ("model", [s.model], True),
        ("block", [b.name for b in model.blocks], True),
        ("tensor", [t for b in s.bundles for t in b.tensors], False),
        ("group", [g.name for g in s.groups], True),
        ("bundle", [b.name for b in s.bundles], True),
        ("op", [o.name for o in s.ops], True),
    ):
        for name in names:
            if NAME.fullmatch(name) is None:
                raise _wrong(s, f"{name!r} is not a name for a {kind}", NAME_HINT)
        if once and len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise _wrong(s, f"two {kind}s are called {twice}")


def _groups(s: Schedule) -> None:
    """Groups have ranks, all of them in the world."""
    for g in s.groups:
        if not len(g.ranks):
            raise _wrong(s, f"group {g.name} is empty")
        if (last := g.ranks.spans[-1][1] - 1) >= s.world_size:
            raise _wrong(s, f"group {g.name} has rank {last}, the world is {s.world_size} ranks")


def _bundle(s: Schedule, model: ModelProfile, bundle: Bundle, known: Container[str]) -> None:
    """A bundle's owners are a group, replicas share them evenly, and its tensors are `known`: the model has them."""
    owners = s.owners(bundle)
    if bundle.layout is not Layout.SHARDED and (bundle.replicas != 1 or bundle.keep is not Keep.ALL):
        what = f"bundle {bundle.name} has replicas={bundle.replicas} keep={bundle.keep} and layout={bundle.layout}"
        raise _wrong(s, what, f"only a bundle in slices has replicas and keep: write layout={Layout.SHARDED}")
    if bundle.replicas < 1 or len(owners) % bundle.replicas:
        what = f"bundle {bundle.name} has replicas={bundle.replicas}, and {len(owners)} owners"
        raise _wrong(s, what, "replicas are runs of the owners of one length")
    for t in bundle.tensors:
        if t not in known:
            raise _wrong(s, f"bundle {bundle.name}: model {model.name} has no tensor {t}")


def _families(bundles: Iterable[Bundle]) -> dict[tuple[str, ...], list[Bundle]]:
    """The bundles of the same tensors."""
    families: dict[tuple[str, ...], list[Bundle]] = {}
    for b in bundles:
        families.setdefault(b.tensors, []).append(b)
    return families


def _once(s: Schedule) -> None:
    """A tensor is in one bundle, or in the parts of one."""
    seen: set[str] = set()
    for t in (t for tensors in _families(s.bundles) for t in tensors):
        if t in seen:
            raise _wrong(s, f"tensor {t} is in two bundles")
        seen.add(t)


def _pieces(s: Schedule, parts: Sequence[Bundle], numel: int) -> None:
    """Bundles of the same tensors, of `numel` elements, have each element once."""
    if len(parts) == 1 and (parts[0].start or parts[0].numel != numel):
        b = parts[0]
        start = f" and start={b.start}" if b.start else ""
        raise _wrong(s, f"bundle {b.name} has numel={b.numel}{start}, its tensors have {numel}")
    end, last = 0, ""
    for b in sorted(parts, key=lambda b: b.start) if len(parts) > 1 else ():
        if b.start != end or b.numel < 1:
            what = f"bundle {b.name} has the elements {b.start} to {b.start + b.numel} of its tensors"
            before = f"bundle {last} ends" if last else "they begin"
            raise _wrong(s, f"{what}, and {before} at {end}")
        if b.layout is Layout.SHARDED:
            raise _wrong(s, f"bundle {b.name} is a part of its tensors, and may not be cut again")
        end, last = b.start + b.numel, b.name
    if len(parts) > 1 and end != numel:
        raise _wrong(s, f"bundle {last} ends at element {end} of its tensors, they have {numel}")
