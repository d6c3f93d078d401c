"""`stanza-sim selftest`: does it work on this machine, and on its GPU?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, stdout
from stanza_sim.cli.progress import progress

if TYPE_CHECKING:
    from stanza_sim.execute.selftest.outcome import Finding

SELFTEST_EXAMPLES = """Examples:\n
[bold]stanza-sim selftest[/]\n
[bold]stanza-sim selftest --gpu -o selftest-a100[/]
"""


def selftest(
    gpu: Annotated[bool, typer.Option("--gpu", help="Also check everything on the first GPU: 9 minutes.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Keep outcomes and what was measured there: a new or an empty folder.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="What does not fit in it is skipped.")
    ] = "540s",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of the table.")] = False,
) -> None:
    """Check that everything works here: gloo, training, staging, imitated GPUs, predictions; with --gpu also a GPU.

    Each check has a process and a time limit of its own, so one that hangs costs only its own time. Takes about a
    minute without a GPU. The exit status is 0, 1 if a check failed or the budget did not suffice, 2 for bad input.
    """
    with errors_for_people():
        from stanza_sim.execute.selftest.checks import groups
        from stanza_sim.execute.selftest.session import selftest as carry_out
        from stanza_sim.report.selftest import findings_text, print_findings

        found: list[Finding] = []

        def tell(finding: Finding) -> None:
            found.append(finding)
            if finding.status != "skipped":
                say(f"{finding.check}: {finding.status} ({finding.seconds:.1f} s)")
            show("checks", len(found), checks)

        checks = sum(len(group.names) for group in groups(gpu=gpu))
        try:
            with progress() as show:
                report = carry_out(gpu=gpu, output=output, budget=budget, tell=tell, table=findings_text)
        except KeyboardInterrupt:
            if found and not as_json:
                print_findings(found, stdout())
            raise
        with printing():
            if as_json:
                sys.stdout.write(report.to_json())
            else:
                print_findings(report.found, stdout())
        if output is not None:
            say(f"written to {output}")
        raise typer.Exit(report.exit_status)
