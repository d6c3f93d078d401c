"""Reads NCCL's XML of a host: what `NCCL_TOPO_DUMP_FILE` writes, and hints for `NCCL_TOPO_FILE`, as clouds ship them.

Elements (NVIDIA/nccl, src/graph/xml.cc): `cpu` is a NUMA node, `pci` a bridge or device, `gpu` with its `nvlink`s, and
`nic` with a `net` for each port. A hint holds no more than the tree of `pci`; there, its class tells what a device is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stanza_sim.importers.native import Note
from stanza_sim.importers.reading import ForeignFile
from stanza_sim.importers.xml_lines import Element, read_xml

EXPECTED = 'XML as NCCL_TOPO_DUMP_FILE writes it (<system version="1"> with <cpu>, <pci>, <gpu>)'
_KNOWN = {"system", "cpu", "pci", "gpu", "nvlink", "nic", "net", "c2c", "pcilink", "xgmi"}
_VIRTUAL = re.compile(r"(veth|cali|docker|br-|virbr|lo$|lo\d|tunl|tun\d|tap|flannel|cni|dummy|bond\d|vxlan|kube|ovs)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU: its number (empty in a hint), its line, the elements from its NUMA node to its place, and its links."""

    dev: str
    line: int
    path: tuple[Element, ...]
    sm: int | None
    pci: Element | None
    nvlinks: tuple[Element, ...]
    c2c: tuple[Element, ...]

    @property
    def busid(self) -> str:
        """Its number on the bus."""
        return "" if self.pci is None else self.pci.get("busid").lower()

    @property
    def bridges(self) -> tuple[Element, ...]:
        """The bridges above it, from the root complex down."""
        return tuple(e for e in self.path if e.tag == "pci" and e is not self.pci)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A port of a NIC: its line and place as of a GPU, its rate if the file says it, its transport's preset."""

    name: str
    line: int
    path: tuple[Element, ...]
    rate_Bps: float | None
    preset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What a file holds: its NUMA nodes, its GPUs and NICs in the order of the tree, and what was left out."""

    file: ForeignFile
    cpus: tuple[Element, ...]
    gpus: tuple[Gpu, ...]
    nets: tuple[Net, ...]
    hosts: int
    notes: tuple[Note, ...]


def read_system(file: ForeignFile) -> System:
    """Return what a file holds. Raises `InputError` for one that is no such file or contradicts itself."""
    root = read_xml(file, expected=EXPECTED)
    if root.tag != "system":
        raise file.wrong(f"begins with <{root.tag}>", root.line, f"{EXPECTED} is expected")
    cpus = [e for e in root.children if e.tag == "cpu"]
    if not cpus:
        raise file.wrong("has no <cpu>", root.line, f"{EXPECTED} is expected")
    _check_busids(file, root)
    notes = _unknown(root)
    cpus, hosts = _first_host(file, cpus, notes)
    gpus: list[Gpu] = []
    nets: list[Net] = []
    virtual: list[Element] = []
    for cpu in cpus:
        _walk(file, cpu, (cpu,), gpus, nets, virtual)
    if not gpus:
        raise file.wrong("has no GPU", root.line, "a <gpu>, or a <pci> of class 0x0302, is expected")
    by_dev: dict[str, Gpu] = {}
    for gpu in gpus:
        if gpu.dev and (other := by_dev.setdefault(gpu.dev, gpu)) is not gpu:
            raise file.wrong(
                f"has GPU {gpu.dev} twice, also on line {other.line}", gpu.line, "each <gpu> has a dev of its own"
            )
    if virtual:
        names = list(dict.fromkeys(e.get("name") for e in virtual))
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        what = f"{len(names)} virtual NICs dropped, which are on no bus" if len(names) > 1 else "a virtual NIC dropped"
        notes.append(Note(what=f"{what}: {shown}", lines=tuple(e.line for e in virtual)))
    return System(file=file, cpus=tuple(cpus), gpus=tuple(gpus), nets=tuple(nets), hosts=hosts, notes=tuple(notes))


def _check_busids(file: ForeignFile, root: Element) -> None:
    seen: dict[tuple[str, str], Element] = {}
    for top in root.children:
        for element in top.walk():
            if element.tag != "pci":
                continue
            if not (busid := element.get("busid").lower()):
                raise file.wrong("a <pci> has no busid", element.line, 'write such as busid="0000:01:00.0"')
            other = seen.setdefault((top.get("host_hash"), busid), element)  # hosts have buses of their own
            if other is not element:
                what = f"has the device {busid} twice, also on line {other.line}"
                raise file.wrong(what, element.line, "a device is in one place")


def _unknown(root: Element) -> list[Note]:
    lines: dict[str, list[int]] = {}
    for element in root.walk():
        if element.tag not in _KNOWN:
            lines.setdefault(element.tag, []).append(element.line)
    return [Note(what=f"<{tag}> is not used", lines=tuple(found)) for tag, found in lines.items()]


def _first_host(file: ForeignFile, cpus: list[Element], notes: list[Note]) -> tuple[list[Element], int]:
    """Of a dump of several hosts (of one NVLink domain) take the first; return it, and how many there are."""
    by_host: dict[str, list[Element]] = {}
    for cpu in cpus:
        by_host.setdefault(cpu.get("host_hash"), []).append(cpu)
    counts = {host: sum(e.tag == "gpu" for cpu in found for e in cpu.walk()) for host, found in by_host.items()}
    first = next(iter(by_host))
    for host, found in by_host.items():
        if counts[host] != counts[first]:
            what = f"a host of {counts[host]} GPUs beside one of {counts[first]} (line {by_host[first][0].line})"
            raise file.wrong(what, found[0].line, "write a file for each kind of host")
    if len(by_host) > 1:
        others = tuple(cpu.line for host, found in by_host.items() if host != first for cpu in found)
        notes.append(
            Note(what=f"the other {len(by_host) - 1} hosts of the dump are taken to be like the first", lines=others)
        )
    return by_host[first], len(by_host)


def _walk(
    file: ForeignFile,
    element: Element,
    path: tuple[Element, ...],
    gpus: list[Gpu],
    nets: list[Net],
    virtual: list[Element],
) -> None:
    for child in element.children:
        inside = (*path, child)
        match child.tag:
            case "pci":
                _pci(file, child, inside, gpus, nets, virtual)
            case "nic" | "gpu":
                if child.tag == "gpu":
                    gpus.append(_gpu(file, child, path))
                _walk(file, child, path, gpus, nets, virtual)
            case "net":
                on_bus = any(e.tag == "pci" for e in path)
                if not on_bus or _VIRTUAL.match(child.get("name")):
                    virtual.append(child)
                else:
                    nets.append(_net(file, child, path))


def _pci(
    file: ForeignFile,
    pci: Element,
    inside: tuple[Element, ...],
    gpus: list[Gpu],
    nets: list[Net],
    virtual: list[Element],
) -> None:
    described = any(e.tag in ("gpu", "net", "pci") for e in pci.children) or any(e.tag == "nic" for e in pci.children)
    kind = pci.get("class").lower()
    if not described and kind.startswith("0x03"):
        gpus.append(_gpu(file, None, inside))
    elif not described and kind.startswith("0x02"):
        nets.append(Net(name=pci.get("busid"), line=pci.line, path=inside, rate_Bps=None, preset=_preset(pci, "")))
    else:
        _walk(file, pci, inside, gpus, nets, virtual)


def _gpu(file: ForeignFile, gpu: Element | None, path: tuple[Element, ...]) -> Gpu:
    pci = next((e for e in reversed(path) if e.tag == "pci"), None)
    element = gpu if gpu is not None else path[-1]
    sm = None if gpu is None else number(file, gpu, "sm")
    return Gpu(
        dev="" if gpu is None else gpu.get("dev"),
        line=element.line,
        path=path,
        sm=sm,
        pci=pci,
        nvlinks=() if gpu is None else tuple(e for e in gpu.children if e.tag == "nvlink"),
        c2c=() if gpu is None else tuple(e for e in gpu.children if e.tag == "c2c"),
    )


def _net(file: ForeignFile, net: Element, path: tuple[Element, ...]) -> Net:
    megabits = number(file, net, "speed")
    pci = next(e for e in reversed(path) if e.tag == "pci")
    return Net(
        name=net.get("name"),
        line=net.line,
        path=path,
        rate_Bps=megabits * 1e6 / 8 if megabits is not None and megabits > 0 else None,
        preset=_preset(pci, net.get("name")),
    )


def _preset(pci: Element, name: str) -> str:
    """RDMA for InfiniBand and what NVIDIA makes, and for adapters that the driver of RDMA named; else TCP."""
    rdma = pci.get("class").lower().startswith("0x0207") or pci.get("vendor").lower() == "0x15b3"
    return "rdma" if rdma or re.match(r"(mlx|ib|rdma|efa|bnxt_re|irdma|roce)", name) else "tcp"


def number(file: ForeignFile, element: Element, key: str) -> int | None:
    """A whole number in an attribute; None where it is not there. Raises `InputError` for something else."""
    text = element.get(key)
    if not text:
        return None
    if not re.fullmatch(r"-?\d{1,12}", text):
        raise file.wrong(f"{key} of <{element.tag}> is {text!r}, not a whole number", element.line)
    return int(text)


def affinity(file: ForeignFile, cpus: Sequence[Element]) -> int | None:
    """How many hardware threads the masks of NUMA nodes name together; None where there is none."""
    found = 0
    for cpu in cpus:
        text = cpu.get("affinity")
        if not text:
            continue
        if not re.fullmatch(r"[0-9a-fA-F]{1,8}(,[0-9a-fA-F]{1,8})*", text) or len(text) > 4096:
            raise file.wrong(f"affinity is {text[:40]!r}, not words of 8 hexadecimal digits", cpu.line)
        found |= int("".join(word.rjust(8, "0") for word in text.split(",")), 16)
    return found.bit_count() or None


def link_speed(pci: Element) -> tuple[float, int] | None:
    """GT/s and lanes of a device's link to what is above it; None where the file does not say."""
    speed = re.match(r"(\d+(?:\.\d+)?)\s*GT/s", pci.get("link_speed"))
    width = pci.get("link_width")
    if speed is None or not re.fullmatch(r"\d{1,3}", width):
        return None
    return float(speed[1]), int(width) or 16
