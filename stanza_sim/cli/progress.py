"""How far a command is, by bars on stderr if that is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID

    from stanza_sim.base.telling import Tell


def terminal() -> Console | None:
    """A console on stderr; None if that is no terminal, on which bars can be drawn."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    return console if console.is_terminal else None


@contextmanager
def bars(*columns: ProgressColumn) -> Iterator[Tell]:
    """Draw a bar of `columns` for each text that is told of; one with a total of 0 is left out."""
    from rich.progress import Progress

    if (console := terminal()) is None:
        yield lambda what, done, total: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if not total:
                return
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def progress() -> AbstractContextManager[Tell]:
    """Show what is done, of how much, and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
