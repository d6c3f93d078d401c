"""Arguments and options that several commands take, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ExperimentArgument = Annotated[str, typer.Argument(help="Name in experiments/, or path of a file.", show_default=False)]
OptionalExperiment = Annotated[
    str | None, typer.Argument(help="Name in experiments/, or path of a file.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]
AsJsonOfTables = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
AsPlainJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Profiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--profile", metavar="FILE", help="Measured block times, or a calibrated network.", show_default=False
    ),
]
Dilate = Annotated[
    str | None,
    typer.Option(
        "--dilate",
        metavar="N",
        help="In a testbed, with emulated compute: slow links down N times and computations too, and divide the times "
        "that are measured by N. So one machine carries out rates that it could not reach.",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Also say where ranks listen, and what protects them.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Processes that simulate. [default: one for each core]", show_default=False),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Use a running Dask cluster.", show_default=False),
]


def check_one_place(scheduler: str | None, jobs: int | None) -> None:
    """Raise `InputError` where both a Dask cluster and processes of this machine are asked for."""
    from stanza_sim.base.errors import InputError

    if scheduler is not None and jobs is not None:
        raise InputError("is for processes of this machine", where="--jobs", hint="leave it out with --scheduler")
