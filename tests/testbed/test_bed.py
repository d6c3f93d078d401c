"""Testbeds that are really built: what they carry, and that nothing is left of them however they end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster
from stanza_sim.testbed import GOODPUT_SHARE, Made, Testbed, collect, take_down
from stanza_sim.testbed.plan import prefix_of
from stanza_sim.testbed.processes import process_of
from stanza_sim.testbed.registry import Registry
from stanza_sim.testbed.shell import NAMESPACES, CommandError, call, find_tools
from stanza_sim.testbed.steps import Step, Tool
from tests.testbed.testbed_clusters import leaf_spine_text, load, star_text, written
from tests.testbed.testbed_traffic import Message, transfer

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("testbed")]  # one machine has one set of names

ROOT = Path(__file__).parents[2]
MB = 1_000_000
RATE_Bps = 25e6
"""Of every NIC of the topologies here: 200 Mbit/s."""


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a testbed, which nobody else uses; what a failed test leaves of it is taken down."""
    name = f"test-{uuid4().hex[:8]}"
    yield name
    if record := Registry().get(prefix_of(name, os.getuid())):
        if record.owner is not None and record.owner.pid != os.getpid() and record.owner.alive():
            os.kill(record.owner.pid, signal.SIGKILL)
        collect()
        take_down(record)


@pytest.fixture
def star(name, tmp_path) -> Cluster:
    return load(tmp_path, star_text(name))


@pytest.fixture
def foreign(name) -> Iterator[str]:
    """A namespace that stanza-sim did not make, though it is called much like one of its own."""
    foreign = f"{prefix_of(name, os.getuid())}-h99"
    ip("netns", "add", foreign)
    yield foreign
    ip("netns", "delete", foreign)


def ip(*args: str) -> str:
    done = call([find_tools().ip, *args])
    assert done.returncode == 0, done.stderr
    return done.stdout


def left_of(name: str) -> list[str]:
    """Everything that there is of a testbed: namespaces (in brackets if foreign) and its record."""
    prefix = prefix_of(name, os.getuid())
    return sorted(p.name for folder in (NAMESPACES, Registry().folder) for p in folder.glob(f"{prefix}*"))


def soon(what: Callable[[], object], limit_s: float = 10.0) -> bool:
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if what():
            return True
        time.sleep(0.02)
    return False


def inside(bed: Testbed, host: int) -> subprocess.Popen:
    """Start a process on a host that does nothing, and wait until it is there."""
    process = subprocess.Popen([*bed.exec_prefix(host), "sleep", "600"])
    assert soon(lambda: process.pid in bed.processes())
    return process


def shares(bed: Testbed, messages: list[Message], expected: list[float], within: float = 0.05) -> None:
    """Check that messages get `expected` of what a port carries; on a busy machine, once in eight tries."""
    for _ in range(8):
        times = transfer(bed, messages)
        got = [n / t / (RATE_Bps * GOODPUT_SHARE) for (_, _, n), t in zip(messages, times, strict=True)]
        if got == pytest.approx(expected, rel=within):
            return
        time.sleep(0.5)
    assert got == pytest.approx(expected, rel=within)


# --- what it carries -------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_star_shares_its_ports_equally_and_nothing_is_seen_outside(star):
    interfaces = os.listdir("/sys/class/net")
    with Testbed(star) as bed:
        assert os.listdir("/sys/class/net") == interfaces
        for host in range(3):
            assert f"inet {bed.address_of(host)}/24" in ip(
                "-n", bed.namespace_of(host), "address", "show", bed.interface
            )
        shares(bed, [(0, 1, 4 * MB)], [1])
        shares(bed, [(0, 2, 4 * MB), (1, 2, 4 * MB)], [0.5, 0.5])
        shares(bed, [(0, 1, 4 * MB), (1, 0, 4 * MB)], [1, 1], within=0.1)
    assert left_of(star.name) == []


@pytest.mark.alone
def test_flows_share_an_oversubscribed_link_between_switches_equally(name, tmp_path):
    """Two leaves of three hosts, 3 to 1: 200 Mbit/s between them, for all that cross."""
    with Testbed(load(tmp_path, leaf_spine_text(name, each=3, over=3))) as bed:
        shares(bed, [(0, 4, 4 * MB)], [1])
        shares(bed, [(0, 4, 4 * MB), (0, 5, 4 * MB), (1, 3, 4 * MB)], [1 / 3] * 3)
        got = ip("-n", bed.plan.switches[0], "route", "get", bed.address_of(4), "from", bed.address_of(0), "iif", "h0")
        assert " dev s2 " in got
    assert left_of(name) == []


@pytest.mark.alone
def test_a_stated_path_is_taken_by_its_pair_only(name, tmp_path):
    """Both send to n-3, each over a spine of its own: they share its port, and not a link of half the rate."""
    routing = "{kind: explicit, paths: [{from: n-0, to: n-3, via: [leaf-0, spine-0, leaf-1]}]}"
    with Testbed(load(tmp_path, leaf_spine_text(name, spines=2, over=2, routing=routing))) as bed:
        shares(bed, [(0, 3, 3 * MB), (1, 3, 3 * MB)], [0.5, 0.5])
        shares(bed, [(0, 3, 3 * MB), (1, 2, 3 * MB)], [0.25, 0.25])


@pytest.mark.alone
def test_spread_over_spines_gives_a_flow_all_of_them(name, tmp_path):
    with Testbed(load(tmp_path, leaf_spine_text(name, spines=2, over=2, routing="spread"))) as bed:
        shares(bed, [(0, 3, 4 * MB)], [1])


@pytest.mark.alone
def test_hosts_have_rates_of_their_own(name, tmp_path):
    more = "overrides: {n-1: {nic: {rate: 100Mbps}}, n-2: {nic: {rate: {send: 50Mbps, receive: 200Mbps}}}}\n"
    with Testbed(load(tmp_path, star_text(name, more=more))) as bed:
        shares(bed, [(0, 1, 2 * MB), (2, 0, 2 * MB)], [0.5, 0.25])


@pytest.mark.alone
def test_a_burst_passes_after_a_pause(name, tmp_path):
    more = "overrides: {n-0: {nic: {burst: 1MB}}, n-1: {nic: {burst: 1MB}}}\n"
    with Testbed(load(tmp_path, star_text(name, more=more))) as bed:
        shares(bed, [(0, 1, 4 * MB)], [4 / 3])


# --- up and down -----------------------------------------------------------------------------------------------------


def test_up_twice_is_the_same_testbed_and_another_topology_is_another(name, tmp_path):
    first = Testbed(load(tmp_path, star_text(name)))
    assert first.up() is Made.BUILT
    made = left_of(name)
    assert len(made) == 5
    assert Testbed(load(tmp_path, star_text(name))).up() is Made.FOUND
    other = Testbed(load(tmp_path, star_text(name, hosts=2)))
    process = inside(first, 0)
    with pytest.raises(InputError, match="1 processes run inside this testbed"):
        other.up()
    assert left_of(name) == made
    process.kill()
    process.wait()
    assert other.up() is Made.REBUILT
    assert len(left_of(name)) == 4
    assert other.down()
    assert not other.down()
    assert left_of(name) == []


def test_one_that_has_lost_a_namespace_is_built_anew(star):
    bed = Testbed(star)
    bed.up()
    ip("netns", "delete", bed.namespace_of(1))
    assert bed.up() is Made.REBUILT
    assert len(left_of(star.name)) == 5
    bed.down()


def test_a_testbed_that_was_up_before_is_used_and_stays(star):
    kept = Testbed(star)
    kept.up()
    with Testbed(star) as bed:
        process = inside(bed, 0)
        with pytest.raises(InputError, match=f"process {os.getpid()} uses this testbed"):
            Testbed(star).up()
    assert process.wait(5) != 0
    assert kept.up() is Made.FOUND
    kept.down()


def test_down_ends_what_runs_inside_and_nothing_else(star, foreign):
    bed = Testbed(star)
    bed.up()
    own = inside(bed, 0)
    stubborn = subprocess.Popen(
        [
            *bed.exec_prefix(2),
            sys.executable,
            "-c",
            "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(600)",
        ],
        stdout=subprocess.PIPE,
    )
    stubborn.stdout.readline()
    other = subprocess.Popen([find_tools().ip, "netns", "exec", foreign, "sleep", "600"])
    here = subprocess.Popen(["sleep", "600"])
    try:
        assert bed.processes() == sorted([own.pid, stubborn.pid])
        bed.down()
        assert own.wait(5) == -signal.SIGTERM
        assert stubborn.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        assert here.poll() is None
        assert left_of(star.name) == [foreign]
    finally:
        for process in (own, stubborn, other, here):
            process.kill()
            process.wait()
        stubborn.stdout.close()


def test_a_namespace_of_somebody_else_is_not_touched(star):
    """Neither one that stands in the way, nor one that somebody put in the place of ours."""
    bed = Testbed(star)
    ours = bed.namespace_of(1)
    ip("netns", "add", ours)
    with pytest.raises(InputError, match=f"there is a namespace {ours} already"):
        bed.up()
    assert left_of(star.name) == [ours]
    ip("netns", "delete", ours)
    bed.up()
    ip("netns", "delete", ours)
    ip("netns", "add", ours)
    bed.down()
    assert left_of(star.name) == [ours]
    ip("netns", "delete", ours)


def test_a_command_that_fails_leaves_nothing_and_says_which(star):
    bed = Testbed(star)
    wrong = Step(
        tool=Tool.TC, namespace=bed.namespace_of(1), lines=("qdisc show dev e0", "qdisc add dev e0 root nosuch")
    )
    bed.plan = replace(bed.plan, steps=(*bed.plan.steps, wrong))
    with pytest.raises(
        CommandError, match=rf"`tc qdisc add dev e0 root nosuch` in namespace {bed.namespace_of(1)} failed"
    ):
        bed.up()
    assert left_of(star.name) == []
    with pytest.raises(CommandError), bed:
        pass
    assert left_of(star.name) == []


# --- other processes -------------------------------------------------------------------------------------------------

OWNER = """\
import subprocess, sys, time
from stanza_sim.cluster import load_cluster
from stanza_sim.testbed import Testbed
with Testbed(load_cluster(sys.argv[1])) as bed:
    child = subprocess.Popen([*bed.exec_prefix(0), "sleep", "600"])
    while child.pid not in bed.processes():
        time.sleep(0.01)
    print(child.pid, bed._guard.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(name, tmp_path) -> Iterator[tuple[subprocess.Popen, int, int]]:
    """A process that has a testbed with a process inside: itself, and the numbers of that and of the guard."""
    path = written(tmp_path, star_text(name))
    process = subprocess.Popen([sys.executable, "-c", OWNER, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child, guard = map(int, process.stdout.readline().split())
    yield process, child, guard
    process.kill()
    process.communicate()


def is_running(pid: int) -> bool:
    return process_of(pid).started != -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_of_a_process_that_is_ended(owner, name, foreign, number):
    process, child, guard = owner
    process.send_signal(number)
    process.wait(20)
    assert process.returncode == (-number if number in (signal.SIGKILL, signal.SIGINT) else 128 + number)
    assert soon(lambda: left_of(name) == [foreign])
    assert soon(lambda: not is_running(child) and not is_running(guard))


def test_the_next_command_cleans_up_where_the_guard_was_killed_too(owner, name, star):
    process, child, guard = owner
    with pytest.raises(InputError, match=f"process {process.pid} uses this testbed"):
        Testbed(star).up()
    with pytest.raises(InputError, match=f"process {process.pid} uses this testbed"):
        Testbed(star).down()
    assert collect() == []
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait()
    assert len(left_of(name)) == 5
    assert is_running(child)
    (line,) = collect()
    assert re.search(rf"cleaned up testbed {name} \(stz-\w+\), left behind by process {process.pid}", line)
    assert left_of(name) == []
    assert not is_running(child)


@pytest.fixture
def up_with(name, tmp_path) -> Callable[[str, str], subprocess.CompletedProcess[str]]:
    """Run `testbed up` with `tool` preceded by shell commands; they know $count, its calls, and $PPID, the command."""

    def run(tool: str, commands: str) -> subprocess.CompletedProcess[str]:
        shim = tmp_path / "bin" / tool
        shim.parent.mkdir()
        count = tmp_path / "count"
        shim.write_text(
            f"#!/bin/sh\necho >> {count}\ncount=$(wc -l < {count})\n{commands}\n"
            f'exec {getattr(find_tools(), tool)} "$@"\n'
        )
        shim.chmod(0o755)
        path = written(tmp_path, star_text(name, hosts=8, rate="50Mbps"))
        return subprocess.run(
            [sys.executable, "-m", "stanza_sim", "testbed", "up", path],
            env=os.environ | {"PATH": f"{shim.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("tool", "at", "number"),
    [("ip", 1, signal.SIGINT), ("ip", 7, signal.SIGTERM), ("ip", 15, signal.SIGHUP), ("tc", 5, signal.SIGINT)],
)
def test_up_that_is_interrupted_leaves_nothing(name, up_with, tool, at, number):
    done = up_with(tool, f"[ $count -ne {at} ] || kill -{number:d} $PPID")
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert left_of(name) == []


def test_up_that_is_interrupted_again_while_it_cleans_up_leaves_nothing(name, up_with):
    done = up_with("ip", f'case "$count $*" in 9" "* | *-force*) kill -{signal.SIGINT:d} $PPID;; esac')
    assert done.returncode == 130, done.stderr
    assert left_of(name) == []


def test_up_that_is_killed_is_cleaned_up_by_the_next_command(name, up_with):
    done = up_with("tc", f"[ $count -ne 5 ] || kill -{signal.SIGKILL:d} $PPID")
    assert done.returncode == -signal.SIGKILL
    assert len(left_of(name)) == 10
    (line,) = [line for line in collect() if name in line]  # others may have left something as well
    assert f"cleaned up testbed {name} " in line
    assert left_of(name) == []
