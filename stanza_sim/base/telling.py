"""How work that takes long reports to whoever called it."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Takes a line for the user."""
Tell = Callable[[str, int, int], None]
"""Takes what is being worked at, how much of it is done, and how much there is."""
