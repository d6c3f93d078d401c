"""How work that takes long reports to whoever called it, and which characters of a text may reach a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes a line for the user."""
Tell = Callable[[str, int, int], None]
"""Takes what is being worked at, how much of it is done, and how much there is."""


class Detailed:
    """A `Say` of somebody who wants to hear details too."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def __call__(self, text: str) -> None:
        """Take a line."""
        self._say(text)


def detail(say: Say, text: str) -> None:
    """Say what only those want to hear who asked for details."""
    if isinstance(say, Detailed):
        say(text)


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What would move a terminal's cursor, change its colours or the direction of writing; not ends of lines and tabs."""


def printable(text: str) -> str:
    """`text` with its control characters shown as Python writes them: a terminal does nothing that it says."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
