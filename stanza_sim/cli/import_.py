"""`stanza-sim import`: what other programs measured or describe, made into files that predictions use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, stdout
from stanza_sim.cli.import_clusters import add_cluster_commands
from stanza_sim.cli.import_graphs import add_graph_commands
from stanza_sim.cli.import_trace import add_trace_commands
from stanza_sim.cli.options import AsJsonOfTables

if TYPE_CHECKING:
    from rich.console import Console

    from stanza_sim.importers.nccl_fit import Fitted

import_commands = typer.Typer(help="Read what other programs measured or describe.", no_args_is_help=True)
add_cluster_commands(import_commands)
add_graph_commands(import_commands)
add_trace_commands(import_commands)

_NCCL_EXAMPLES = """Examples:\n
[bold]all_reduce_perf -b 1K -e 1G -f 2 -g 8 > one-host.log[/]\n
[bold]stanza-sim import nccl-tests one-host.log eight-hosts.log -o mine.json --cluster dgx-a100-16[/]\n
[bold]stanza-sim run ec2_v100 --nccl mine.json[/]
"""


@import_commands.command("nccl-tests", epilog=_NCCL_EXAMPLES)
def nccl_tests(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...", help="What all_reduce_perf and the like printed, or a CSV file.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the profile goes (JSON).")],
    hosts: Annotated[
        int | None,
        typer.Option("--hosts", min=1, help="Hosts of each log. [default: as it says]", show_default=False),
    ] = None,
    gpus_per_host: Annotated[
        int | None,
        typer.Option("--gpus-per-host", min=1, help="GPUs of each host. [default: as it says]", show_default=False),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="Where they ran: its links bound the rates, its latencies count.",
            show_default=False,
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform",
            metavar="NAME",
            help="What the logs do not tell is as there. [default: by the GPUs' name]",
            show_default=False,
        ),
    ] = None,
    as_json: AsJsonOfTables = False,
) -> None:
    """Fit what NCCL reaches on a platform to logs of nccl-tests, for [bold]nccl:[/] of a topology or [bold]--nccl[/].

    Logs of one host and of several, with different numbers of GPUs, tell most. Sizes of 256 KiB and more are fitted.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.base.files import check_target
        from stanza_sim.cluster import load_cluster
        from stanza_sim.importers.nccl_fit import fit, platform_like, write_platform
        from stanza_sim.importers.nccl_tests import read_logs

        check_target(output)
        if output.suffix != ".json":
            raise InputError("is no name of a profile", where=f"-o {output}", hint="write such as mine.json")
        read = read_logs(logs, hosts=hosts, gpus_per_host=gpus_per_host)
        on = None if cluster is None else load_cluster(cluster)
        found = fit(read, base=platform or platform_like(read), name=output.stem, cluster=on)
        write_platform(found.platform, output)
        with printing():
            if as_json:
                sys.stdout.write(output.read_text(encoding="utf-8"))
            else:
                _print(found, stdout())
        say(f"written to {output}")


def _print(found: Fitted, console: Console) -> None:
    """Print the constants, and how far the fitted model is off."""
    from stanza_sim.report.rich_table import plain_table

    platform = found.platform
    table = plain_table(["constant"], ["value", "from"])
    for label, key, value in (
        ("bus rate inside a host", "inside_Bps", platform.inside_Bps),
        ("bus rate of a host's NICs", "across_Bps", platform.across_Bps),
        ("pass through memory", "memory_Bps", platform.memory_Bps),
    ):
        cell = "as the links allow" if value is None else f"{value / 1e9:,.1f}"
        table.add_row(f"{label}, GB/s", cell, "logs" if key in found.fitted else found.base)
    for label, key, seconds in (
        ("overhead, us", "overhead_s", platform.overhead_s),
        ("least time a GPU, us", "launch_s", platform.launch_s),
    ):
        table.add_row(label, f"{seconds * 1e6:.1f}", "logs" if key in found.fitted else found.base)
    console.print(table)
    table = plain_table(["log"], ["GPUs", "hosts", "sizes", "error: median", "p90"])
    for r in found.residuals:
        table.add_row(
            Path(r.path).name, str(r.gpus), str(r.hosts), str(r.rows), f"{r.median_pct:.1f}%", f"{r.p90_pct:.1f}%"
        )
    console.print(table)
