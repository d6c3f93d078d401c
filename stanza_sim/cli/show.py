"""`stanza-sim show`: models, clusters, devices, strategies and schedules, as the program sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from stanza_sim.cli.console import errors_for_people, say, stdout
from stanza_sim.cli.options import AsPlainJson as AsJson
from stanza_sim.cli.progress import waiting

show = typer.Typer(
    help="Look at a model, a cluster, a device, a strategy, a schedule or the keys of experiment files.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Examples:  [bold]stanza-sim show model vgg16[/]  |  [bold]stanza-sim show device V100[/]  |  "
    "[bold]stanza-sim show schedule laptop --strategy all-reduce --rank 0[/]",
)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _print_names(names: Iterable[str], as_json: bool) -> None:
    """Print what there is: a name on each line, or a JSON array."""
    if as_json:
        typer.echo(json.dumps(list(names), indent=1))
    else:
        _print(names)


def _shape(text: str | None) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """Read `3,224,224`, or `x=64;y=1,8,8` of several tensors; raises `InputError`."""
    from stanza_sim.base.errors import InputError

    if text is None:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for one in text.split(";"):
        name, _, numbers = one.rpartition("=")
        parts = [p.strip() for p in numbers.split(",")]
        if not all(p.isascii() and p.isdigit() and int(p) for p in parts) or name.strip() in shapes:
            hint = "write such as 3,224,224, or 'x=64;y=1,8,8' for a module that takes several tensors"
            raise InputError(f"{text!r} is not a shape", where="--input-shape", hint=hint)
        shapes[name.strip()] = tuple(int(p) for p in parts)
    return shapes[""] if list(shapes) == [""] else shapes


@show.command(epilog="Example:  [bold]stanza-sim show model mynet:build --input-shape 3,64,64[/]")
def model(
    name: Annotated[str | None, typer.Argument(help="A shipped model, or package.module:factory.")] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", metavar="C,H,W", help="Shape of one sample, for a factory.")
    ] = None,
    sequence: Annotated[int | None, typer.Option(help="Tokens of a sample, of a language model.")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Words of a language model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the blocks of a model; without a name, the shipped models."""
    with errors_for_people():
        from stanza_sim.model import zoo

        if name is None:
            _print_names(zoo.available(), as_json)
            return
        profile = zoo.load_model(name, input_shape=_shape(input_shape), sequence=sequence, vocabulary=vocabulary)
        if as_json:
            from stanza_sim.model.profile_json import to_json

            typer.echo(to_json(profile), nl=False)
            return
        from stanza_sim.report.describe import print_model

        print_model(profile, stdout())


_CLUSTER_EXAMPLES = """Examples:\n
[bold]stanza-sim show cluster leaf-spine --nodes 16 --picture leaf-spine.svg[/]\n
[bold]stanza-sim show cluster --run ec2_v100 --model vgg16 --row "PS co-located"[/]\n
[bold]stanza-sim show cluster leaf-spine --run ec2_v100 --row all-reduce --picture busy.png[/]
"""


@show.command(epilog=_CLUSTER_EXAMPLES)
def cluster(
    name: Annotated[str | None, typer.Argument(help="A topology's name or file.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Number of nodes.", show_default=False)] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Also draw it into a .png or .svg.", show_default=False),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="EXPERIMENT",
            help="Predict a row of this experiment and draw how busy each link is; on NAME instead of its cluster.",
            show_default=False,
        ),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="LABEL", help="With --run: the row or strategy; default: the first."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="With --run: the model; default: the first.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --run: change a key of it.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show hosts, links and ranks of a cluster, and draw it; without a name, the topologies that there are.

    With [bold]--run[/] it is drawn with the utilisation of every link after a predicted run.
    """
    with errors_for_people():
        from stanza_sim.base import config
        from stanza_sim.base.errors import InputError

        if run is not None:
            _busy_cluster(run, name, nodes, picture, row, model, settings or [], as_json)
            return
        for option, value in (("--row", row), ("--model", model), ("--set", settings)):
            if value:
                raise InputError("is for --run", where=option, hint="add --run EXPERIMENT, or leave it out")
        if name is None:
            if picture is not None:
                raise InputError("there is no cluster to draw", where="--picture", hint="name a topology")
            _print_names(config.available(config.Kind.TOPOLOGIES), as_json)
            return
        from stanza_sim.cluster import load_cluster
        from stanza_sim.report import describe_json
        from stanza_sim.report.describe import print_cluster
        from stanza_sim.report.draw import draw_picture, draw_text

        found, console = load_cluster(name, nodes=nodes), stdout()
        if picture is not None:
            draw_picture(found, picture)
        if as_json:
            typer.echo(describe_json.as_json(describe_json.cluster_object(found)), nl=False)
            return
        print_cluster(found, console)
        console.print()
        console.print(draw_text(found, plain=not console.encoding.startswith("utf")), end="", soft_wrap=True)


def _busy_cluster(
    experiment: str,
    name: str | None,
    nodes: int | None,
    picture: Path | None,
    row: str | None,
    model: str | None,
    settings: list[str],
    as_json: bool,
) -> None:
    """Print, and draw, a cluster as busy as it is in a row of an experiment."""
    from stanza_sim.base.units import format_time
    from stanza_sim.experiment.run import predict_row
    from stanza_sim.report import describe_json
    from stanza_sim.report.draw import draw_picture, draw_text

    overrides = [*settings]
    overrides += [] if name is None else [f"cluster={name}"]
    overrides += [] if nodes is None else [f"nodes={nodes}"]
    with waiting("predicting"):
        found, plan, prediction = predict_row(experiment, overrides, model=model, row=row, say=say)
    busy = {link.label: 0.0 for link in found.links} | prediction.utilisation
    if picture is not None:
        draw_picture(found, picture, busy)
    if as_json:
        more = {"model": plan.entry.title, "row": plan.strategy.title, "iteration_s": prediction.iteration_s}
        told = {**more, "bottleneck": prediction.bottleneck, **describe_json.cluster_object(found, busy)}
        typer.echo(describe_json.as_json(told), nl=False)
        return
    console = stdout()
    plain = not console.encoding.startswith("utf")
    console.print(draw_text(found, busy, plain=plain), soft_wrap=True)
    each = format_time(prediction.iteration_s)
    console.print(f"{plan.entry.title}, {plan.strategy.title}: {each} an iteration", soft_wrap=True)
    console.print(f"bottleneck: {prediction.bottleneck}", soft_wrap=True)


@show.command()
def device(
    name: Annotated[str | None, typer.Argument(help="A device's name or file.")] = None, as_json: AsJson = False
) -> None:
    """Show a device's data and the fits of its efficiency; without a name, the devices that there are."""
    with errors_for_people():
        from stanza_sim.base import config

        if name is None:
            _print_names(config.available(config.Kind.DEVICES), as_json)
            return
        from stanza_sim.cluster.device import load_device
        from stanza_sim.report import describe_json
        from stanza_sim.report.describe import print_device

        found = load_device(name)
        if as_json:
            typer.echo(describe_json.as_json(describe_json.device_object(found)), nl=False)
        else:
            print_device(found, stdout())


@show.command()
def strategy(
    name: Annotated[str | None, typer.Argument(help="A strategy's name.")] = None, as_json: AsJson = False
) -> None:
    """Show the settings of a strategy; without a name, the strategies that there are."""
    with errors_for_people():
        from stanza_sim import strategies

        if name is None:
            _print_names(strategies.names(), as_json)
            return
        from stanza_sim.base.keys import keys_of
        from stanza_sim.report import describe_json
        from stanza_sim.report.describe import print_settings

        settings = strategies.get(name).Settings
        if as_json:
            typer.echo(describe_json.as_json(describe_json.keys_object(keys_of(settings))), nl=False)
        else:
            print_settings(settings, stdout())


@show.command("experiment-keys", epilog="Example:  [bold]stanza-sim show experiment-keys optimizer[/]")
def experiment_keys(
    word: Annotated[str | None, typer.Argument(help="Only keys with this in their path or meaning.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show every key of an experiment file: what it takes and in which unit, its default and its meaning.

    [bold]--set KEY=VALUE[/] of other commands takes these paths, with a number from 0 on in the place of N.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.base.keys import keys_of
        from stanza_sim.experiment.file import Experiment
        from stanza_sim.report import describe_json
        from stanza_sim.report.describe import print_keys

        keys = [
            key for key in keys_of(Experiment) if word is None or word.lower() in f"{key.path} {key.meaning}".lower()
        ]
        if not keys:
            raise InputError(f"no key has {word!r} in its path or meaning", hint="leave it out to see all keys")
        if as_json:
            typer.echo(describe_json.as_json(describe_json.keys_object(keys)), nl=False)
        else:
            print_keys(keys, stdout())


@show.command(epilog="Example:  [bold]stanza-sim show schedule ec2_v100 --model vgg16 --strategy stanza --rank 0[/]")
def schedule(
    experiment: Annotated[str, typer.Argument(help="Experiment that has it.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="Only this label or strategy.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Only the ops of this rank.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the experiment.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the schedules of an experiment, as text that parses back (or JSON, one object a line)."""
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.experiment.file import load_experiment
        from stanza_sim.experiment.rows import cluster_of, possible_plans_of, require_possible
        from stanza_sim.schedule import print_op

        if as_json and rank is not None:
            raise InputError("--json prints whole schedules", where="--rank", hint="leave one of the two out")
        loaded = load_experiment(experiment, settings or [])
        lines: list[str] = []
        plans, impossible = possible_plans_of(loaded, cluster_of(loaded, say), model=model, strategy=strategy)
        require_possible(plans, impossible)
        for one in impossible:
            say(f"note: infeasible: {one.entry.title}, {one.strategy.title}: {one.error.one_line}")
        for plan in plans:
            made = plan.schedule
            if as_json:
                lines.append(json.dumps(json.loads(made.to_json())))
                continue
            lines.append(f"# {plan.entry.title}: {plan.strategy.title}, sha256 {made.digest()}")
            if rank is None:
                lines += made.text().splitlines()
            else:
                lines += [f"# rank {rank}", *map(print_op, made.for_rank(rank))]
        _print(lines)
