"""What can go wrong, sorted by whose turn it is to act.

`InputError` is for the user to mend (exit status 2); `RunError` is a run that failed although its
input was good (exit status 1). Both carry a message of one or two lines that needs no traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StanzaError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_status = 1


class InputError(StanzaError):
    """The input is wrong: the message says what, where, and what would be right."""

    exit_status = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message, self.where, self.hint = message, where, hint
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text}\n  {hint}" if hint else text)

    @property
    def one_line(self) -> str:
        """All of it on one line, for a cell of a table or the middle of a text."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        return " ".join((f"{text}; {self.hint}" if self.hint else text).split())


class ScheduleError(InputError):
    """A schedule breaks a rule of `stanza_sim.schedule.legality`."""


class RunError(StanzaError):
    """A run that could not be completed: a rank died or hung, a simulation cannot proceed."""


@contextmanager
def at(
    where: str, *, outer: bool = False, kind: type[InputError] = InputError, but: tuple[type[InputError], ...] = ()
) -> Iterator[None]:
    """Let an `InputError` raised within name `where` as its place, in front of the one that it names if `outer`.

    It leaves as an error of `kind`; those of `but` leave as they are.
    """
    try:
        yield
    except but:
        raise
    except InputError as error:
        place = f"{where}: {error.where}" if outer and error.where else where
        raise kind(error.message, where=place, hint=error.hint) from None
