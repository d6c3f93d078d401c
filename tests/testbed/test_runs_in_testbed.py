"""`run --execute --testbed`: one rank in each host's namespace, and nothing left behind, however it ends."""

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from stanza_sim.testbed import Testbed
from tests.testbed.short_calibration import SHORT
from tests.testbed.testbed_clusters import load, star_text

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("testbed")]  # one machine has one set of names

ROOT = Path(__file__).parents[2]
EXPERIMENT = """\
name: bed
cluster: {topology}
batch_per_worker: 8
models: [{{model: "stanza_sim.model.examples:digits_cnn", input_shape: [1, 8, 8]}}]
strategies:
  - {{strategy: parameter_server, label: server, settings: {{servers: 1}}}}
  - {{strategy: all_reduce, label: ring}}
training: {{iterations: 7, warmup: 2}}
execute: {{compute: emulated}}
"""


class Run:
    """A run in a testbed of its own name."""

    def __init__(self, folder: Path, *args: str, cache: Path | None = None) -> None:
        self.bed = Testbed(load(folder, star_text(name=f"run-{folder.name}"[:40], hosts=3, rate="200Mbps")))
        (folder / "experiment.yaml").write_text(EXPERIMENT.format(topology=folder / "topology.yaml"))
        command = [*SHORT, "run", "experiment.yaml", "--execute", "--testbed", *args]
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(cache or folder / "cache"),
        }
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ranks(self) -> list[int]:
        """Processes of ranks once all three are inside their namespaces, with their connections made."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            inside = [pid for pid in self.bed.processes() if "rank_main" in Path(f"/proc/{pid}/cmdline").read_text()]
            if len(inside) == 3 and self.connected(inside[0]):
                return inside
            time.sleep(0.1)
        raise AssertionError(f"no ranks in {self.bed.prefix}: {self.process.communicate()}")

    def connected(self, pid: int) -> bool:
        """Whether a process has connections to both other hosts over its namespace's interface."""
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        peers = {fields[2].partition(":")[0] for fields in map(str.split, lines) if fields[3] == "01"}
        return len(peers - {"0100007F"}) >= 2

    def left(self) -> list[str]:
        """Namespaces that are there."""
        folder = Path("/run/netns")
        return [p.name for p in folder.iterdir() if p.name.startswith(self.bed.prefix)] if folder.is_dir() else []


def within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.05)
    return done()


def measured(folder: Path, *args: str, dilate: float = 1) -> dict[str, float]:
    """The error of each row, in percent, of a run that calibrates first."""
    folder.mkdir()
    run = Run(folder, "--json", *args)
    out, err = run.process.communicate(timeout=110)
    assert run.process.returncode == 0, err
    assert run.left() == []
    rows = json.loads(out)["runs"]
    for row in rows:
        assert row["measured"]["compute"] == "emulated"
        assert row["measured"]["dilate"] == dilate
        # On loopback an iteration would take a tenth of this: the messages crossed the shaped links.
        assert row["predicted"]["exposed_comm_s"] > 0.5 * row["predicted"]["iteration_s"]
    return {row["label"]: row["error_pct"] for row in rows}


@pytest.mark.alone
@pytest.mark.timeout(360)
def test_what_is_predicted_is_measured(tmp_path):
    """What else this machine does makes one run late; a wrong prediction is wrong in each of three."""
    for attempt in "first", "second", "third":
        errors = measured(tmp_path / attempt)
        if all(abs(error) < 12 for error in errors.values()):
            return
    raise AssertionError(errors)


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(360)
def test_what_is_predicted_of_a_dilated_run_is_measured(tmp_path):
    """Ten times slower, at ten times the rate that this machine is asked for: reported times are of the fast one."""
    for attempt in "first", "second", "third":
        folder = tmp_path / attempt
        errors = measured(folder, "--set", "network.rate=2Gbps", "--dilate", "10", "-o", "out", dilate=10)
        rows = json.loads((folder / "out" / "result.json").read_text())["runs"]
        for row in rows:
            assert row["undilated"]["iteration_s"] == pytest.approx(row["predicted"]["iteration_s"], rel=0.5)
            # Spans are of the fast cluster too: an iteration of them fits the iteration that is reported.
            (path,) = (folder / "out" / "spans").glob(f"*{row['label']}.measured.csv")
            with path.open() as file:
                spans = [s for s in csv.DictReader(file) if s["iteration"] == "3"]
            length = max(float(s["end_s"]) for s in spans) - min(float(s["start_s"]) for s in spans)
            assert length < 4 * row["measured"]["iteration_s_max"]
        if all(abs(error) < 12 for error in errors.values()):
            return
    raise AssertionError(errors)


@pytest.mark.parametrize(
    "how",
    [
        "rank",
        "launcher",
        pytest.param("terminate", marks=pytest.mark.nightly),
        pytest.param("interrupt", marks=pytest.mark.nightly),
    ],
)
def test_nothing_is_left_behind(tmp_path, how):
    run = Run(tmp_path, "-o", "out", "--set", "training.iterations=100000")
    ranks = run.ranks()
    match how:
        case "rank":
            os.kill(ranks[1], signal.SIGKILL)
        case "launcher":
            run.process.kill()
        case "terminate":
            run.process.terminate()
        case "interrupt":
            run.process.send_signal(signal.SIGINT)
    out, err = run.process.communicate(timeout=60)
    status = {"rank": 1, "launcher": -signal.SIGKILL, "terminate": 128 + signal.SIGTERM, "interrupt": 130}[how]
    assert (run.process.returncode, out) == (status, "")
    assert "Traceback" not in err
    if how == "rank":
        assert "was ended by signal 9" in err
    assert within(20, lambda: run.left() == [] and not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    assert {p.name for p in tmp_path.iterdir()} <= {"topology.yaml", "experiment.yaml", "cache"}


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a file system of its own that has no room left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        with (folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_nothing(tmp_path, full_disk):
    run = Run(tmp_path, "-o", str(full_disk / "out"), cache=full_disk / "cache")
    out, err = run.process.communicate(timeout=110)
    assert (run.process.returncode, out) == (2, "")
    assert "No space left on device" in err
    assert "the calibration is not kept" in err
    assert "Traceback" not in err
    assert run.left() == []
    assert [p.name for p in full_disk.rglob("*") if not p.is_dir()] == ["filler"]
