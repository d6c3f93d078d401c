"""`stanza-sim import nccl-topo` and its like: what programs say of hosts and networks, made into cluster files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say

if TYPE_CHECKING:
    from stanza_sim.importers.asked import Asked
    from stanza_sim.importers.looks_like import Foreign
    from stanza_sim.importers.native import Imported
    from stanza_sim.importers.reading import ForeignFile

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file to read.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Where the cluster goes. [default: stdout]", show_default=False
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="What the GPUs are, such as A100.", show_default=False),
]
Rates = Annotated[
    list[str] | None,
    typer.Option(
        "--rate", metavar="LEVEL=RATE", help="A rate each way, such as nic=200Gbps; repeatable.", show_default=False
    ),
]
Cores = Annotated[
    int | None, typer.Option("--cores", min=1, help="Cores of a host. [default: as it says]", show_default=False)
]
Hosts = Annotated[
    int | None, typer.Option("--hosts", min=1, help="How many such hosts. [default: 1]", show_default=False)
]


def import_file(
    path: Path,
    output: Path | None,
    *,
    kind: Foreign,
    reader: Callable[[ForeignFile, Asked], Imported],
    rates: Sequence[str] | None,
    none: Sequence[str] = (),
    name: str | None = None,
    **options: str | int | None,
) -> None:
    """Read a file, and write what it makes, checked, to `output` or to stdout; say on stderr what was not used."""
    from stanza_sim.base.errors import InputError
    from stanza_sim.base.files import check_target, write_whole
    from stanza_sim.importers.asked import Asked, parse_rates
    from stanza_sim.importers.native import check_native
    from stanza_sim.importers.reading import read_foreign

    if output is not None:
        check_target(output)
        if output.suffix not in (".yaml", ".yml"):
            raise InputError("is no name of a cluster file", where=f"-o {output}", hint="write such as mine.yaml")
        name = output.stem
    asked = Asked(name=name, rates=parse_rates(rates or (), none=none), **options)  # type: ignore[arg-type]
    made = reader(read_foreign(path, kind), asked)
    check_native(made.text, str(path), output)
    for note in made.notes:
        say(note.at(str(path)))
    if output is None:
        with printing():
            typer.echo(made.text, nl=False)
        return
    write_whole(made.text, output)
    say(f"written to {output}")


_NCCL_EXAMPLES = """Examples:\n
[bold]NCCL_TOPO_DUMP_FILE=host.xml python train.py[/]\n
[bold]stanza-sim import nccl-topo host.xml -o host.yaml --hosts 4[/]\n
[bold]stanza-sim import nccl-topo ndv5-topo.xml --device H100 --rate nic=400Gbps --rate nvlink=370GB/s -o ndv5.yaml[/]
"""


def nccl_topo(
    file: File,
    output: Output = None,
    device: Device = None,
    rate: Rates = None,
    hosts: Hosts = None,
    cores: Cores = None,
) -> None:
    """Make a host of NCCL's XML: a dump ([bold]NCCL_TOPO_DUMP_FILE[/]) or a hint ([bold]NCCL_TOPO_FILE[/]).

    Levels of [bold]--rate[/] are nic (a port), nvlink (all NVLinks of a GPU, or none), pcie (a GPU's link) and socket
    (from one socket to another). NICs on no bus are dropped.
    """
    with errors_for_people():
        from stanza_sim.importers.looks_like import Foreign
        from stanza_sim.importers.nccl_topo import import_nccl_topo

        import_file(
            file,
            output,
            kind=Foreign.NCCL_TOPO,
            reader=import_nccl_topo,
            rates=rate,
            none=("nvlink",),
            device=device,
            hosts=hosts,
            cores=cores,
        )


_SMI_EXAMPLES = """Examples:\n
[bold]nvidia-smi topo -m > host.txt[/]\n
[bold]stanza-sim import nvidia-smi host.txt --device A100 --rate nic=200Gbps --hosts 16 -o host.yaml[/]
"""


def nvidia_smi(
    file: File,
    output: Output = None,
    device: Device = None,
    rate: Rates = None,
    hosts: Hosts = None,
    cores: Cores = None,
    matrix: Annotated[
        int | None,
        typer.Option("--matrix", min=1, metavar="N", help="Which, of several in the file.", show_default=False),
    ] = None,
) -> None:
    """Make a host of the output of [bold]nvidia-smi topo -m[/], which holds no rates and no name of the GPUs.

    Levels of [bold]--rate[/] are nic (a port), nvlink (all NVLinks of a GPU, or none), pcie (a GPU's link) and socket
    (from one socket to another). NVLink and PCI are of the device's generation if they are left out.
    """
    with errors_for_people():
        from stanza_sim.importers.looks_like import Foreign
        from stanza_sim.importers.nvidia_smi import import_nvidia_smi

        import_file(
            file,
            output,
            kind=Foreign.NVIDIA_SMI,
            reader=import_nvidia_smi,
            rates=rate,
            none=("nvlink",),
            device=device,
            hosts=hosts,
            cores=cores,
            matrix=matrix,
        )


def add_cluster_commands(app: typer.Typer) -> None:
    """Add the commands to `stanza-sim import`."""
    app.command("nccl-topo", epilog=_NCCL_EXAMPLES)(nccl_topo)
    app.command("nvidia-smi", epilog=_SMI_EXAMPLES)(nvidia_smi)
