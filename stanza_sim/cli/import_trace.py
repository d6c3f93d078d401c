"""`stanza-sim import kineto`: a trace of PyTorch's profiler, made into block times."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, stdout
from stanza_sim.cli.options import AsJsonOfTables

if TYPE_CHECKING:
    from rich.console import Console

    from stanza_sim.cluster.cluster import Cluster
    from stanza_sim.importers.kineto import Taken
    from stanza_sim.importers.kineto_comm import Communication

_EXAMPLES = """Examples:\n
[bold]stanza-sim import kineto trace.json.gz --model resnet50 -o mine.json --cluster dgx-a100-16[/]\n
[bold]stanza-sim run ec2_v100 --profile mine.json[/]
"""


def kineto(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="A .json or .json.gz.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="A table, or package.module:factory.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the times go (JSON).", show_default=False)
    ],
    input_shape: Annotated[
        str | None,
        typer.Option("--input-shape", metavar="3,224,224", help="Of a sample, for a factory.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Samples of a pass. [default: as it says]", show_default=False),
    ] = None,
    backward: Annotated[
        float | None,
        typer.Option(
            "--backward", metavar="RATIO", help="How many forwards backward takes, if it has none.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="NAME", help="[default: by its types and kernels]", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="What the GPU is. [default: as it says]", show_default=False),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="NAME", help="Where it ran: its collectives are predicted there.", show_default=False
        ),
    ] = None,
    as_json: AsJsonOfTables = False,
) -> None:
    """Take the times of a model's blocks from a trace of PyTorch's profiler, for [bold]--profile[/] of a run.

    Blocks are found by the names of [bold]record_function[/], else by the order of convolutions, linear layers and the
    like. Communication in the trace is printed beside what is predicted for it on [bold]--cluster[/].
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.base.files import check_target
        from stanza_sim.cluster import load_cluster
        from stanza_sim.importers.kineto import Stated, check_stated, take
        from stanza_sim.importers.kineto_comm import communication
        from stanza_sim.importers.kineto_events import read_trace
        from stanza_sim.model.zoo import load_model
        from stanza_sim.profiles.blocks import write_profile

        check_target(output)
        if output.suffix != ".json":
            raise InputError("is no name of a profile", where=f"-o {output}", hint="write such as mine.json")
        stated = Stated(samples=batch, backward=backward, precision=precision, device=device)
        check_stated(stated)
        on = None if cluster is None else load_cluster(cluster)
        profile = load_model(model, input_shape=_shape(input_shape))
        trace = read_trace(file)
        taken = take(trace, profile, stated, source=file.name)
        write_profile(taken.profile, output)
        with printing():
            if as_json:
                sys.stdout.write(output.read_text(encoding="utf-8"))
            else:
                _print(taken, communication(trace), on, stdout())
        for note in taken.notes:
            say(f"{file}: {note}")
        say(f"written to {output}")


def _shape(text: str | None) -> tuple[int, ...] | None:
    """The shape of a sample as it is written on the command line."""
    from stanza_sim.base.errors import InputError

    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 10**9 for word in words):
        raise InputError(f"{text!r} is no shape", where="--input-shape", hint="write such as 3,224,224")
    return tuple(map(int, words))


def _print(taken: Taken, found: Sequence[Communication], cluster: Cluster | None, console: Console) -> None:
    """Print the times of the blocks, how they compare with the steps, and the communication."""
    from stanza_sim.report.rich_table import plain_table

    profile = taken.profile
    table = plain_table(["block"], ["samples", "forward, ms", "backward, ms", "spread"])
    for row in profile.blocks:
        times = (f"{seconds * 1e3:.3f}" for seconds in (row.forward_s, row.backward_s))
        table.add_row(row.block, str(row.samples), *times, f"{row.spread:.0%}")
    console.print(table)
    head = f"{profile.model.name} on {profile.device}, {profile.precision}, {taken.passes} passes: blocks {taken.how}."
    rest = f" Blocks, loss and update take {taken.blocks_s * 1e3:.1f} ms"
    if taken.step_s is not None:
        rest += f", a step of the trace {taken.step_s * 1e3:.1f} ms"
    console.print(f"{head}{rest}.", markup=False, highlight=False)
    if not found:
        if cluster is not None:
            console.print("No collective is in the trace, so --cluster had no use.", markup=False, highlight=False)
        return
    table = plain_table(["collective"], ["GPUs", "MB", "count", "median, ms", "least, ms", "predicted, ms"])
    for one in found:
        predicted = None if cluster is None else one.predicted_s(cluster)
        table.add_row(
            one.name,
            "-" if one.ranks is None else str(one.ranks),
            "-" if one.nbytes is None else f"{one.nbytes / 1e6:,.3f}",
            str(one.count),
            f"{one.median_s * 1e3:.3f}",
            f"{one.least_s * 1e3:.3f}",
            "-" if predicted is None else f"{predicted * 1e3:.3f}",
        )
    console.print(table)
    if cluster is None:
        console.print("--cluster says where it ran, to have these predicted.", markup=False, highlight=False)


def add_trace_commands(app: typer.Typer) -> None:
    """Add the commands to `stanza-sim import`."""
    app.command("kineto", epilog=_EXAMPLES)(kineto)
