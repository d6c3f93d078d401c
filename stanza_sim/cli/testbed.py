"""`stanza-sim testbed`: a topology as an emulated network on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, stdout
from stanza_sim.cli.options import AsPlainJson

if TYPE_CHECKING:
    from rich.console import Console

    from stanza_sim.testbed.registry import Record

testbed = typer.Typer(
    help="Emulate the network of a cluster on this machine, with network namespaces and shaped links (needs root).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Examples:  [bold]stanza-sim testbed up star --rate 200Mbps[/]  |  [bold]stanza-sim testbed status[/]  |  "
    "[bold]stanza-sim testbed down star[/]",
)


@testbed.callback()
def _root() -> None:
    with errors_for_people():
        from stanza_sim.testbed.probe import require_linux

        require_linux()


@testbed.command(epilog="Example:  [bold]sudo stanza-sim testbed up leaf-spine --nodes 8 --rate 100Mbps[/]")
def up(
    topology: Annotated[str, typer.Argument(help="Name in topologies/, or path of a file.", show_default=False)],
    nodes: Annotated[int | None, typer.Option("--nodes", help="Number of nodes.", show_default=False)] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Rate of every NIC, such as 200Mbps.", show_default=False)
    ] = None,
    as_json: AsPlainJson = False,
) -> None:
    """Build a topology as namespaces: one for each host and switch, every direction of every link shaped to its rate.

    It stays until `down`. If it is up already nothing happens; if the topology has changed it is built anew.
    """
    with errors_for_people():
        from stanza_sim.base.units import rate as read_rate
        from stanza_sim.cluster import load_cluster
        from stanza_sim.testbed import Testbed, collect

        rate_Bps = None if rate is None else read_rate(rate, where="--rate")
        bed = Testbed(load_cluster(topology, nodes=nodes, rate_Bps=rate_Bps), source=_source(topology))
        for line in collect():
            say(line)
        made = bed.up()
        record = bed.registry.get(bed.prefix)
        with printing():
            if as_json:
                typer.echo(json.dumps(None if record is None else _json(record), indent=2))
                return
            console = stdout()
            console.print(f"{bed.name} {'was up already' if made == 'found' else f'is up ({made})'}", soft_wrap=True)
            if record is not None:
                _print_parts(record, console)
            console.print(f"run on a host: {' '.join(bed.exec_prefix(0))} COMMAND", soft_wrap=True)


@testbed.command()
def status(
    topology: Annotated[str | None, typer.Argument(help="As for `up`; default: all.", show_default=False)] = None,
    as_json: AsPlainJson = False,
) -> None:
    """Show the testbeds that there are. The exit status is 1 if TOPOLOGY is not up."""
    with errors_for_people():
        from stanza_sim.testbed.registry import Registry

        records = Registry().records() if topology is None else _records_of(topology)
        with printing():
            if as_json:
                typer.echo(json.dumps([_json(record) for record in records], indent=2))
            elif not records:
                typer.echo("there is no testbed" if topology is None else f"{topology} is not up")
            else:
                console = stdout()
                for record in records:
                    console.print(f"{record.name} {_state(record)}", soft_wrap=True)
                    _print_parts(record, console)
        if topology is not None and not any(record.intact() for record in records):
            raise typer.Exit(1)


@testbed.command(epilog="Example:  [bold]sudo stanza-sim testbed down --all[/]")
def down(
    topology: Annotated[str | None, typer.Argument(help="As for `up`.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Take down all testbeds.")] = False,
) -> None:
    """Take a testbed down: end the processes inside its namespaces, and delete these.

    Also cleans up what processes that were killed have left behind. Nothing that it did not make is touched.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.testbed import collect, take_down
        from stanza_sim.testbed.registry import Registry

        if (topology is None) != everything:
            hint = "one of the two" if topology else "`stanza-sim testbed status` shows which there are"
            raise InputError("name a topology, or write --all", where="testbed down", hint=hint)
        for line in collect():
            say(line)
        records = Registry().records() if topology is None else _records_of(topology)
        if not records:
            say("there is no testbed" if topology is None else f"{topology} is not up")
        for record in records:
            take_down(record)
            say(f"{record.name} is down")


def _source(topology: str) -> str:
    """Return what identifies a topology that the user named: a file by its full path."""
    return str(Path(topology).resolve()) if Path(topology).suffix else topology


def _records_of(topology: str) -> list[Record]:
    """Return the testbeds that `topology` means: by what `up` was given, by name, or by the name in its file.

    A file that is gone or wrong by now does no harm as long as its testbed is known. Raises `InputError` for a name
    that is neither a testbed nor a topology.
    """
    from stanza_sim.testbed.registry import Registry

    records = Registry().records()
    found = [r for r in records if _source(topology) == r.source or topology in (r.name, r.prefix)]
    if not found:
        from stanza_sim.cluster import load_cluster

        name = load_cluster(topology).name
        found = [r for r in records if r.name == name]
    return found


def _state(record: Record) -> str:
    """Say how a testbed is."""
    if record.abandoned():
        return "is left behind by a process that is gone; the next `up` or `down` cleans it up"
    if record.owner is not None:
        return f"is {'up, used' if record.complete else 'being built'} by process {record.owner.pid}"
    return "is up" if record.intact() else "is damaged: namespaces are missing; `up` builds it anew"


def _json(record: Record) -> dict[str, object]:
    from dataclasses import asdict

    from stanza_sim.testbed.processes import processes_inside

    data = asdict(record)
    shown = ("name", "prefix", "source", "complete", "hosts", "trunks", "notes")
    owner = None if record.owner is None else record.owner.pid
    more = {"state": _state(record), "intact": record.intact(), "owner": owner}
    return {key: data[key] for key in shown} | more | {"processes": sorted(processes_inside(record.own()))}


def _print_parts(record: Record, console: Console) -> None:
    """Print hosts, links between switches, and notes."""
    from stanza_sim.base.units import format_rate
    from stanza_sim.report.rich_table import plain_table
    from stanza_sim.testbed.processes import processes_inside

    inside = list(processes_inside(record.own()).values())
    seen = os.geteuid() == 0  # others are not told where a process runs
    table = plain_table(["host", "namespace", "address"], ["sends", "receives", "processes"], one_line=True)
    for host in record.hosts:
        rates = (format_rate(bps / 8) for bps in (host.send_bps, host.receive_bps))
        table.add_row(
            host.name, host.namespace, host.address, *rates, str(inside.count(host.namespace)) if seen else "-"
        )
    console.print(table)
    for trunk in record.trunks:
        console.print(f"{trunk.label}: {format_rate(trunk.rate_bps / 8)}", soft_wrap=True)
    for note in record.notes:
        console.print(f"note: {note}", soft_wrap=True)
