"""Makes a host of `nvidia-smi topo -m`. It holds neither rates nor what the GPUs are: asked for, or assumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stanza_sim.importers import gpus as known
from stanza_sim.importers.asked import Asked, device_name, devices_known, said_rate
from stanza_sim.importers.assumed import CORES, PRESET
from stanza_sim.importers.host_file import HostRead, Said, Tree, host_file, spread_evenly
from stanza_sim.importers.host_ports import FoundNic, Ports, added_nic, share_out
from stanza_sim.importers.native import Imported, Note, lines_text, rate_text
from stanza_sim.importers.reading import ForeignFile
from stanza_sim.importers.smi_matrix import NEARNESS, Matrix, read_matrices

LEVELS = ("nic", "nvlink", "pcie", "socket")
"""What `--rate` may state: a NIC, all NVLinks of a GPU, its PCI link, and from one socket to another; each way."""


def import_nvidia_smi(file: ForeignFile, asked: Asked) -> Imported:
    """Return the native file of a host. Raises `InputError` for what is wrong, and for what has to be asked for."""
    asked.check_levels(LEVELS, "a host")
    matrix = _chosen(file, asked)
    if asked.device is None:
        hint = f"state --device, one of: {devices_known()} (or the path of a device file)"
        raise file.wrong("does not say which GPUs they are", matrix.line, hint)
    device = device_name(asked.device, asked.target)
    generation = known.generation_of(device)
    notes: list[Note] = []
    groups = _switches(matrix)
    nvlink = _nvlink(file, matrix, asked, generation, notes)
    pci = _pci(file, matrix, asked, generation, needed=nvlink is None and len(matrix.gpus) > 1)
    ports = _ports(file, matrix, asked, notes)
    if nvlink:
        asked.check_used(["socket"], "NVLink joins the GPUs")
    hosts = asked.hosts or 1
    if hosts > 1 and not ports.ports:
        hint = "add one by --rate nic=RATE, such as --rate nic=100Gbps"
        raise file.wrong(f"has no NIC, and {hosts} hosts need one each", matrix.line, hint)
    count = len(matrix.gpus)
    read = HostRead(
        device=device,
        devices=count,
        devices_comment=f"--device; {matrix.gpus[0]} to {matrix.gpus[-1]}, lines {_lines(matrix, matrix.gpus)}",
        cores=_cores(file, matrix, asked),
        nvlink=nvlink,
        pci=pci,
        tree=Tree() if nvlink else _tree(matrix, asked, groups, ports, notes),
        host_link=_host_link(pci, groups) if nvlink and pci else None,
        ports=ports.ports,
    )
    if nvlink is not None and any(len(under) > 1 for under in groups):
        notes.append(Note(what="PCI switches are not stated: NVLink joins the GPUs, and NICs reach them directly"))
    text = host_file(
        read,
        name=asked.name or file.name,
        description=f"{count} {device.rpartition('/')[2]} a host, as `nvidia-smi topo -m` says in {file.name}.",
        source=file.path,
        program="`nvidia-smi topo -m`",
        notes=notes,
        hosts=hosts,
    )
    return Imported(text=text, notes=tuple(notes))


def _chosen(file: ForeignFile, asked: Asked) -> Matrix:
    """The matrix that is asked for; the only one, or one of several that say the same, without."""
    matrices = read_matrices(file)
    if asked.matrix is not None:
        if asked.matrix > len(matrices):
            what = f"there is no matrix {asked.matrix}: the file has {len(matrices)}"
            raise file.wrong(what, matrices[-1].line, "correct --matrix")
        return matrices[asked.matrix - 1]
    if any(other.cells != matrices[0].cells for other in matrices):
        lines = ", ".join(str(matrix.line) for matrix in matrices)
        hint = f"choose one by --matrix 1 to --matrix {len(matrices)}"
        raise file.wrong(f"has {len(matrices)} matrices (lines {lines}) that differ", matrices[1].line, hint)
    return matrices[0]


def _lines(matrix: Matrix, names: Sequence[str]) -> str:
    return lines_text(matrix.rows[name] for name in names)


def _cores(file: ForeignFile, matrix: Matrix, asked: Asked) -> Said:
    if asked.cores is not None:
        return Said(value=asked.cores, comment="--cores")
    threads: set[int] = set()
    for gpu in matrix.gpus:
        text = matrix.cpus.get(gpu, "")
        if not re.match(r"\d", text):
            continue
        for part in text.split(","):
            ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
            if ends is None:
                raise file.wrong(f"CPU Affinity of {gpu} is {text!r}", matrix.rows[gpu], "such as 0-23 or 0-47,96-143")
            threads.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    if threads:
        return Said(value=len(threads), comment="hardware threads in CPU Affinity, of all GPUs")
    return Said(value=CORES, comment="assumption: the file does not say; --cores states them")


# ---- links between devices -------------------------------------------------------------------------------------------


def _nvlink(
    file: ForeignFile, matrix: Matrix, asked: Asked, generation: known.Generation | None, notes: list[Note]
) -> Said | None:
    """All NVLinks of a GPU together, each way; None where they do not join all GPUs."""
    gpus = matrix.gpus
    pairs = [(a, b) for a in gpus for b in gpus if a != b and matrix.nvlinks(a, b)]
    stated = asked.rates.get("nvlink")
    if not pairs:
        if stated:
            raise file.wrong("has no NVLink between GPUs", matrix.line, "leave --rate nvlink=... out")
        return None
    if len(_joined(gpus, lambda a, b: matrix.nvlinks(a, b) > 0)) > 1:
        if stated:
            hint = "leave --rate nvlink=... out: PCI joins the GPUs, with --rate pcie=..."
            raise file.wrong("has NVLink that does not join all GPUs", matrix.rows[pairs[0][0]], hint)
        lines = tuple(matrix.rows[a] for a, _ in pairs)
        notes.append(Note(what="NVLink, which does not join all GPUs, is not used: PCI joins them", lines=lines))
        return None
    if stated is not None:
        return Said(value=stated, comment=said_rate("nvlink", stated)) if stated else None
    link_Bps = known.nvlink_Bps(generation.sm) if generation else None
    if generation is None or link_Bps is None:
        hint = "state --rate nvlink=RATE, of all links of a GPU each way, such as --rate nvlink=240GB/s"
        raise file.wrong(f"the rate of an NVLink of {asked.device} is not known", matrix.rows[pairs[0][0]], hint)
    sums = [sum(matrix.nvlinks(a, b) for b in gpus if a != b) for a in gpus]
    switched = max(sums) > known.most_nvlinks(generation.sm)
    counts = [max(matrix.nvlinks(a, b) for b in gpus if a != b) for a in gpus] if switched else sums
    least = min(counts)
    if least > known.most_nvlinks(generation.sm):
        what = f"{least} NVLinks, but {asked.device} has no more than {known.most_nvlinks(generation.sm)}"
        raise file.wrong(what, matrix.rows[gpus[0]], "correct --device, or state --rate nvlink=RATE")
    if least != max(counts):
        gpu = gpus[counts.index(least)]
        what = f"GPUs have {least} to {max(counts)} NVLinks; taken as {least} each"
        notes.append(Note(what=what, lines=(matrix.rows[gpu],)))
    if not switched and len(pairs) < len(gpus) * (len(gpus) - 1):
        what = "NVLinks from GPU to GPU, not all of which have one: taken as if a switch joined them"
        notes.append(Note(what=what))
    how = "over a switch" if switched else "from GPU to GPU"
    comment = f"{least} NVLinks of {rate_text(link_Bps)} {how}: {known.NVLINK_SOURCE} for such a GPU"
    return Said(value=least * link_Bps, comment=comment)


def _joined(names: Sequence[str], near: Callable[[str, str], bool]) -> list[list[str]]:
    """Names in groups within which everything is near to something; in the order of the names."""
    groups: list[list[str]] = []
    left = list(names)
    while left:
        group = [left.pop(0)]
        for name in group:  # it grows meanwhile
            found = [other for other in left if near(name, other)]
            group += found
            left = [other for other in left if other not in found]
        groups.append([name for name in names if name in group])
    return groups


def _pci(
    file: ForeignFile, matrix: Matrix, asked: Asked, generation: known.Generation | None, *, needed: bool
) -> Said | None:
    """The PCI link of a GPU, each way: as asked for, or of 16 lanes of its generation."""
    if "pcie" in asked.rates:
        return Said(value=asked.rates["pcie"], comment=said_rate("pcie", asked.rates["pcie"]))
    rate = known.pci_Bps(generation.pci, 16) if generation else None
    if generation is None or rate is None:
        if not needed:
            return None
        hint = "state --rate pcie=RATE, of a GPU's link each way, such as --rate pcie=24GB/s"
        raise file.wrong(f"the PCI link of {asked.device} is not known", matrix.line, hint)
    comment = f"assumption: {generation.pci:g} GT/s x16, as such a GPU has; {known.PCI_SOURCE}"
    return Said(value=rate, comment=comment)


def _switches(matrix: Matrix) -> list[list[str]]:
    """GPUs and NICs that reach each other without the root complex, in groups of two or more of which one is a GPU."""
    groups = _joined(matrix.names, lambda a, b: matrix.between(a, b) in ("PIX", "PXB"))
    return [group for group in groups if len(group) > 1 and any(name in matrix.gpus for name in group)]


def _host_link(pci: Said, groups: Sequence[Sequence[str]]) -> Said:
    most = max((sum(name.startswith("GPU") for name in group) for group in groups), default=1)
    if most == 1:
        return pci
    return Said(value=pci.value / most, comment=f"{most} GPUs share a link, and all copy at once; {pci.comment}")


def _sockets(matrix: Matrix) -> list[str]:
    """What each GPU's socket is called: its NUMA node or, where that is not there, the first GPU that is on it."""
    stated = [matrix.numa.get(gpu, "") for gpu in matrix.gpus]
    if all(re.fullmatch(r"\d+", node) for node in stated):
        return stated
    groups = _joined(matrix.names, lambda a, b: matrix.between(a, b) in ("PIX", "PXB", "PHB", "NODE"))
    return [next(group[0] for group in groups if gpu in group) for gpu in matrix.gpus]


def _tree(matrix: Matrix, asked: Asked, groups: Sequence[Sequence[str]], ports: Ports, notes: list[Note]) -> Tree:
    """The tree that joins GPUs without NVLink, as far as a native file can state it."""
    sockets = _sockets(matrix)
    number = {gpu: d for d, gpu in enumerate(matrix.gpus)}
    order = list(dict.fromkeys(sockets))
    under = [[number[name] for name in group if name in number] for group in groups]
    by_socket = sorted(range(len(groups)), key=lambda w: (order.index(sockets[under[w][0]]), under[w][0]))
    switches = tuple(tuple(under[w]) for w in by_socket)
    names = [groups[w] for w in by_socket]
    listed = {d for found in switches for d in found}
    n = len(order)
    even = spread_evenly(sockets, [sockets[found[0]] for found in switches], [d in listed for d in range(len(sockets))])
    if n > 1 and not even:
        notes.append(Note(what="GPUs are not shared out over sockets evenly, or not in order: taken as one socket"))
        n = 1
    socket = asked.rates.get("socket")
    if n == 1:
        asked.check_used(["socket"], "the GPUs are on one socket, or taken to be")
    if n > 1 and socket is None:
        notes.append(Note(what="nothing limits what passes between sockets; --rate socket=RATE does"))
    at_switch = bool(switches and ports.used) and all(
        matrix.nics[i] in names[p * len(names) // len(ports.used)]
        for p, bundle in enumerate(ports.used)
        for i in bundle
    )
    return Tree(
        switches=switches,
        switches_comment="those with PIX or PXB between them",
        sockets=n,
        sockets_comment="by NUMA Affinity" if sockets[0] in matrix.numa.values() else "those with SYS between them",
        socket=None if socket is None else Said(value=socket, comment=said_rate("socket", socket)),
        nics_at_switch=at_switch,
    )


# ---- NICs ------------------------------------------------------------------------------------------------------------


def _ports(file: ForeignFile, matrix: Matrix, asked: Asked, notes: list[Note]) -> Ports:
    stated = asked.rates.get("nic")
    named = [matrix.legend.get(nic, nic) for nic in matrix.nics]
    if matrix.nics and stated is None:
        what = f"does not say how fast the NICs are: {', '.join(named[:8])}"
        hint = "state --rate nic=RATE, of a port each way, such as --rate nic=200Gbps"
        raise file.wrong(what, matrix.rows[matrix.nics[0]], hint)
    if stated is None:
        return Ports(ports=(), used=(), notes=())
    nics = [
        FoundNic(name=name, line=matrix.rows[nic], rate_Bps=stated, preset=PRESET)
        for name, nic in zip(named, matrix.nics, strict=True)
    ]
    if not nics:
        return added_nic(stated, said_rate("nic", stated))
    near = []
    for gpu in matrix.gpus:
        ranks = [NEARNESS.index(matrix.between(gpu, nic)) for nic in matrix.nics]
        near.append([i for i, rank in enumerate(ranks) if rank == min(ranks)])
    shared = share_out(nics, near)
    notes += shared.notes
    return shared
