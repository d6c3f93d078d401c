"""Runs a command of `stanza-sim` as on a machine that is not Linux: `python tests/elsewhere.py run ec2_v100`.

What only Linux, or only Unix, has is taken away before anything of the package is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import NoReturn

UNIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
UNIX_NAMES = (
    "fchmod", "fork", "getuid", "geteuid", "getloadavg", "mkfifo", "sched_getaffinity", "sched_setaffinity",
    "sched_setscheduler", "sysconf", "pidfd_open", "setsid", "killpg", "getpgid",
)  # fmt: skip
LIBRARIES = (
    "asyncio", "concurrent.futures.process", "filelock", "multiprocessing.popen_spawn_posix", "networkx", "numba",
    "pydantic", "quantiphy", "rich.console", "rich.progress", "ruamel.yaml", "simpy", "subprocess", "typer",
)  # fmt: skip
UNIX_SIGNALS = ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "setitimer", "alarm", "pthread_kill")


class _Absent(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in UNIX_MODULES:
            raise ModuleNotFoundError(f"there is no {name} here", name=name)


def hide() -> None:
    """Take away what is not there on Windows, and what only Linux has. Libraries know by themselves where they run."""
    for name in LIBRARIES:
        import_module(name)
    sysconfig.get_config_vars()
    sys.meta_path.insert(0, _Absent())
    for name in UNIX_MODULES & set(sys.modules):
        del sys.modules[name]
    for name in UNIX_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in UNIX_SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    sys.platform = "elsewhere"


def main() -> NoReturn:
    """Run the command in the arguments."""
    hide()
    from stanza_sim.cli import main as command

    command()
    sys.exit(0)


if __name__ == "__main__":
    main()
