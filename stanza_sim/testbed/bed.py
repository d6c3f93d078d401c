"""Brings a testbed up and takes it down, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from types import TracebackType
from typing import Self

from stanza_sim.base.errors import InputError
from stanza_sim.base.processes import cores, ending_by_signal, undisturbed
from stanza_sim.cluster import Cluster
from stanza_sim.cluster.dilation import dilated
from stanza_sim.testbed.guard import start_guard
from stanza_sim.testbed.network import check_machine, network_of
from stanza_sim.testbed.plan import INTERFACE, CommandPlan, make_plan, prefix_of
from stanza_sim.testbed.probe import require_kernel, require_linux, require_tools
from stanza_sim.testbed.processes import Process, processes_inside, this_process
from stanza_sim.testbed.registry import HostRecord, Record, Registry, TrunkRecord, identity_of, this_boot
from stanza_sim.testbed.remove import check_empty, release, remove
from stanza_sim.testbed.remove import collect as collect_locked
from stanza_sim.testbed.shell import CommandError, Tools, run_step


class Made(StrEnum):
    """What bringing up a testbed came to."""

    BUILT = "built"
    REBUILT = "rebuilt"  # it was there for another topology, or damaged
    FOUND = "found"  # it was there


class Testbed:
    """The emulated network of a cluster: a namespace for each host, joined as the cluster's hosts are.

    As a context manager it is this process's own: it comes up on entering, and goes down on leaving, on Ctrl-C, SIGTERM
    and SIGHUP, and by a guard if this process is killed. One that `up` made before is used and left as it was, but for
    the processes inside, which are ended. `up` and `down` are for one that outlives the process.

    Hosts are numbered as in the cluster. With a `dilation` all rates are so many times lower. Creating one touches
    nothing. Raises `InputError` for a cluster that cannot be emulated, or not on this machine; `notes` say what is
    another value here than in the topology.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        dilation: float = 1.0,
        source: str | None = None,
        registry: Registry | None = None,
    ) -> None:
        require_linux()
        network = network_of(dilated(cluster, dilation))
        self.name = cluster.name
        self.plan: CommandPlan = make_plan(network, prefix_of(cluster.name, os.getuid()))
        self.notes: tuple[str, ...] = (*network.notes, *check_machine(network, cores(), dilation))
        self.registry = registry or Registry()
        self._source = cluster.name if source is None else source
        self._tools: Tools | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._signals = ExitStack()
        self._owner: Process | None = None

    # --- what is where -----------------------------------------------------------------------------------------------

    @property
    def prefix(self) -> str:
        """The beginning of the names of its namespaces."""
        return self.plan.prefix

    @property
    def interface(self) -> str:
        """The name of the network interface inside each host."""
        return INTERFACE

    def namespace_of(self, host: int) -> str:
        """Return the namespace of host number `host`."""
        return self.plan.namespaces[host]

    def address_of(self, host: int) -> str:
        """Return the IPv4 address of host number `host`."""
        return self.plan.addresses[host]

    def exec_prefix(self, host: int) -> list[str]:
        """Return what to put before a command to run it on host number `host`.

        Raises `InputError` without root or iproute2.
        """
        return [self._need_tools().ip, "netns", "exec", self.namespace_of(host)]

    def processes(self) -> list[int]:
        """Return the numbers of the processes that run inside its namespaces, in order."""
        record = self.registry.get(self.prefix)
        return [] if record is None else sorted(processes_inside(record.own()))

    # --- up and down -------------------------------------------------------------------------------------------------

    def up(self) -> Made:
        """Bring it up to stay until it is taken down; do nothing if it is up already.

        Raises `InputError` if the machine lacks something or another process uses it, and `RunError` if a command
        fails; nothing is left behind then.
        """
        with ending_by_signal():
            return self._bring_up(stays=True)

    def down(self) -> bool:
        """Take it down, whoever left it, and end the processes inside; return whether there was anything.

        Raises `InputError` if another process that still runs uses it.
        """
        tools = self._need_tools()
        with self.registry.lock(), undisturbed():
            record = self.registry.get(self.prefix)
            if record is None:
                return False
            _check_free(record)
            remove(record, self.registry, tools)
            return True

    def __enter__(self) -> Self:
        self._signals.enter_context(ending_by_signal())
        try:
            self._bring_up(stays=False)
        except BaseException:
            self._signals.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owner is not None and self._owner.pid != os.getpid():
            return  # in a process that this one has forked
        try:
            with undisturbed():
                self._leave()
        finally:
            self._signals.close()

    def _need_tools(self) -> Tools:
        if self._tools is None:
            self._tools = require_tools()
        return self._tools

    def _bring_up(self, *, stays: bool) -> Made:
        tools = self._need_tools()
        try:
            with self.registry.lock():
                collect_locked(self.registry, tools)
                record, digest = self.registry.get(self.prefix), self.plan.digest()
                if record is not None:
                    _check_free(record, busy=this_process())
                    found = record.digest == digest and record.intact()
                    if found and stays:
                        return Made.FOUND
                    check_empty(record)
                    if found:
                        self._take(replace(record, owner=this_process()), guarded=True)
                        return Made.FOUND
                    remove(record, self.registry, tools)
                self._check_names()
                new = self._record(digest, this_process())
                self._take(new, guarded=not stays)
                self._build(new, tools, stays=stays)
                return Made.BUILT if record is None else Made.REBUILT
        except BaseException as error:
            with undisturbed():
                self._leave()
                if isinstance(error, CommandError):
                    require_kernel(tools)
            raise

    def _take(self, record: Record, *, guarded: bool) -> None:
        """Make it this process's own, before anything is made."""
        self._owner = record.owner
        self.registry.put(record)
        if guarded and record.owner is not None:
            self._guard = start_guard(self.registry, record.prefix, record.owner)

    def _leave(self) -> None:
        """Give up what this object has taken: take it down or, if it was there before, leave it without processes."""
        if self._owner is None:
            return
        with self.registry.lock():
            record = self.registry.get(self.prefix)
            if record is not None and record.owner == self._owner:
                release(record, self.registry, self._need_tools())
        self._owner = None
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard = None

    def _build(self, record: Record, tools: Tools, *, stays: bool) -> None:
        for step in self.plan.steps:
            run_step(tools, step)
        made = {name: identity_of(name) for name in record.namespaces}
        owner = None if stays else record.owner
        self.registry.put(replace(record, owner=owner, kept=stays, complete=True, namespaces=made))
        self._owner = owner

    def _check_names(self) -> None:
        """Raise `InputError` if there is a namespace of an own name, but no record that it was made here."""
        if taken := [name for name in (*self.plan.namespaces, *self.plan.switches) if identity_of(name)]:
            raise InputError(
                f"there is a namespace {taken[0]} already, and no record of who made it",
                where=self.name,
                hint=f"if nobody needs it: sudo ip netns delete {taken[0]}",
            )

    def _record(self, digest: str, owner: Process) -> Record:
        plan = self.plan
        bps = {(s.namespace, s.device): s.shaper.rate_bps for s in plan.shaped}
        at = {s.wire.end.index: (s.namespace, s.device) for s in plan.shaped if not s.wire.end.switch}
        return Record(
            name=self.name,
            uid=os.getuid(),
            prefix=plan.prefix,
            source=self._source,
            digest=digest,
            boot=this_boot(),
            owner=owner,
            kept=False,
            complete=False,
            namespaces=dict.fromkeys((*plan.namespaces, *plan.switches)),
            hosts=tuple(
                HostRecord(
                    name=name,
                    namespace=plan.namespaces[h],
                    address=plan.addresses[h],
                    send_bps=bps[plan.namespaces[h], INTERFACE],
                    receive_bps=bps[at[h]],
                )
                for h, name in enumerate(plan.network.hosts)
            ),
            trunks=tuple(
                TrunkRecord(label=s.wire.label, rate_bps=s.shaper.rate_bps)
                for s in plan.shaped
                if s.wire.start.switch and s.wire.end.switch
            ),
            notes=self.notes,
        )


def collect(registry: Registry | None = None) -> list[str]:
    """Clean up testbeds whose process is gone; return a line about each. Raises `InputError` without root."""
    registry, tools = registry or Registry(), require_tools()
    with registry.lock(), undisturbed():
        return collect_locked(registry, tools)


def take_down(record: Record, registry: Registry | None = None) -> None:
    """Take down the testbed of a record, and end the processes inside.

    Raises `InputError` without root, or if another process that still runs uses it.
    """
    registry, tools = registry or Registry(), require_tools()
    with registry.lock(), undisturbed():
        now = registry.get(record.prefix)
        if now is not None:
            _check_free(now)
            remove(now, registry, tools)


def _check_free(record: Record, *, busy: Process | None = None) -> None:
    """Raise `InputError` if a process that still runs uses a testbed: another one than this, or `busy`."""
    owner = record.owner
    if owner is not None and (owner == busy or owner != this_process()) and not record.abandoned():
        what = f"process {owner.pid} uses this testbed"
        raise InputError(what, where=record.name, hint="wait for its end, or end it")
