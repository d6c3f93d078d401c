"""The scripts in examples/ that start ranks on several hosts, with launchers that only say how they were called."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stanza_sim.execute.start import environment
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TELL = """\
#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ["OMP_NUM_THREADS"]]))
"""

pytestmark = [pytest.mark.processes, pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")]


def call(folder: Path, script: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script with launchers that print their arguments and their number of threads."""
    for name in ("torchrun", "srun"):
        launcher = folder / "bin" / name
        launcher.parent.mkdir(exist_ok=True)
        launcher.write_text(TELL.format(python=sys.executable))
        launcher.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "OMP_"))}
    env = kept | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"} | more
    command = ["bash", str(EXAMPLES / script), *args]
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=20, check=False)


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm-gpu.sbatch", "torchrun.sh"])
def test_bash_can_read_it(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(EXAMPLES / script)], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_torchrun_is_told_hosts_and_where_they_meet(tmp_path: Path) -> None:
    done = call(tmp_path, "torchrun.sh", "3", "1", "10.0.0.1", "laptop", "--json", MASTER_PORT="4000")
    arguments, threads = json.loads(done.stdout)
    assert " ".join(arguments) == (
        "--nnodes 3 --node-rank 1 --nproc-per-node 1 --master-addr 10.0.0.1 --master-port 4000 "
        "-m stanza_sim run laptop --json --execute --set nodes=3"
    )
    assert threads == "1"
    assert f"run {EXAMPLES}/experiment.yaml --execute" in " ".join(
        json.loads(call(tmp_path, "torchrun.sh", "2", "0", "a").stdout)[0]
    )


def test_torchrun_starts_as_many_ranks_on_each_host_as_it_is_told(tmp_path: Path) -> None:
    done = call(tmp_path, "torchrun.sh", "2", "1", "10.0.0.1", "mine", PROCESSES="8")
    arguments, _ = json.loads(done.stdout)
    assert arguments[arguments.index("--nproc-per-node") + 1] == "8"
    assert arguments[-2:] == ["--set", "nodes=2"]


def test_torchrun_without_its_arguments_says_what_they_are(tmp_path: Path) -> None:
    done = call(tmp_path, "torchrun.sh", "3", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "HOSTS HOST_NUMBER ADDRESS_OF_HOST_0" in done.stderr


def test_the_batch_script_starts_a_step_on_all_nodes(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "4", "SLURM_CPUS_PER_TASK": "2"}
    arguments, threads = json.loads(call(tmp_path, "slurm.sbatch", **job).stdout)
    assert " ".join(arguments) == (
        "--cpus-per-task=2 --kill-on-bad-exit=1 python3 -m stanza_sim run examples/experiment.yaml --execute "
        "--output results-17 --set nodes=4 --set execute.threads_per_rank=2"
    )
    assert threads == "2"
    assert call(tmp_path, "slurm.sbatch", SLURM_JOB_ID="17").returncode != 0  # not in a job: no number of nodes


def test_the_batch_script_for_gpus_asks_for_one_for_each_task(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "4"}
    arguments, threads = json.loads(call(tmp_path, "slurm-gpu.sbatch", "mine", **job).stdout)
    assert " ".join(arguments) == (
        "--cpus-per-task=4 --kill-on-bad-exit=1 python3 -m stanza_sim run mine --execute "
        "--output results-17 --set nodes=2 --set execute.threads_per_rank=4"
    )
    assert threads == "4"
    one, _ = json.loads(call(tmp_path, "slurm-gpu.sbatch", "mine", **job | {"SLURM_NNODES": "1"}).stdout)
    assert not any(word.startswith("nodes=") for word in one)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\d+)$", (EXAMPLES / "slurm-gpu.sbatch").read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    done = call(tmp_path, "slurm-gpu.sbatch", **job)
    assert (done.returncode, done.stdout) == (2, "")
    assert "EXPERIMENT" in done.stderr


def test_their_experiment_takes_the_number_of_hosts() -> None:
    cluster = cluster_of(load_experiment(str(EXAMPLES / "experiment.yaml"), ["nodes=3"]))
    assert [p.host for p in cluster.placement] == [0, 1, 2]


def test_every_variable_that_is_read_is_documented() -> None:
    source = Path(environment.__file__).read_text()
    code = source.replace(environment.place.__doc__ or "", "")
    read = set(re.findall(r'"((?:SLURM_|MASTER_)[A-Z_]+|(?:LOCAL_)?RANK|WORLD_SIZE)"', code))
    assert len(read) == 12
    assert read <= set(re.findall(r"`([A-Z_]+)`", (EXAMPLES / "README.md").read_text()))
