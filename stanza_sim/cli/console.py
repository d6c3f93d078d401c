"""Speaking to the user: results on stdout, all else on stderr, errors without traceback and with an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from stanza_sim.base.errors import InputError, RunError, StanzaError
from stanza_sim.base.tables import shortened
from stanza_sim.base.telling import Detailed, Say, printable

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


def speaks() -> bool:
    """Whether this process speaks to the user: rank 0 of those that torchrun or Slurm started, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def say(text: str) -> None:
    """Print a line to stderr, so that stdout holds nothing but the result."""
    if speaks():
        typer.echo(printable(text), err=True)


def warning_once(say: Say) -> Say:
    """Return `say` for a command of several runs: it leaves out warnings that it has said before."""
    told: set[str] = set()

    def unless_told(text: str) -> None:
        if text not in told:
            say(text)
        if text.startswith("warning: "):
            told.add(text)

    return unless_told


def saying(verbose: bool) -> Say:
    """`say`, for somebody who wants details too if `verbose`."""
    return Detailed(say) if verbose else say


def stdout() -> Console:
    """A console on stdout that prints numbers and brackets as they are."""
    from rich.console import Console

    return Console(highlight=False, markup=False, file=sys.stdout)


@contextmanager
def printing() -> Iterator[None]:
    """Print to stdout within: raises `InputError` where that cannot be written (a full disk; not a closed pipe)."""
    if sys.stdout is None:
        raise InputError("cannot be written: it is closed", where="standard output", hint="redirect it to a file")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left in the buffer would fail again at exit
        raise InputError(f"cannot be written: {error.strerror}", where="standard output") from None


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn what goes wrong on purpose into a message on stderr and an exit status."""
    try:
        yield
    except StanzaError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_status) from None
    except OSError as error:  # a path that no system call takes, such as one of 300 characters
        if isinstance(error, BrokenPipeError):
            raise
        place = shortened(str(error.filename or "a file"), 120)
        say(f"error: {place}: {error.strerror or error}")
        raise typer.Exit(InputError.exit_status) from None
    except OverflowError as error:
        say(f"error: numbers of the input are too large to compute with: {error}")
        raise typer.Exit(InputError.exit_status) from None
    except MemoryError:
        say("error: there is not enough memory")
        raise typer.Exit(RunError.exit_status) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
