"""How far a command is, by bars on stderr if that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from stanza_sim.cli.console import speaks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID

    from stanza_sim.base.telling import Tell


UNKNOWN = -1
"""The total of what cannot be counted: its bar only moves."""


def terminal() -> Console | None:
    """A console on stderr; None if that is no terminal, on which bars can be drawn."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    return console if console.is_terminal and speaks() else None


@contextmanager
def bars(*columns: ProgressColumn, alone: bool = False) -> Iterator[Tell]:
    """Draw a bar of `columns` for each text that is told of; one with a total of 0 is left out.

    Where processes are forked meanwhile, `alone` draws them when something is told, and by no thread of their own,
    which would hold locks that no fork releases; what forked processes print is not theirs.
    """
    from rich.progress import Progress

    if (console := terminal()) is None:
        yield lambda what, done, total: None
        return
    stderr = sys.stderr
    if alone:
        os.register_at_fork(after_in_child=lambda: setattr(sys, "stderr", stderr))
    with Progress(*columns, console=console, transient=True, auto_refresh=not alone) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if not total:
                return
            end = None if total == UNKNOWN else total
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=end)
            bar.update(tasks[what], completed=done, total=end, refresh=alone)

        yield tell


def progress(*, alone: bool = False) -> AbstractContextManager[Tell]:
    """Show what is done, of how much, and the time left; `alone` as for `bars`."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return bars(*columns, alone=alone)


@contextmanager
def progress_if_seen() -> Iterator[Tell | None]:
    """As `progress`; None where no bars can be drawn, for what then says in lines how far it is."""
    if terminal() is None:
        yield None
        return
    with progress(alone=True) as tell:
        yield tell


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show `text`, and for how long, while something is done whose end is not known before."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with bars(*columns) as tell:
        tell(text, 0, UNKNOWN)
        yield
