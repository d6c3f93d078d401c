"""Tables of texts and numbers under a rule, as `show`, `calibrate` and `testbed` print them.

Grids of results, which must not cut a number off, are those of `report.table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.table import Table


def plain_table(texts: Sequence[str], numbers: Sequence[str], *, one_line: bool = False, fold: bool = False) -> Table:
    """A table without rows, with columns of texts and, behind them, of numbers, which stay on one line.

    So do texts if `one_line`. Of what is too wide the rest is on lines of its own if `fold`, and else left out (`…`).
    """
    overflow: Literal["fold", "ellipsis"] = "fold" if fold else "ellipsis"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in texts:
        table.add_column(head, no_wrap=one_line, overflow=overflow)
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True, overflow=overflow)
    return table
