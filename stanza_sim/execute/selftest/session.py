"""What the command calls: what it is given is checked first, then all checks are carried out and a folder is left.

This process imports no torch: whether there is a GPU is asked of another one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EACCES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_whole
from stanza_sim.base.processes import cores, scratch_folder
from stanza_sim.base.units import seconds
from stanza_sim.base.version import __version__
from stanza_sim.execute.selftest.checks import groups
from stanza_sim.execute.selftest.outcome import Finding, Group
from stanza_sim.execute.selftest.runner import Runner, Tell
from stanza_sim.execute.start.environment import place

ASKING_S = 60.0
"""How long torch may take to say which GPUs it finds."""
_ASK = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({"built": torch.version.cuda, "count": count}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found, and whether the budget left no time for a check."""

    found: tuple[Finding, ...]
    unfinished: bool = False

    @property
    def exit_status(self) -> int:
        """0 where all checks passed, or need a GPU or a feature that is not here; 1 otherwise."""
        return int(self.unfinished or any(f.status == "failed" for f in self.found))

    def to_json(self) -> str:
        """What `--json` prints."""
        return json.dumps([f.as_json() for f in self.found], indent=2) + "\n"


def selftest(
    *,
    gpu: bool = False,
    output: Path | None = None,
    budget: str = "540s",
    tell: Tell = lambda finding: None,
    table: Callable[[Sequence[Finding]], str] | None = None,
    chosen: Sequence[Group] | None = None,
) -> Report:
    """Carry out all checks, those on a GPU only with `gpu`; `tell` is called with each outcome.

    With an `output` folder, which must not exist or be empty, it keeps `checks.jsonl`, `machine.json`, what checks have
    measured and what failed ones wrote, and with `table` its text in `table.txt`, also after Ctrl-C. `budget` is a text
    with a unit; `chosen` replaces the shipped checks. Raises `InputError`, before anything runs, for a folder that
    cannot be taken, a budget that is no time, and where torch or, with `gpu`, a GPU is missing.
    """
    budget_s = seconds(budget, where="--budget", zero=False)
    if (launcher := place()) is not None:
        raise InputError(
            f"{launcher.launcher} has started this process as one rank, and the self-test starts its own",
            where="selftest",
            hint="run it without a launcher",
        )
    if importlib.util.find_spec("torch") is None:
        raise InputError("the self-test needs torch, and it is not installed", hint="pip install 'stanza-sim[torch]'")
    if output is not None:
        _check_folder(output)
    environment = _first_gpu() if gpu else {}
    folder = scratch_folder() if output is None else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(json.dumps(machine(), indent=2) + "\n", folder / "machine.json")
        why = None if gpu else "needs a GPU; add --gpu where there is one"
        runner = Runner(folder=folder, budget_s=budget_s, gpu=why, tell=tell, environment=environment)
        try:
            runner.run(groups(gpu=gpu) if chosen is None else chosen)
        finally:
            if table is not None and output is not None:
                write_whole(table(runner.found), folder / "table.txt")
        return Report(found=tuple(runner.found), unfinished=runner.unfinished)
    finally:
        if output is None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_folder(path: Path) -> None:
    """Raise `InputError` unless `path` is an empty folder, or can become one."""
    if path.exists() and not path.is_dir():
        raise InputError("is no folder", where=f"-o {path}", hint="name a new or an empty folder")
    if path.is_dir() and any(path.iterdir()):
        raise InputError("is not empty", where=f"-o {path}", hint="name a new or an empty folder")
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        hint = "name a folder that you may write to"
        raise InputError(f"cannot be written: {error.strerror}", where=f"-o {path}", hint=hint) from None
    if made:
        path.rmdir()


def _first_gpu() -> dict[str, str]:
    """What makes the first visible GPU the only one. Raises `InputError` where torch finds none."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK], capture_output=True, text=True, timeout=ASKING_S, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise InputError(
            "torch cannot say whether there is a GPU", where="--gpu", hint="leave --gpu out: `versions` says why"
        ) from None
    if not found["count"]:
        why = "finds none on this machine" if found["built"] else "is built for CPUs only"
        hint = "check nvidia-smi and CUDA_VISIBLE_DEVICES" if found["built"] else "install torch's build for CUDA"
        raise InputError(f"there is no GPU: torch {why}", where="--gpu", hint=f"{hint}, or leave --gpu out")
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"}


def machine() -> dict[str, object]:
    """Versions of what decides how a run goes, the kernel and the cores; `gpu:provenance` adds the GPU."""
    found: dict[str, object] = {
        "stanza_sim": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores(),
    }
    for name in ("torch", "torchvision", "numpy", "scikit-learn", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
