"""Runs the steps of a plan with `ip` and `tc`, in batches, and says which line failed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.testbed.steps import Step, Tool

NAMESPACES = Path("/run/netns")
"""Where `ip netns` keeps the names of namespaces."""
_MORE_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where a user's PATH often does not lead."""
_LIMIT_S = 60.0
_FAILED_LINE = re.compile(r"Command failed -:(\d+)")


class CommandError(RunError):
    """A command failed that should not; the message says which and what it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Paths of the programs of iproute2."""

    ip: str
    tc: str


def find_program(name: str) -> str | None:
    """Return the path of a program, also where only root looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_MORE_PATHS}")


def find_tools() -> Tools:
    """Return where `ip` and `tc` are. Raises `InputError` if they are not installed."""
    ip, tc = find_program("ip"), find_program("tc")
    if ip is None or tc is None:
        lacks = " and ".join(name for name, path in (("ip", ip), ("tc", tc)) if path is None)
        raise InputError(
            f"a testbed needs iproute2: {lacks} not found",
            where="testbed",
            hint="install it with your package manager, such as apt install iproute2",
        )
    return Tools(ip=ip, tc=tc)


def call(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with `text` as its input; whether it succeeds is for the caller to see.

    It is not in this process's group, so that Ctrl-C reaches this process alone and cleaning up is not cut short.
    """
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
        start_new_session=True,
        timeout=_LIMIT_S,
        check=False,
    )


def run_step(tools: Tools, step: Step) -> None:
    """Run a step. Raises `CommandError` with the line that failed."""
    match step.tool:
        case Tool.SYSCTL:
            done = call([tools.ip, "netns", "exec", step.namespace or "", "/bin/sh", "-e"], _sysctl_script(step.lines))
        case Tool.IP | Tool.TC:
            place = [] if step.namespace is None else ["-n", step.namespace]
            done = call([getattr(tools, step.tool), *place, "-batch", "-"], "".join(f"{line}\n" for line in step.lines))
    if done.returncode:
        number = _FAILED_LINE.search(done.stderr)
        line = step.lines[int(number[1]) - 1] if number and int(number[1]) <= len(step.lines) else step.lines[0]
        raise CommandError(_failure(f"{step.tool} {line}", step.namespace, done.stderr))


def delete_namespaces(tools: Tools, names: Iterable[str]) -> None:
    """Delete namespaces, with all interfaces in them; all are tried. Raises `CommandError` if any remains."""
    names = list(names)
    done = call([tools.ip, "-force", "-batch", "-"], "".join(f"netns delete {name}\n" for name in names))
    if left := [name for name in names if (NAMESPACES / name).exists()]:
        raise CommandError(_failure(f"ip netns delete {' '.join(left)}", None, done.stderr))


def _sysctl_script(lines: Iterable[str]) -> str:
    """Return shell commands that set values in the namespace that they run in; those with a leading - may fail."""
    script = []
    for line in lines:
        key, _, value = line.removeprefix("-").partition("=")
        write = f"echo '{value}' > /proc/sys/{key.replace('.', '/')}"
        script.append(f"{{ {write}; }} 2> /dev/null || true" if line.startswith("-") else write)
    return "\n".join(script) + "\n"


def _failure(command: str, namespace: str | None, answer: str) -> str:
    said = next((line for line in answer.splitlines() if line.strip() and not _FAILED_LINE.search(line)), "no message")
    where = f" in namespace {namespace}" if namespace else ""
    return f"`{command}`{where} failed: {said.strip()}"
