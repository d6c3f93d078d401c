"""The command line: `stanza-sim run` and `stanza-sim show`. What they need is imported when they need it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stanza_sim.base.version import __version__
from stanza_sim.cli.calibrate import CALIBRATE_EXAMPLES, calibrate
from stanza_sim.cli.console import errors_for_people, printing, saying, speaks, stdout
from stanza_sim.cli.import_ import import_commands
from stanza_sim.cli.options import AsJson, Dilate, Jobs, OptionalExperiment, Profiles, Verbose
from stanza_sim.cli.plan import PLAN_EXAMPLES, plan
from stanza_sim.cli.plot import PLOT_EXAMPLES, plot
from stanza_sim.cli.progress import progress, progress_if_seen
from stanza_sim.cli.report import REPORT_EXAMPLES, report
from stanza_sim.cli.selftest import SELFTEST_EXAMPLES, selftest
from stanza_sim.cli.show import show
from stanza_sim.cli.sweep import SWEEP_EXAMPLES, sweep
from stanza_sim.cli.testbed import testbed as testbed_commands
from stanza_sim.cli.validate import EXAMPLES, validate

app = typer.Typer(
    name="stanza-sim",
    help="Predict one iteration of distributed training on a cluster, then run the very same schedule for real.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples:  [bold]stanza-sim run ec2_v100[/]  |  [bold]stanza-sim run laptop --execute[/]  |  "
    "[bold]stanza-sim show cluster ec2-p3-10[/]",
)
app.add_typer(show, name="show")
app.add_typer(testbed_commands, name="testbed")
app.add_typer(import_commands, name="import")
app.command(epilog=PLAN_EXAMPLES)(plan)
app.command(epilog=SWEEP_EXAMPLES)(sweep)
app.command(epilog=PLOT_EXAMPLES)(plot)
app.command(epilog=REPORT_EXAMPLES)(report)
app.command(epilog=CALIBRATE_EXAMPLES)(calibrate)
app.command(epilog=EXAMPLES)(validate)
app.command(epilog=SELFTEST_EXAMPLES)(selftest)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stanza-sim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_RUN_EXAMPLES = """Examples:\n
[bold]stanza-sim run ec2_v100[/]\n
[bold]stanza-sim run ec2_v100 --set nodes=16 --set network.rate=25Gbps[/]\n
[bold]stanza-sim run ec2_v100 --explain[/]\n
[bold]stanza-sim run ec2_v100 --set strategies.5.settings.fc_workers=2 --json[/]\n
[bold]stanza-sim run laptop --execute -o results[/]\n
[bold]stanza-sim run --from results[/]\n
[bold]sudo stanza-sim run ec2_v100 --set nodes=4 --set network.rate=500Mbps --execute --testbed --compute emulated[/]\n
[bold]sudo stanza-sim run ec2_v100 --execute --testbed --compute emulated --dilate 40[/]\n
[bold]torchrun --nproc-per-node 4 -m stanza_sim run laptop --execute --profile cpu.json[/]
"""


@app.command(epilog=_RUN_EXAMPLES)
def run(
    experiment: OptionalExperiment = None,
    execute: Annotated[bool, typer.Option("--execute", help="Also run every schedule for real.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of the experiment, by dotted path. Short: nodes, batch_per_worker, network.rate.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write result, spans and traces.", show_default=False),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option(
            "--compute",
            metavar="real|emulated",
            help="With --execute: train, or wait in the place of each computation as long as it is predicted to take. "
            "[default: what the experiment says, else real]",
            show_default=False,
        ),
    ] = None,
    testbed: Annotated[
        bool,
        typer.Option("--testbed", help="With --execute: run the ranks in an emulated network of the cluster (root)."),
    ] = False,
    dilate: Dilate = None,
    profile: Profiles = None,
    nccl: Annotated[
        str | None,
        typer.Option(
            "--nccl",
            metavar="NAME",
            help="What NCCL reaches there: a platform, or what import nccl-tests wrote. Short for network.nccl.",
            show_default=False,
        ),
    ] = None,
    save_profile: Annotated[
        Path | None,
        typer.Option(
            "--save-profile",
            metavar="FILE",
            help="Keep the block times that --execute measures; {model} in the name is replaced.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Say what sets the time of each row and what would help, by some simulations more."
        ),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            help="With --execute: keep the trained parameters, a state_dict (.safetensors, else torch.save), and "
            "beside it what resuming takes; {model} and {row} in the name are replaced.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FILE",
            help="With --execute: go on with a training that --save kept, up to training.iterations in all.",
            show_default=False,
        ),
    ] = None,
    replayed: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Simulate again what --execute -o DIR measured, with its computation times: how much of the error is "
            "the network's and the schedule's.",
            show_default=False,
        ),
    ] = None,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """Predict every model and strategy of an experiment and, with [bold]--execute[/], run them too.

    Prints a table; times are per iteration. The exit status is 0, 2 for bad input, 1 for a run that failed.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.base.processes import cores
        from stanza_sim.experiment.loops import Files
        from stanza_sim.experiment.run import run_experiment
        from stanza_sim.report.folder import check_writable, write_result

        if compute is not None and not execute:
            raise InputError("nothing is computed without --execute", where="--compute", hint="add --execute")
        if dilate is not None and not execute:
            hint = "add --execute --testbed --compute emulated"
            raise InputError("nothing runs, so nothing can run more slowly", where="--dilate", hint=hint)
        if jobs is not None and execute:
            raise InputError("is for predictions alone", where="--jobs", hint="leave it out with --execute")
        if verbose and not execute:
            raise InputError("nothing listens without --execute", where="--verbose", hint="add --execute")

        if output is not None and speaks():
            check_writable(output)
        overrides = [
            *(settings or []),
            *([f"execute.compute={compute}"] if compute is not None else []),
            *([f"execute.dilate={dilate}"] if dilate is not None else []),
            *([f"network.nccl={nccl}"] if nccl is not None else []),
        ]
        if replayed is not None:
            given: dict[str, object] = {"--execute": execute, "--output": output, "--profile": profile}
            given |= {"--testbed": testbed, "--save-profile": save_profile, "--save": save, "--resume": resume}
            given |= {"--explain": explain, "--jobs": jobs}
            for option in (option for option, value in given.items() if value):
                raise InputError(f"replays what is in {replayed}", where="--from", hint=f"leave {option} out")
            _print_replay(replayed, experiment, overrides, as_json=as_json)
            return
        if experiment is None:
            raise InputError("which experiment?", where="run", hint="such as: stanza-sim run ec2_v100")
        with progress_if_seen() as tell:
            result = run_experiment(
                experiment,
                overrides=overrides,
                execute=execute,
                profiles=profile or [],
                save_profile=save_profile,
                testbed=testbed,
                jobs=jobs or (1 if execute else cores()),
                files=Files(save=save, resume=resume),
                say=saying(verbose),
                tell=tell,
            )
        if result is None or not speaks():
            return
        from stanza_sim.report.result import result_json
        from stanza_sim.report.table import print_explanations, print_result

        with progress() as tell:
            for i, row in enumerate(result.rows if explain else ()):
                tell("rows explained", i, len(result.rows))
                _ = row.details and row.details.explanation  # it is kept there
        text = result_json(result, explained=explain)
        if output is not None:
            write_result(result, output, text)
        with printing():
            if as_json:
                sys.stdout.write(text)
            else:
                print_result(result, stdout())
                if explain:
                    print_explanations(result, stdout())


def _print_replay(folder: Path, experiment: str | None, overrides: list[str], *, as_json: bool) -> None:
    from stanza_sim.experiment.replay import replay
    from stanza_sim.report.replayed import print_replayed, replayed_json

    name, rows = replay(folder, experiment, overrides, say=saying(verbose=False))
    with printing():
        if as_json:
            sys.stdout.write(replayed_json(name, rows))
        else:
            print_replayed(name, rows, stdout())


@app.command(epilog="Example:  [bold]stanza-sim flows case.json --json[/]")
def flows(
    case: Annotated[Path, typer.Argument(help="JSON file with hosts, links, routes and flows.", show_default=False)],
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Also write the JSON object.", show_default=False),
    ] = None,
) -> None:
    """Run a bare flow-level case: flows with dependencies that share links max-min fairly.

    Prints when each flow completes, what limited it, and how busy each link is. Bandwidths are bytes per second, times
    seconds, and every link is one direction.
    """
    with errors_for_people():
        from stanza_sim.base.errors import at
        from stanza_sim.report.flows import flows_json, flows_table, write_json
        from stanza_sim.simulate.flow_case import read_case
        from stanza_sim.simulate.flows import simulate_flows

        data = read_case(case)
        with at(str(case), outer=True):
            result = simulate_flows(data)
        if output is not None:
            write_json(result, output)
        with printing():
            if as_json:
                sys.stdout.write(flows_json(result))
            else:
                console = stdout()
                for line in flows_table(result):
                    console.print(line, soft_wrap=True)


def main() -> None:
    """Run the command that the arguments of this process name."""
    app()
