"""Results as tables: a frame of pandas (an extra), HTML in a notebook, or cells of a CSV file."""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 60
"""Of a longer table, HTML shows so many rows."""


@contextmanager
def reading_csv(path: Path, expected: str, hint: str | None = None) -> Iterator[None]:
    """Raise `InputError` for what `csv` cannot read within, such as a cell of over 128 KiB; `path` is `expected`."""
    try:
        yield
    except csv.Error as error:
        raise InputError(f"is not {expected}: {error}", where=str(path), hint=hint) from None


class Tabular(ABC):
    """What has rows and columns. A subclass says which, in `_columns`."""

    __slots__ = ()

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[object]]:
        """The values of each column, by its heading; all of one length."""

    def to_frame(self) -> pd.DataFrame:
        """The table as a frame of pandas; times in seconds, sizes in bytes. Raises `InputError` without pandas."""
        try:
            import pandas as pd
        except ImportError:
            what = "a frame needs pandas, and it is not installed"
            raise InputError(what, where="to_frame", hint="pip install 'stanza-sim[frames]'") from None
        return pd.DataFrame({heading: list(values) for heading, values in self._columns().items()})

    def _repr_html_(self) -> str:
        """The table as a notebook shows it."""
        columns = self._columns()
        count = len(next(iter(columns.values()), ()))
        head = "".join(f"<th>{escape(heading)}</th>" for heading in columns)
        rows = [
            "".join(f"<td>{escape(_shown(values[i]))}</td>" for values in columns.values())
            for i in range(min(count, MOST_ROWS))
        ]
        if count > MOST_ROWS:
            rows.append(f'<td colspan="{len(columns)}">and {count - MOST_ROWS} more rows</td>')
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def shortened(text: str, width: int = 60) -> str:
    """`text` on one line of at most `width` characters, for a `repr`."""
    text = " ".join(text.split())
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= width else f"{text[: width - 1]}…"


_FORMULA = re.compile(r"'|[=@\t\r]|[-+](?![0-9.])")


def csv_cell(text: str) -> str:
    """`text` for a cell of a CSV file: a spreadsheet takes it for a text, whatever it begins with.

    What it would take for a formula (`=`, `@`, `+` or `-` before anything but a number) gets an apostrophe in front,
    as spreadsheets themselves write it.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def of_csv_cell(cell: str) -> str:
    """What `csv_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell
