"""`stanza-sim calibrate`: what single messages cost on a network, and computing on its machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, saying, stdout
from stanza_sim.cli.options import AsJsonOfTables, Verbose
from stanza_sim.cli.progress import waiting

if TYPE_CHECKING:
    from rich.console import Console

    from stanza_sim.profiles.network import Estimate, NetworkProfile

CALIBRATE_EXAMPLES = """Examples:\n
[bold]sudo stanza-sim calibrate star --testbed --rate 200Mbps -o star.json[/]\n
[bold]stanza-sim run ec2_v100 --profile star.json[/]\n
[bold]srun -N 4 stanza-sim calibrate mycluster.yaml --model resnet50 --batch 64 -o mycluster.json[/]
"""


def calibrate(
    cluster: Annotated[str, typer.Argument(help="Name in topologies/, or path of a file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the profile goes.")],
    testbed: Annotated[
        bool, typer.Option("--testbed", help="Emulate the network on this machine, and measure that (root).")
    ] = False,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Number of nodes.", show_default=False)] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Rate of every NIC, such as 200Mbps.", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Also time the blocks of this model.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples at which --model is timed.")] = 32,
    realtime: Annotated[
        bool | None,
        typer.Option(
            "--realtime/--no-realtime",
            help="Schedule ranks as runs with emulated compute are (SCHED_FIFO). [default: with --testbed]",
            show_default=False,
        ),
    ] = None,
    as_json: AsJsonOfTables = False,
    verbose: Verbose = False,
) -> None:
    """Measure single messages between ranks, the sharing of cores and, with [bold]--model[/], the blocks of a model.

    Takes less than 20 s, beside the models. For each kind of pair of NICs one pair of ranks exchanges messages, one at
    a time; nothing that is to be predicted is run. The profile is for [bold]run --profile[/].
    """
    with errors_for_people():
        from stanza_sim.base.files import check_target
        from stanza_sim.base.units import rate as read_rate
        from stanza_sim.cluster import load_cluster
        from stanza_sim.execute import require_torch
        from stanza_sim.experiment.calibration import calibrate_cluster
        from stanza_sim.model.zoo import load_model
        from stanza_sim.profiles.network import write_network

        require_torch()
        check_target(output)
        rate_Bps = None if rate is None else read_rate(rate, where="--rate")
        known = load_cluster(cluster, nodes=nodes, rate_Bps=rate_Bps)
        timed = [(load_model(name), batch) for name in models or ()]
        with waiting("calibrating"):
            found, is_main = calibrate_cluster(
                known, timed, testbed=testbed, realtime=testbed if realtime is None else realtime, say=saying(verbose)
            )
        if not is_main:
            return
        write_network(found, output)
        with printing():
            if as_json:
                sys.stdout.write(output.read_text(encoding="utf-8"))
            else:
                _print(found, stdout())
        say(f"written to {output}")


# --- tables ----------------------------------------------------------------------------------------------------------


def _print(profile: NetworkProfile, console: Console) -> None:
    """Print what was measured."""
    from stanza_sim.base.units import format_rate
    from stanza_sim.profiles.network import in_words
    from stanza_sim.report.rich_table import plain_table

    where = profile.machine
    console.print(f"{profile.cluster}: {profile.ranks} ranks, {where.device}, {where.cores} cores", soft_wrap=True)
    table = plain_table(["single messages"], ["median", "80% within"])
    for pair in profile.pairs:
        share = pair.goodput_Bps.model_copy(
            update={key: getattr(pair.goodput_Bps, key) / pair.kind.bottleneck_Bps for key in ("value", "low", "high")}
        )
        table.add_section()
        table.add_row(in_words(pair.kind))
        table.add_row("  latency, us", *_cells(pair.latency_s, 1e6))
        table.add_row("  overhead of a message, us", *_cells(pair.overhead_s, 1e6))
        table.add_row("  posting a long one, us", *_cells(pair.posting_s, 1e6))
        table.add_row(f"  goodput, of {format_rate(pair.kind.bottleneck_Bps)}", *_cells(share, 1, 4))
        table.add_row("  burst credit, kB", *_cells(pair.burst_bytes, 1e-3))
    table.add_section()
    table.add_row("cores")
    table.add_row("  wake-up of a lane, us", *_cells(profile.hop_s, 1e6))
    for stretch in profile.stretches:
        table.add_row(f"  computing, {stretch.busy} at once, times as long", *_cells(stretch.factor, 1, 2))
    table.add_row("  reduction, GB/s", *_cells(profile.reduce_Bps, 1e-9, 2))
    table.add_row("  update, GB/s", *_cells(profile.update_Bps, 1e-9, 2))
    console.print(table)
    for timed in profile.models:
        forward_s, backward_s = (sum(getattr(row, key) for row in timed.blocks) for key in ("forward_s", "backward_s"))
        samples = timed.blocks[0].samples
        what = f"forward {forward_s * 1e3:.4g} ms, backward {backward_s * 1e3:.4g} ms"
        console.print(f"{timed.model.name}, {samples} samples: {what}", soft_wrap=True)
    names = ", ".join(timed.model.name for timed in profile.models)
    basis = f"block times of {names} as measured here; other models" if names else "no block was timed; all models"
    console.print(f"computation in runs with this profile: {basis} as computed for their device", soft_wrap=True)


def _cells(value: Estimate, scale: float, digits: int = 1) -> tuple[str, str]:
    low, high = value.low * scale, value.high * scale
    return f"{value.value * scale:,.{digits}f}", f"{low:,.{digits}f} to {high:,.{digits}f}"
