"""`stanza-sim plot`: pictures of a result's folder or of a sweep's file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, stdout
from stanza_sim.cli.progress import progress

PLOT_EXAMPLES = """Examples:\n
[bold]stanza-sim run ec2_v100 -o out && stanza-sim plot out[/]\n
[bold]stanza-sim plot sweep.csv[/]\n
[bold]stanza-sim plot sweep.csv --over nodes --where cluster=ec2-p3-10[/]
"""


def plot(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE.csv", help="What run -o, plan -o or sweep -o wrote.", show_default=False),
    ],
    over: Annotated[
        str | None,
        typer.Option(
            "--over",
            metavar="KEY",
            help="Of a sweep: the key on the axis. [default: the one with most numbers]",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="KEY=VALUE", help="Of a sweep: only these lines.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files' names as a JSON array.")] = False,
) -> None:
    """Draw pictures, each as PNG and SVG: of a folder into its [bold]pictures/[/], of a sweep beside its file.

    Of a folder: speed-ups, what an iteration goes to, timelines, rooflines and, where rows ran, predicted against
    measured. Of a sweep: samples/s over a key, and which row wins where. Needs the extra: pip install
    'stanza-sim\\[plot]'.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError

        if source.suffix == ".csv" and not source.is_dir():
            from stanza_sim.studies.sweep.pictures import draw_sweep

            with progress() as tell:
                written = draw_sweep(source, over=over, where=where or (), tell=tell)
        else:
            from stanza_sim.report.pictures import draw_folder

            for option, value in (("--over", over), ("--where", where)):
                if value:
                    raise InputError("is for the file of a sweep", where=option, hint="leave it out for a folder")
            with progress() as tell:
                written = draw_folder(source, tell)
        names = [str(path) for path in written]
        with printing():
            if as_json:
                sys.stdout.write(json.dumps(names, indent=1) + "\n")
            else:
                for name in names:
                    stdout().print(name, soft_wrap=True)
