"""`stanza-sim report`: one page of a result, for a browser."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, stdout
from stanza_sim.cli.progress import progress

REPORT_EXAMPLES = "Example:  [bold]stanza-sim run ec2_v100 -o out && stanza-sim report out[/]"


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that run -o or plan -o wrote.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's name as a JSON array.")] = False,
) -> None:
    """Write report.html into a folder: tables, timelines and charts in one file, from which no request leaves.

    It compares all rows, shows timelines that can be zoomed and searched, predicted against measured, who sends how
    much to whom, how busy links are, schedules, settings, versions and what costs rest on. Prints the file's name.
    """
    with errors_for_people():
        from stanza_sim.report.page import write_page

        with progress() as tell:
            path = write_page(folder, tell)
        with printing():
            if as_json:
                sys.stdout.write(json.dumps([str(path)]) + "\n")
            else:
                stdout().print(str(path), soft_wrap=True)
