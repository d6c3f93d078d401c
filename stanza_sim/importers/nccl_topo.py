"""Makes a host of NCCL's XML: a dump of what NCCL saw, or a hint that tells it."""

from __future__ import annotations

from collections.abc import Sequence

from stanza_sim.base.config import Kind, available
from stanza_sim.importers import gpus as known
from stanza_sim.importers.asked import Asked, device_name, devices_known, said_rate
from stanza_sim.importers.assumed import CORES
from stanza_sim.importers.host_file import HostRead, Said, Tree, host_file, spread_evenly
from stanza_sim.importers.host_ports import FoundNic, Ports, added_nic, share_out
from stanza_sim.importers.native import Imported, Note, lines_text, rate_text
from stanza_sim.importers.nccl_xml import Gpu, System, affinity, link_speed, number, read_system
from stanza_sim.importers.reading import ForeignFile
from stanza_sim.importers.xml_lines import Element

LEVELS = ("nic", "nvlink", "pcie", "socket")
"""What `--rate` may state: a NIC, all NVLinks of a GPU, its PCI link, and from one socket to another; each way."""


def import_nccl_topo(file: ForeignFile, asked: Asked) -> Imported:
    """Return the native file of a host. Raises `InputError` for what is wrong, and for what has to be asked for."""
    asked.check_levels(LEVELS, "a host")
    system = read_system(file)
    notes = list(system.notes)
    device = _device(system, asked, notes)
    generation = known.generation_of(device)
    sm = next((gpu.sm for gpu in system.gpus if gpu.sm), generation.sm if generation else None)
    nvlink = _nvlink(system, asked, sm, notes)
    pci = _pci(system, asked, notes, needed=nvlink is None)
    ports = _ports(system, asked, notes)
    if nvlink:
        asked.check_used(["socket"], "NVLink joins the GPUs")
    hosts = asked.hosts or system.hosts
    if hosts > 1 and not ports.ports:
        hint = "add one by --rate nic=RATE, such as --rate nic=100Gbps"
        raise file.wrong(f"has no NIC, and {hosts} hosts need one each", hint=hint)
    count = len(system.gpus)
    order = [gpu.dev for gpu in system.gpus]
    numbered = f"; device d is the GPU with dev {', '.join(order)}" if order != [str(d) for d in range(count)] else ""
    of_lines = f"lines {lines_text(gpu.line for gpu in system.gpus)}"
    read = HostRead(
        device=device,
        devices=count,
        devices_comment=of_lines + (numbered if all(order) else ""),
        cores=_cores(system, asked),
        nvlink=nvlink,
        pci=pci,
        tree=Tree() if nvlink else _tree(system, asked, ports, notes),
        host_link=_host_link(system, pci) if nvlink else None,
        ports=ports.ports,
    )
    if nvlink and any(gpu.bridges for gpu in system.gpus):
        notes.append(
            Note(what="the tree of PCI bridges is not stated: NVLink joins the GPUs, and NICs reach them directly")
        )
    text = host_file(
        read,
        name=asked.name or file.name,
        description=f"{count} {device.rpartition('/')[2]} a host, as in NCCL's file {file.name}.",
        source=file.path,
        program="NCCL's XML of a host",
        notes=notes,
        hosts=hosts,
    )
    return Imported(text=text, notes=tuple(notes))


# ---- devices ---------------------------------------------------------------------------------------------------------


def _device(system: System, asked: Asked, notes: list[Note]) -> str:
    """The name of the GPUs: as asked for, else by their number on the bus where there are data of it."""
    ids = {gpu.pci.get("device").lower(): gpu for gpu in system.gpus if gpu.pci is not None and gpu.pci.get("device")}
    names = {known.PCI_NAMES[number]: gpu for number, gpu in ids.items() if number in known.PCI_NAMES}
    said = " and ".join(names)
    if asked.device is not None:
        if names and asked.device not in names:
            line = next(iter(names.values())).line
            notes.append(Note(what=f"the GPUs are {said}; taken as {asked.device} by --device", lines=(line,)))
        return device_name(asked.device, asked.target)
    line = system.gpus[0].line
    hint = f"state --device, one of: {devices_known()} (or the path of a device file)"
    if len(names) == 1 and len(ids) == 1:
        if said in available(Kind.DEVICES):
            return said
        raise system.file.wrong(f"the GPUs are {said}, of which there is no device file", line, hint)
    sm = system.gpus[0].sm
    what = f"does not know GPUs of the number {' and '.join(ids)}" if ids else "does not say which GPUs they are"
    raise system.file.wrong(f"{what} (compute capability {sm / 10:g})" if sm else what, line, hint)


def _cores(system: System, asked: Asked) -> Said:
    if asked.cores is not None:
        return Said(value=asked.cores, comment="--cores")
    if threads := affinity(system.file, system.cpus):
        lines = lines_text(cpu.line for cpu in system.cpus)
        return Said(value=threads, comment=f"hardware threads in `affinity`, lines {lines}")
    return Said(value=CORES, comment="assumption: the file does not say; --cores states them")


# ---- links between devices -------------------------------------------------------------------------------------------


def _nvlink(system: System, asked: Asked, sm: int | None, notes: list[Note]) -> Said | None:
    """All NVLinks of a GPU together, each way; None where they do not join all GPUs."""
    stated = asked.rates.get("nvlink")
    links = [link for gpu in system.gpus for link in gpu.nvlinks]
    if stated is not None:
        if stated and len(system.gpus) < 2:
            raise system.file.wrong("has one GPU, which no NVLink joins to another", hint="leave --rate nvlink=... out")
        return Said(value=stated, comment=said_rate("nvlink", stated)) if stated else None
    if len(system.gpus) < 2:
        return None
    if not links:
        if all(gpu.sm is None for gpu in system.gpus):  # a hint, which holds no links
            hint = "state --rate nvlink=RATE, of all links of a GPU each way (such as 240GB/s), or --rate nvlink=none"
            raise system.file.wrong("does not say whether NVLink joins the GPUs", system.gpus[0].line, hint)
        return None
    for gpu in system.gpus:
        _check_back(system, gpu)
    if not _joined(system):
        what = "NVLink, which does not join all GPUs, is not used: PCI joins them"
        notes.append(Note(what=what, lines=tuple(link.line for link in links)))
        return None
    link_Bps = known.nvlink_Bps(sm) if sm is not None else None
    if link_Bps is None:
        hint = "state --rate nvlink=RATE, of all links of a GPU each way, such as --rate nvlink=240GB/s"
        raise system.file.wrong("the rate of an NVLink of these GPUs is not known", links[0].line, hint)
    counts = [sum(_count(system.file, link) for link in gpu.nvlinks) for gpu in system.gpus]
    least = min(counts)
    if least != max(counts):
        gpu = system.gpus[counts.index(least)]
        what = f"GPUs have {least} to {max(counts)} NVLinks; taken as {least} each"
        notes.append(Note(what=what, lines=(gpu.line,)))
    if not any(_to_switch(link) for link in links) and not _all_to_all(system):
        notes.append(Note(what="NVLinks from GPU to GPU, not all of which have one: taken as if a switch joined them"))
    where = lines_text(link.line for link in links)
    comment = f"{least} NVLinks of {rate_text(link_Bps)}, {known.NVLINK_SOURCE}; lines {where}"
    return Said(value=least * link_Bps, comment=comment)


def _count(file: ForeignFile, link: Element) -> int:
    count = number(file, link, "count")
    if count is None or not 1 <= count <= 100:
        raise file.wrong("an <nvlink> needs a count of 1 or more", link.line)
    return count


def _to_switch(link: Element) -> bool:
    return link.get("tclass").lower().startswith("0x0680")


def _targets(system: System, gpu: Gpu) -> dict[str, int]:
    """The GPUs that a GPU has NVLinks to, by their number on the bus, with how many."""
    others = {other.busid for other in system.gpus}
    found: dict[str, int] = {}
    for link in gpu.nvlinks:
        if (target := link.get("target").lower()) in others:
            found[target] = found.get(target, 0) + _count(system.file, link)
    return found


def _check_back(system: System, gpu: Gpu) -> None:
    """Refuse NVLinks that the other end counts otherwise."""
    by_bus = {other.busid: other for other in system.gpus}
    for target, count in _targets(system, gpu).items():
        back = _targets(system, by_bus[target]).get(gpu.busid)
        if target == gpu.busid:
            raise system.file.wrong("has an NVLink to itself", gpu.line)
        if back is not None and back != count:
            what = f"{count} NVLinks to {target}, which has {back} back (line {by_bus[target].line})"
            raise system.file.wrong(what, gpu.line, "both ends have the same number")


def _joined(system: System) -> bool:
    """Whether NVLinks join all GPUs, over switches or each other."""
    numbers = {gpu.busid: i for i, gpu in enumerate(system.gpus)}
    reached, waiting = {0}, [0]
    switched = [any(_to_switch(link) for link in gpu.nvlinks) for gpu in system.gpus]
    to: list[set[int]] = [{numbers[t] for t in _targets(system, gpu)} for gpu in system.gpus]
    for i, targets in enumerate(to):
        for t in targets:
            to[t].add(i)
    while waiting:
        i = waiting.pop()
        near = to[i] | ({j for j, s in enumerate(switched) if s} if switched[i] else set())
        waiting += near - reached
        reached |= near
    return len(reached) == len(system.gpus)


def _all_to_all(system: System) -> bool:
    return all(len(_targets(system, gpu)) == len(system.gpus) - 1 for gpu in system.gpus)


# ---- PCI -------------------------------------------------------------------------------------------------------------


def _pci(system: System, asked: Asked, notes: list[Note], *, needed: bool) -> Said | None:
    """The PCI link of a GPU, each way; None where the file does not say it and it is not needed."""
    if "pcie" in asked.rates:
        return Said(value=asked.rates["pcie"], comment=said_rate("pcie", asked.rates["pcie"]))
    rates, unknown = [], []
    for gpu in system.gpus:
        rate = None if gpu.pci is None else _rate(gpu.pci)
        if rate is None:
            unknown.append(gpu)
        else:
            rates.append((rate, gpu))
    if unknown and not needed:
        what = "does not say how fast a GPU's PCI link is: nothing is stated for it; --rate pcie=RATE does"
        notes.append(Note(what=what, lines=tuple((gpu.pci or gpu).line for gpu in unknown)))
        return None
    if unknown:
        hint = "state --rate pcie=RATE, of a GPU's link each way, such as --rate pcie=24GB/s"
        said = "" if unknown[0].pci is None else unknown[0].pci.get("link_speed")
        what = f"the link of a GPU has the speed {said!r}" if said else "does not say how fast a GPU's PCI link is"
        raise system.file.wrong(what, (unknown[0].pci or unknown[0]).line, hint)
    rate, gpu = min(rates, key=lambda found: found[0])
    if rate != max(r for r, _ in rates):
        what = "GPUs have PCI links of several rates; taken as the least"
        notes.append(Note(what=what, lines=tuple(g.line for r, g in rates if r != rate)))
    assert gpu.pci is not None
    return Said(value=rate, comment=f"{_said_link(gpu.pci)}: {known.PCI_SOURCE}")


def _rate(pci: Element) -> float | None:
    speed = link_speed(pci)
    return None if speed is None else known.pci_Bps(*speed)


def _said_link(pci: Element) -> str:
    speed = link_speed(pci)
    assert speed is not None
    return f"{speed[0]:g} GT/s x{speed[1]}, line {pci.line}"


def _above(gpu: Gpu) -> Element | None:
    """The bridge nearest to the root complex above a GPU: what it shares with others there limits it."""
    return gpu.bridges[0] if gpu.bridges else None


def _host_link(system: System, pci: Said | None) -> Said | None:
    """What a GPU with NVLink and host memory exchange: its share of the link that leads there."""
    if links := system.gpus[0].c2c:
        megabytes = [(number(system.file, e, "bw") or 0) * (number(system.file, e, "count") or 1) for e in links]
        if sum(megabytes):
            return Said(value=sum(megabytes) * 1e6, comment=f"<c2c>, line {links[0].line}")
    if pci is None:
        return None
    least, said = pci.value, pci.comment
    for bridge in dict.fromkeys(b for gpu in system.gpus if (b := _above(gpu)) is not None):
        below = sum(_above(gpu) is bridge for gpu in system.gpus)
        rate = _rate(bridge)
        if rate is not None and rate / below < least:
            least, said = rate / below, f"{below} GPUs share {_said_link(bridge)}, and all copy at once"
    return Said(value=least, comment=said)


def _tree(system: System, asked: Asked, ports: Ports, notes: list[Note]) -> Tree:
    """The tree that joins GPUs without NVLink, as far as a native file can state it."""
    gpus = system.gpus
    bridges = list(dict.fromkeys(b for gpu in gpus if (b := _above(gpu)) is not None and _shared(system, b)))
    switches = tuple(tuple(d for d, gpu in enumerate(gpus) if _above(gpu) is b) for b in bridges)
    rates = [(rate, b) for b in bridges if (rate := _rate(b)) is not None]
    slowest = min(rates, key=lambda found: found[0], default=None)
    deeper = [b.line for gpu in gpus for b in gpu.bridges[1:]]
    if switches and deeper:
        what = "bridges below others are not stated: what hangs under one of the outermost hangs there directly"
        notes.append(Note(what=what, lines=tuple(deeper)))
    if slowest is not None and any(rate != slowest[0] for rate, _ in rates):
        notes.append(
            Note(what="bridges have uplinks of several rates; taken as the least", lines=tuple(b.line for b in bridges))
        )
    near = [gpu.path[0] for gpu in gpus]
    sockets = len(set(near))
    spread = spread_evenly(near, [near[under[0]] for under in switches], [_above(g) in bridges for g in gpus])
    if sockets > 1 and not spread:
        notes.append(Note(what="GPUs are not shared out over NUMA nodes evenly: taken as one node"))
        sockets = 1
    at_switch = (
        bool(switches)
        and bool(ports.ports)
        and all(
            _above_path(system.nets[i].path) is bridges[n * len(bridges) // len(ports.ports)]
            for n, bundle in enumerate(ports.used)
            for i in bundle
        )
    )
    if sockets == 1:
        asked.check_used(["socket"], "the GPUs are on one NUMA node, or taken to be")
    lines = lines_text(b.line for b in bridges)
    return Tree(
        switches=switches,
        switches_comment=f"PCI bridges of lines {lines}",
        switch=None if slowest is None else Said(value=slowest[0], comment=f"{_said_link(slowest[1])}, of its link up"),
        sockets=sockets,
        sockets_comment=f"NUMA nodes with GPUs, lines {lines_text(c.line for c in system.cpus if c in near)}",
        socket=_between(system, asked, notes) if sockets > 1 else None,
        nics_at_switch=at_switch and bool(ports.used),
    )


def _shared(system: System, bridge: Element) -> bool:
    """Whether something else hangs under a bridge beside one GPU."""
    gpus = sum(bridge in gpu.path for gpu in system.gpus)
    return gpus > 1 or any(bridge in net.path for net in system.nets)


def _above_path(path: Sequence[Element]) -> Element | None:
    return next((e for e in path if e.tag == "pci"), None)


def _between(system: System, asked: Asked, notes: list[Note]) -> Said | None:
    if "socket" in asked.rates:
        return Said(value=asked.rates["socket"], comment=said_rate("socket", asked.rates["socket"]))
    cpu = system.cpus[0]
    family, model = (number(system.file, cpu, key) for key in ("familyid", "modelid"))
    rate = known.between_sockets_Bps(cpu.get("arch"), cpu.get("vendor"), family, model)
    if rate is None:
        what = (
            "does not say which processor it has: nothing limits what passes between sockets; --rate socket=RATE does"
        )
        notes.append(Note(what=what, lines=(cpu.line,)))
        return None
    return Said(value=rate, comment=f"{cpu.get('vendor') or cpu.get('arch')}, {known.NVLINK_SOURCE}; line {cpu.line}")


# ---- NICs ------------------------------------------------------------------------------------------------------------


def _ports(system: System, asked: Asked, notes: list[Note]) -> Ports:
    stated = asked.rates.get("nic")
    found: list[FoundNic] = []
    for net in system.nets:
        rate = stated or net.rate_Bps
        if rate is None:
            hint = "state --rate nic=RATE, of a port each way, such as --rate nic=200Gbps"
            raise system.file.wrong(f"does not say how fast the NIC {net.name} is", net.line, hint)
        found.append(FoundNic(name=net.name, line=net.line, rate_Bps=rate, preset=net.preset))
    if not found and stated:
        return added_nic(stated, said_rate("nic", stated))
    near = [_nearest(gpu, [net.path for net in system.nets]) for gpu in system.gpus]
    shared = share_out(found, near)
    notes += shared.notes
    return shared


def _nearest(gpu: Gpu, paths: Sequence[Sequence[Element]]) -> list[int]:
    """The NICs that share most of the way from the root complex with a GPU."""
    common = [sum(a is b for a, b in zip(gpu.path, path, strict=False)) for path in paths]
    return [i for i, shared in enumerate(common) if shared == max(common)]
