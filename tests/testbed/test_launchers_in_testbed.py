"""Ranks that a launcher starts on two hosts of a testbed, by the scripts in examples/: torchrun, and Slurm as faked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from stanza_sim.testbed import Testbed
from tests.testbed.testbed_clusters import load, star_text

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("testbed")]  # one machine has one set of names

ROOT = Path(__file__).parents[2]
# What a host has of its own and a namespace of the network has not: a name.
NAMED = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"
SRUN = """\
#!{python}
import json, os, subprocess, sys
options = [a for a in sys.argv[1:] if a.startswith("--") and "=" in a]
command = sys.argv[1 + len(options):]
tasks = []
for rank, prefix in enumerate(json.loads(os.environ["PREFIXES"])):
    own = {{"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}}
    tasks.append(subprocess.Popen([*prefix, *command], env=os.environ | own))
sys.exit(max(task.wait() for task in tasks))
"""
SMALL = ["--json", "--set", "network.rate=500Mbps", "--set", "strategies=[all_reduce]"]
SMALL += ["--set", "training.iterations=8", "--set", "training.warmup=2"]
EXPERIMENT = str(ROOT / "examples" / "experiment.yaml")


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_a_launcher_starts_ranks_on_two_hosts(tmp_path: Path, launcher: str) -> None:
    bed = Testbed(load(tmp_path, star_text(name=f"launch-{uuid4().hex[:8]}", hosts=2, rate="500Mbps")))
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in (("python3", '#!/bin/sh\nexec "{python}" "$@"\n'), ("srun", SRUN)):
        (binaries / name).write_text(text.format(python=sys.executable))
        (binaries / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_"))}
    path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = kept | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": bed.interface}
    with bed:
        on_host = [
            [*bed.exec_prefix(h), "unshare", "--uts", sys.executable, "-c", NAMED, f"host-{h}"] for h in range(2)
        ]
        if launcher == "torchrun":
            script = str(ROOT / "examples" / "torchrun.sh")
            calls = [[*on_host[h], "bash", script, "2", str(h), bed.address_of(0), EXPERIMENT, *SMALL] for h in (0, 1)]
        else:
            net, _, first = bed.address_of(0).rpartition(".")
            job = {"SLURM_JOB_ID": "45001", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1"}
            # A list of nodes in Slurm's form, whose first name leads to host 0.
            env |= job | {"SLURM_JOB_NODELIST": f"{net}.[{first}-{int(first) + 1}]", "PREFIXES": json.dumps(on_host)}
            calls = [["bash", str(ROOT / "examples" / "slurm.sbatch"), EXPERIMENT, *SMALL]]
        pipe = subprocess.PIPE
        running = [subprocess.Popen(c, cwd=tmp_path, env=env, text=True, stdout=pipe, stderr=pipe) for c in calls]
        try:
            said = [process.communicate(timeout=100) for process in running]
        finally:
            for process in running:
                process.kill()
    assert [process.returncode for process in running] == [0] * len(running), said
    assert [out for out, _ in said[1:]] == [""] * (len(running) - 1)  # only rank 0 prints
    (row,) = json.loads(said[0][0])["runs"]
    assert row["nodes"] == 2
    # Each of two ranks sends the 7.3 MB of gradients once: over loopback that would take a tenth of the time.
    assert row["measured"]["iteration_s"] > 7.3e6 * 8 / 500e6
    assert row["measured"]["loss_last"] > 0
    assert (tmp_path / "results-45001" / "result.json").exists() == (launcher == "slurm")
