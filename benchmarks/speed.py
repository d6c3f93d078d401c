"""How long commands and calls take, as a user makes them: `python benchmarks/speed.py [options]`.

Every case runs in a new process, `--repeats` times; medians count. Wall time has starting Python and importing in it,
CPU time is that of all processes of a command, and memory is that of the largest of them. A case may time phases of its
own besides, such as building and checking a schedule.

- `--against DIR` runs each case in another checkout too, the two in turn, and says how many times quicker this one is.
- `--record` adds what was measured to `benchmarks/speed.jsonl`, with the machine, versions and date: one line a run.
- The column `last` has what that file says was last measured on as many cores of the same processor.
- `--flows` also runs `flows.py`, the flow-level solver beside SimGrid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
HISTORY = Path(__file__).with_name("speed.jsonl")

FLOWS = """
import json, time
from scenarios import as_case, scenario
from stanza_sim import simulate_flows
simulate_flows(as_case(scenario("sharded", "star", 42, 0.1)))
case = as_case(scenario("sharded", "star", 64, 0.1))
begin = time.perf_counter()
simulate_flows(case)
print(json.dumps({"simulate": time.perf_counter() - begin}))
"""
COLOCATED = """
from stanza_sim.cluster import load_cluster
from stanza_sim.model import zoo
from stanza_sim import strategies
from stanza_sim.simulate import costs_for, simulate
cluster, model = load_cluster({topology!r}, nodes={nodes}), zoo.get("vgg16")
chosen = strategies.get("parameter_server")
schedule = chosen.build(
    model, world_size={nodes}, batch_per_worker=32,
    settings=chosen.Settings(placement="colocated", assignment="cut"),
)
simulate(schedule, model, cluster, costs_for(cluster, model), fold_ranks={folded})
"""
MANY_OPS = """
import json, time
from stanza_sim.cluster import load_cluster
from stanza_sim.model import zoo
from stanza_sim import strategies
from stanza_sim.schedule import check
from stanza_sim.simulate import costs_for, simulate
cluster, model = load_cluster("ec2-p3-10", nodes=4), zoo.get("resnet152")
chosen, seconds, begin = strategies.get("stanza"), {}, time.perf_counter()
def done(what):
    global begin
    seconds[what] = time.perf_counter() - begin
    begin = time.perf_counter()
schedule = chosen.build(
    model, world_size=4, batch_per_worker=336, settings=chosen.Settings(fc_workers=1, microbatches=336)
)
done("build")
check(schedule, model)
done("check")
simulate(schedule, model, cluster, costs_for(cluster, model))
done("simulate")
print(json.dumps({**seconds, "ops": len(schedule.ops)}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command line (`words`), or a program (`code`), that a checkout runs; `repeats` at most, `limit_s` each."""

    name: str
    words: tuple[str, ...] = ()
    code: str = ""
    repeats: int = 100
    limit_s: float = 300.0
    cold: bool = False
    """Whether nothing that was compiled before is there."""


def _row(strategy: str, **settings: object) -> str:
    return json.dumps([{"strategy": strategy, "settings": settings}])


VGG16 = ("--set", "models=[{model: vgg16}]")
JITTER = ("--set", "simulation.repeats=20", "--set", "simulation.jitter={kind: lognormal, spread: 0.1}")
CASES = (
    Case(name="run ec2_v100", words=("run", "ec2_v100")),
    Case(name="plan ec2_v100", words=("plan", "ec2_v100", "--budget", "300s", "--json"), repeats=5),
    Case(name="run ec2_v100, 20 repeats with jitter", words=("run", "ec2_v100", *JITTER)),
    Case(name="the same, nothing compiled", words=("run", "ec2_v100", *JITTER), cold=True),
    Case(
        name="256 co-located shards, leaf-spine, unfolded",
        code=COLOCATED.format(topology="leaf-spine", nodes=256, folded=False),
    ),
    Case(name="129 thousand flows", code=FLOWS),
    Case(
        name="1,024 hosts, co-located servers, fat-tree",
        code=COLOCATED.format(topology="fat-tree", nodes=1024, folded=True),
        repeats=3,
    ),
    *(
        Case(
            name=f"plan --budget 10s, {nodes:,} nodes",
            words=("plan", "ec2_v100", "--budget", "10s", "--set", f"nodes={nodes}", "--json"),
            repeats=5,
        )
        for nodes in (1000, 10_000)
    ),
    Case(name="schedule of 36 thousand ops", code=MANY_OPS),
    *(
        Case(
            name=f"{nodes:,} nodes, one row, {strategy}",
            words=("run", "ec2_v100", "--set", f"nodes={nodes}", *VGG16, "--set", f"strategies={rows}"),
        )
        for nodes in (10_000, 100_000)
        for strategy, rows in (
            ("PS", _row("parameter_server")),
            ("PS co-located", _row("parameter_server", placement="colocated", assignment="cut")),
            ("all-reduce", _row("all_reduce")),
            ("Stanza", _row("stanza")),
        )
    ),
)


@dataclass(slots=True)
class Measured:
    """What the runs of a case took: seconds of wall and CPU time, MiB of the largest process, seconds of phases."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""

    def medians(self) -> dict[str, float]:
        """The median of everything that was measured."""
        everything = {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "peak_mib": self.peak_mib, **self.phases}
        return {name: round(statistics.median(values), 4) for name, values in everything.items() if values}


def run(case: Case, checkout: Path, into: Measured) -> None:
    """Run a case once in `checkout`. What fails or takes too long is noted in `into`, and not run again."""
    words = ["-m", "stanza_sim", *case.words] if case.words else ["-c", case.code]
    path = os.pathsep.join([str(checkout), str(HERE / "benchmarks")])
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        caches = {"NUMBA_CACHE_DIR": empty, "XDG_CACHE_HOME": empty} if case.cold else {}
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": path, **caches},
            stdout=out,
            stderr=said,
            cwd=empty,
            start_new_session=True,
        )
        status, usage = _wait(process.pid, begin + case.limit_s)
        wall_s = time.perf_counter() - begin
        if status is None or usage is None:
            into.failed = f"over {case.limit_s:g} s"
            return
        if status:
            said.seek(0)
            into.failed = f"status {status}: {said.read().decode(errors='replace').strip()[-200:]}"
            return
        out.seek(0)
        phases = {} if case.words else json.loads(out.read().decode() or "{}")
    into.wall_s.append(wall_s)
    into.cpu_s.append(usage.ru_utime + usage.ru_stime)
    into.peak_mib.append(usage.ru_maxrss / 1024)
    for name, seconds in phases.items():
        into.phases.setdefault(name, []).append(seconds)


def _wait(pid: int, end_s: float) -> tuple[int | None, Any]:
    """Exit status of a process and what it used, with those that it waited for; (None, None) if it had to be ended."""
    while time.perf_counter() < end_s:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.wait4(pid, 0)
    return None, None


def processor() -> str:
    """The name of this machine's processor."""
    with Path("/proc/cpuinfo").open() as file:
        named = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(named, platform.processor())


def about() -> dict[str, Any]:
    """What a line of the history says of where and when it was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit.stdout.strip(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "numba")},
    }


def last_like(machine: Mapping[str, Any]) -> dict[str, Any]:
    """For each case what was last measured of it on a machine like this one."""
    lines = HISTORY.read_text(encoding="utf-8").splitlines() if HISTORY.exists() else []
    found: dict[str, Any] = {}
    for line in lines:
        known = json.loads(line)
        if all(known[key] == machine[key] for key in ("processor", "cores")):
            found |= known["cases"]
    return found


def stolen_s() -> float:
    """Seconds of all cores that the host has taken away so far."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def table(names: Sequence[str], here: Mapping[str, Measured], there: Mapping[str, Measured], known: Any) -> Table:
    """A line for each case, and one for each of its phases."""
    made = Table(title="medians: wall and CPU seconds, MiB of the largest process", title_justify="left")
    for column in ("case", "wall, s", "CPU, s", "MiB", "before, s", "ratio", "last, s"):
        made.add_column(column, justify="left" if column == "case" else "right", no_wrap=column != "case")
    for name in names:
        ours, theirs = here[name], there.get(name, Measured())
        now, before, last = ours.medians(), theirs.medians(), known.get(name, {})
        if "wall_s" not in now:
            made.add_row(name, ours.failed)
            continue
        for key in ("wall_s", *ours.phases):
            first = key == "wall_s"
            cells = [name if first else f"  {key}", f"{now[key]:,.2f}"]
            cells += [f"{now['cpu_s']:,.2f}", f"{now['peak_mib']:,.0f}"] if first else ["", ""]
            cells += [f"{before[key]:,.2f}" if key in before else theirs.failed[:12] if first else ""]
            cells += [f"{before[key] / now[key]:.1f}" if key in before else ""]
            cells += [f"{last[key]:,.2f}" if key in last else ""]
            made.add_row(*cells)
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (default 5)")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, to run in turn with this one")
    parser.add_argument("--record", action="store_true", help="add a line to the history")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--flows", action="store_true", help="also run flows.py")
    parser.add_argument("--simgrid-python", metavar="PATH", help="for flows.py: an interpreter that can import simgrid")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be above zero")
    if options.against is not None and not (options.against / "stanza_sim").is_dir():
        parser.error(f"--against: {options.against} is no checkout")
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"--only: no case has {options.only!r} in its name")
    here = {case.name: Measured() for case in cases}
    there = {case.name: Measured() for case in cases} if options.against else {}
    machine, taken_s, began_s = about(), stolen_s(), time.perf_counter()
    console = Console(width=110)
    for case in cases:
        for _ in range(min(options.repeats, case.repeats)):
            for checkout, found in ((options.against, there), (HERE, here)):
                if checkout is not None and not found[case.name].failed:
                    run(case, checkout.resolve(), found[case.name])
        print(f"{case.name}: {here[case.name].failed or here[case.name].medians()}", file=sys.stderr)
    console.print(table([case.name for case in cases], here, there, last_like(machine)))
    machine["steal"] = round((stolen_s() - taken_s) / machine["cores"] / (time.perf_counter() - began_s), 4)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.json is not None:
        everything = {"here": here, "against": there}
        values = {where: {name: asdict(one) for name, one in found.items()} for where, found in everything.items()}
        options.json.write_text(json.dumps({**machine, **values}, indent=2) + "\n", encoding="utf-8")
    if options.record:
        line = {**machine, "cases": {name: one.medians() for name, one in here.items() if one.wall_s}}
        with HISTORY.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if options.flows:
        peer = ["--simgrid-python", options.simgrid_python] if options.simgrid_python else []
        subprocess.run([sys.executable, str(Path(__file__).with_name("flows.py")), *peer], check=True)


if __name__ == "__main__":
    main()
