"""How the outcomes of the self-test are shown: a table, and a line that counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING

from stanza_sim.report.rich_table import plain_table

if TYPE_CHECKING:
    from rich.console import Console

    from stanza_sim.execute.selftest.outcome import Finding


def print_findings(found: Sequence[Finding], console: Console) -> None:
    """Print a row for each check, then how many passed, failed and were skipped."""
    table = plain_table(["check", "outcome", "detail"], ["time"], fold=True)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for alike in _alike(found):
        one = alike[0]
        time = "" if one.status == "skipped" else f"{one.seconds:.1f} s"
        name = one.check if len(alike) == 1 else f"{one.check} and {len(alike) - 1} more"
        table.add_row(name, str(one.status), one.detail, time)
    console.print(table)
    counts = Counter(str(one.status) for one in found)
    words = [f"{counts[word]} {word}" for word in ("passed", "failed", "skipped") if counts[word]]
    console.print(f"{', '.join(words) or 'nothing was checked'} in {sum(one.seconds for one in found):.0f} s")


def _alike(found: Sequence[Finding]) -> Iterator[list[Finding]]:
    """Those in a row that were skipped for one reason together, each other one by itself."""
    for _, together in groupby(enumerate(found), lambda at: at[1].detail if at[1].status == "skipped" else at[0]):
        yield [one for _, one in together]


def findings_text(found: Sequence[Finding]) -> str:
    """The same as text of 100 columns."""
    from rich.console import Console

    text = StringIO()
    print_findings(found, Console(file=text, width=100, highlight=False, markup=False))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())
