"""What the command line calls: open the ranks of a cluster, and execute jobs on them. No torch in this process,
unless a launcher made it a rank."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from stanza_sim.base.errors import InputError, at
from stanza_sim.base.listening import LOOPBACK
from stanza_sim.base.precision import Precision
from stanza_sim.base.telling import Say, detail
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.execute.rank.decision import Seat
from stanza_sim.execute.rank.devices import GpuInfo, on_machine
from stanza_sim.execute.rank.job import Backend, ComputeMode, Measurement, RunJob, Score
from stanza_sim.execute.rank.steal import MOST_STOLEN, SHORT_S, TRIES
from stanza_sim.execute.rank.supported import supported, unsupported
from stanza_sim.execute.start.environment import Place, place
from stanza_sim.execute.start.fit import check_gpu, fitting, fitting_hint, note_on_cores
from stanza_sim.execute.start.launch import Pool, RankPlace
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.start.protocol import Moving, RankInfo, Workers
from stanza_sim.execute.start.tasks import DescribeTask, RunTask
from stanza_sim.execute.train.samples import follow
from stanza_sim.model.decay import without_decay
from stanza_sim.schedule import check
from stanza_sim.schedule.clipping import is_clipped


def require_torch() -> None:
    """Raise `InputError` if torch is not installed, or this system cannot start ranks."""
    if not hasattr(os, "fork"):
        hint = "predict here and execute there; Windows' own Linux (WSL) will do"
        raise InputError("--execute needs Linux or macOS, whose processes inherit connections", hint=hint)
    if importlib.util.find_spec("torch") is None:
        raise InputError("--execute needs torch, and it is not installed", hint="pip install 'stanza-sim[torch]'")


@contextmanager
def open_workers(
    cluster: Cluster,
    *,
    threads_per_rank: int = 1,
    timeout_s: float = 60.0,
    compute: ComputeMode = ComputeMode.REAL,
    places: Sequence[RankPlace] | None = None,
    backend: Backend = Backend.AUTO,
    deterministic: bool = False,
    say: Say = lambda text: None,
) -> Iterator[Workers]:
    """The ranks of `cluster`: those of the launcher that started this process, else local ones, at `places`.

    With emulated computations no device is needed; with `deterministic` all that ranks compute is bitwise equal each
    time, calibrations included. `say` is told what is as the cluster says, but not quite. Raises `InputError`, with the
    topology to use instead, if ranks, hosts or devices differ from the cluster's or cannot talk over `backend`, and
    `RunError` if the ranks do not come up.
    """
    require_torch()
    here = place()
    emulated = compute is ComputeMode.EMULATED
    has_devices = any(cluster.host_of(r).devices for r in range(cluster.world_size))
    kind = "cuda" if has_devices and not emulated else "cpu"
    seats = seats_of(cluster) if kind == "cuda" else None
    if places is None:
        check_ranks(cluster, here)
    elif here is not None:
        raise InputError(
            f"{here.launcher} has started this process as one rank, and a testbed starts its ranks itself",
            where="--testbed",
            hint="run the command without a launcher",
        )
    if not emulated and (here is None or here.rank == 0) and (note := note_on_cores(cluster)) is not None:
        say(f"note: {note}")
    if here is None:
        with Pool(
            cluster.world_size,
            threads_per_rank=threads_per_rank,
            timeout_s=timeout_s,
            kind=kind,
            places=places,
            deterministic=deterministic,
            backend=backend,
            seats=seats,
        ) as pool:
            ranks = pool.run(DescribeTask())
            for warning in check_hosts(cluster, ranks, devices=not emulated):
                say(f"warning: {warning}")
            detail(say, where_they_listen(ranks))
            yield pool
        return
    from stanza_sim.execute.start.world import Joined

    with Joined(
        here, threads_per_rank=threads_per_rank, kind=kind, backend=backend, seats=seats, deterministic=deterministic
    ) as joined:
        ranks = joined.run(DescribeTask())
        found = check_hosts(cluster, ranks, devices=not emulated)
        for warning in found if joined.is_main else ():
            say(f"warning: {warning}")
        if joined.is_main:
            detail(say, where_they_listen(ranks))
        yield joined


def where_they_listen(ranks: Sequence[RankInfo]) -> str:
    """Where the processes of `ranks` listen, and what protects them there, in words."""
    places = list(dict.fromkeys((info.host, place) for info in ranks for place in info.listens))
    if not places:
        return "where ranks listen cannot be told on this system"
    if all(place == LOOPBACK for _, place in places):
        return "ranks listen on loopback: no other machine reaches them"
    on = ", ".join(f"{place} of {host}" for host, place in places)
    open_to = "nothing is encrypted or authenticated: whoever reaches them there can disturb the run, but not run code"
    return f"ranks listen on {on}; {open_to}. Keep that network to yourself; GLOO_SOCKET_IFNAME names another interface"


def seats_of(cluster: Cluster) -> tuple[Seat, ...]:
    """Where `cluster` puts each rank."""
    return tuple(Seat(host=p.host, device=p.device, name=cluster.device_of(r)) for r, p in enumerate(cluster.placement))


def check_ranks(cluster: Cluster, here: Place | None) -> None:
    """Raise `InputError` if the launcher (None: this machine alone) cannot give `cluster` its ranks."""
    used = sorted({cluster.placement[r].host for r in range(cluster.world_size)})
    if here is None:
        if len(used) > 1:
            raise InputError(
                f"topology {cluster.name} places {cluster.world_size} ranks on {len(used)} hosts, this is one machine",
                where="--execute",
                hint=f"use {_one_machine(cluster)} here, --testbed to emulate the hosts, "
                "or start one process per rank with torchrun or srun",
            )
        return
    if here.world_size != cluster.world_size:
        raise InputError(
            f"{here.launcher} started {here.world_size} ranks, topology {cluster.name} has {cluster.world_size}",
            where="--execute",
            hint=_right_number(cluster, here),
        )


def _one_machine(cluster: Cluster) -> str:
    """The options that choose a topology for this machine: with GPUs where `cluster` has some and one fits."""
    gpus = on_machine() if any(host.devices for host in cluster.hosts) else ()
    return (fitting([gpus]) if gpus else None) or f"--set cluster=laptop --set nodes={cluster.world_size}"


def _right_number(cluster: Cluster, here: Place) -> str:
    """What makes the launcher's ranks those of `cluster`; its `nodes` counts ranks or hosts."""
    start = f"start {cluster.world_size} ranks"
    if cluster.nodes_are_ranks:
        return f"use --set nodes={here.world_size}, or {start}"
    on_first = len(cluster.ranks_on(0))
    if any(len(cluster.ranks_on(h)) != on_first for h in range(len(cluster.hosts))):
        return start
    if here.world_size % on_first:
        return f"{start}: it has {on_first} on each host, and `nodes` counts hosts"
    return f"use --set nodes={here.world_size // on_first} (hosts, of {on_first} ranks each), or {start}"


def check_hosts(cluster: Cluster, ranks: Sequence[RankInfo], *, devices: bool = True) -> list[str]:
    """Return what `devices` of `ranks` differ in from those of `cluster`, where it is no more than their form.

    Raises `InputError` if `ranks` share hosts in another way than `cluster` says, or have other devices.
    """
    real = _pattern([r.host for r in ranks])
    wanted = _pattern([str(cluster.placement[r].host) for r in range(cluster.world_size)])
    if real != wanted:
        hosts, placed = len(set(real)), len(set(wanted))
        raise InputError(
            f"{len(ranks)} ranks run on {hosts} hosts ({', '.join(dict.fromkeys(r.host for r in ranks))}), "
            f"topology {cluster.name} places them on {placed}",
            where="--execute",
            hint=_other_hosts(ranks, real),
        )
    warnings: list[str] = []
    for r, info in enumerate(ranks if devices else ()):
        if cluster.on_cores(r):
            continue
        gpu = info.gpu
        if gpu is None and info.device.startswith("cuda "):
            gpu = GpuInfo(index=0, uuid=None, name=info.device.removeprefix("cuda "))
        if gpu is None:
            raise InputError(
                f"rank {r} has a {info.device}, topology {cluster.name} says {cluster.device_of(r)}",
                where="--execute",
                hint="use a topology without devices, such as laptop",
            )
        warnings += check_gpu(r, gpu, cluster.device_of(r), cluster.name)
    return list(dict.fromkeys(warnings))


def _other_hosts(ranks: Sequence[RankInfo], real: Sequence[int]) -> str:
    """Which topology has its ranks on hosts as `real` says."""
    if all(info.gpu is not None for info in ranks):
        on = [
            [g for h, info in zip(real, ranks, strict=True) if h == n and (g := info.gpu)] for n in dict.fromkeys(real)
        ]
        return fitting_hint(on)
    if len(set(real)) == 1:
        return f"use --set cluster=laptop --set nodes={len(ranks)}"
    return f"use a topology of {len(set(real))} hosts in which rank r is on host {list(real)}[r]"


def _pattern(hosts: Sequence[str]) -> tuple[int, ...]:
    """Hosts numbered by first appearance: equal for two placements that share hosts alike."""
    order = list(dict.fromkeys(hosts))
    return tuple(order.index(h) for h in hosts)


def execute(
    jobs: Sequence[RunJob],
    workers: Workers,
    *,
    done: Callable[[int, Measurement], None] = lambda i, m: None,
    moving: Callable[[int, int | Score], None] = lambda i, ended: None,
    between: Callable[[int], None] = lambda i: None,
) -> list[Measurement]:
    """Run `jobs` one after another on `workers` and return their measurements; `done` is called after each.

    While one takes long, `moving` is told how many of its iterations have ended, and scores at once. `between(i)` is
    called right before job i, and with the number of jobs once all are done; it may use the workers.

    A short run during which a virtual machine's host took its cores away is done again (`steal`), in all processes
    alike, since all know of all ranks.
    All jobs are checked before the first begins. Raises `InputError` (a schedule that is illegal or, if it trains, not
    SGD, a model without factory, data that does not fit, a precision that a rank's device has not) and `RunError` (a
    rank that dies, fails or hangs).
    """
    for job in jobs:
        check(job.schedule, job.model)
        if job.emulation is None:
            follow(job.schedule, job.model)
        if job.model.factory is None and job.emulation is None:
            raise InputError(
                f"model {job.model.name} is a table of numbers without a factory: it cannot be trained",
                hint="emulate its computations with --compute emulated, or name a factory",
            )
        check_optimizer(job)
        if job.schedule.world_size > workers.world_size:
            raise InputError(
                f"schedule {job.schedule.name} has {job.schedule.world_size} ranks, only {workers.world_size} run"
            )
        if (count := job.training.iterations - job.training.begin) < job.training.warmup + 2:
            raise InputError(f"{count} iterations with {job.training.warmup} of warm-up leave fewer than two")
    for precision in dict.fromkeys(job.precision for job in jobs if job.emulation is None):
        check_precision(precision, workers)
    found: list[Measurement] = []
    for i, job in enumerate(jobs):
        between(i)
        found.append(_undisturbed(job, workers, partial(moving, i)))
        done(i, found[-1])
    between(len(jobs))
    return found


def check_optimizer(job: RunJob) -> None:
    """Raise `InputError` for an optimiser whose state, or clipping, is not that for which the schedule was built."""
    built, o = job.schedule.moments, job.training.optimizer
    if job.emulation is not None:
        return
    with at("training.optimizer.no_decay"):
        without_decay(job.model, o.no_decay)
    if (clips := o.clip_norm is not None) != is_clipped(job.schedule):
        raise InputError(
            f"schedule {job.schedule.name} was built {'without' if clips else 'for'} clipped gradients",
            where="training.optimizer.clip_norm",
            hint=f"{'leave it out' if clips else 'give it'}, or build the schedule for this optimiser",
        )
    if o.moments != built:
        keeps = ("no vector", "one vector", "two vectors")
        raise InputError(
            f"schedule {job.schedule.name} was built for an optimiser that keeps {keeps[built]} as long as the "
            f"parameters, {o.kind} keeps {keeps[o.moments]}",
            where="training.optimizer",
            hint="build the schedule for the optimiser that is to train it",
        )


def check_precision(precision: Precision, workers: Workers) -> None:
    """Raise `InputError` unless every rank of `workers` can train in `precision`."""
    if precision is Precision.FP32:  # all can
        return
    for rank, info in enumerate(workers.run(DescribeTask())):
        kind, _, name = info.device.partition(" ")
        if (reason := unsupported(precision, kind, info.capability)) is not None:
            raise InputError(
                f"rank {rank} on {info.host} ({name or kind}) cannot train in {precision}: {reason}",
                where="precision",
                hint=f"it can in {' or '.join(supported(kind, info.capability))}",
            )


def _undisturbed(job: RunJob, workers: Workers, moving: Moving) -> Measurement:
    """Of up to `TRIES` runs of `job` the one of which least was taken away."""
    found: list[Measurement] = []
    while len(found) < TRIES:
        reports = [r for r in workers.run(RunTask(job), job.timeout_s, moving=moving) if r is not None]
        found.append(merge(job, reports))
        if found[-1].stolen <= MOST_STOLEN or max(r.took_s for r in reports) > SHORT_S:
            break
    return replace(min(found, key=lambda m: m.stolen), tries=len(found))
