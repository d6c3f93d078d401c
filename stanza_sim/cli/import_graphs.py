"""`stanza-sim import infragraph` and `simai`: whole networks of other programs, made into cluster files."""

from __future__ import annotations

import typer

from stanza_sim.cli.console import errors_for_people
from stanza_sim.cli.import_clusters import Cores, Device, File, Hosts, Output, Rates, import_file

_INFRAGRAPH_EXAMPLES = """Examples:\n
[bold]stanza-sim import infragraph cluster.yaml -o mine.yaml --device H100 --rate nvlink=25GB/s[/]\n
[bold]stanza-sim import infragraph dgx.yaml --hosts 4 --rate nvlink=50GB/s --rate nic=200Gbps -o four.yaml[/]
"""
_SIMAI_EXAMPLES = """Examples:\n
[bold]stanza-sim import simai Spectrum-X_128g_8gps_400Gbps_H100 -o mine.yaml[/]\n
[bold]stanza-sim import simai topology.txt --device H100 -o mine.yaml[/]
"""


def infragraph(
    file: File,
    output: Output = None,
    device: Device = None,
    rate: Rates = None,
    hosts: Hosts = None,
    cores: Cores = None,
) -> None:
    """Make a cluster of an InfraGraph (YAML or JSON): hosts are its instances of devices with XPUs.

    [bold]--rate[/] states what one link carries, by the link's name in the file, where the file does not say. A file of
    one host may be repeated with [bold]--hosts[/] and [bold]--rate nic=...[/], which are then on one switch.
    """
    with errors_for_people():
        from stanza_sim.importers.infragraph_cluster import import_infragraph
        from stanza_sim.importers.looks_like import Foreign

        import_file(
            file,
            output,
            kind=Foreign.INFRAGRAPH,
            reader=import_infragraph,
            rates=rate,
            device=device,
            hosts=hosts,
            cores=cores,
        )


def simai(file: File, output: Output = None, device: Device = None, cores: Cores = None) -> None:
    """Make a cluster of a topology of SimAI, or of ASTRA-sim's ns-3 backend, where each node is a host of one GPU.

    Servers, NVSwitches, switches and links are as in the file. Its header names the GPU, unless [bold]--device[/] does.
    """
    with errors_for_people():
        from stanza_sim.importers.looks_like import Foreign
        from stanza_sim.importers.simai import import_simai

        import_file(
            file,
            output,
            kind=Foreign.SIMAI_TOPOLOGY,
            reader=import_simai,
            rates=None,
            device=device,
            cores=cores,
        )


def add_graph_commands(app: typer.Typer) -> None:
    """Add the commands to `stanza-sim import`."""
    app.command("infragraph", epilog=_INFRAGRAPH_EXAMPLES)(infragraph)
    app.command("simai", epilog=_SIMAI_EXAMPLES)(simai)
