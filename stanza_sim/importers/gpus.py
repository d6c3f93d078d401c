"""What NCCL takes links inside a host to carry, by generation, and what GPUs are called on the PCI bus.

The rates are those of payload, as NCCL's search of a topology counts them: NVIDIA/nccl, src/graph/topo.h and topo.cc
(2.28). PCI's are 75% of the raw rate. Names are those of the PCI ID database (pci-ids.ucw.cz), vendor 10de.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GB = 1e9

NVLINK_SOURCE = "NCCL's topo.h"
PCI_SOURCE = "75% of the raw rate, as NCCL counts"

_PCI_LANE = {2.5: 0.1875, 5.0: 0.375, 8.0: 0.75, 16.0: 1.5, 32.0: 3.0, 64.0: 6.0}
"""GB/s of a lane by GT/s: `kvDictPciGen` of topo.cc, whose hundreds of Mb/s are divided by 80."""


def nvlink_Bps(sm: int) -> float | None:
    """Bytes per second and direction of one NVLink of a GPU with compute capability `sm` (such as 80); None without."""
    if sm < 60 or sm in (89, 120):  # GeForce and workstation parts of Ada and Blackwell have none
        return None
    for least, rate in ((100, 40.1), (90, 20.6), (87, 20.0), (86, 12.0), (70, 20.0)):
        if sm >= least:
            return rate * GB
    return 18.0 * GB


def most_nvlinks(sm: int) -> int:
    """How many NVLinks a GPU has at most (NVIDIA's data sheets); 0 without any."""
    if nvlink_Bps(sm) is None:
        return 0
    return next(
        most for least, most in ((90, 18), (87, 12), (86, 4), (80, 12), (75, 2), (70, 6), (60, 4)) if sm >= least
    )


def pci_Bps(gigatransfers: float, lanes: int) -> float | None:
    """Bytes per second and direction of a PCI Express link; None for a speed that there is not."""
    lane = _PCI_LANE.get(gigatransfers)
    return None if lane is None else lane * lanes * GB


def between_sockets_Bps(arch: str, vendor: str, family: int | None, model: int | None) -> float | None:
    """Bytes per second from one socket to another, as NCCL estimates them; None where it knows no estimate."""
    if arch in ("ppc64", "ppc64le"):
        return 32 * GB
    if arch in ("arm64", "aarch64"):
        return 6 * GB
    match vendor:
        case "AuthenticAMD" | "HygonGenuine":
            return 16 * GB
        case "GenuineIntel":
            newer = model if family == 6 and model is not None else 0
            return next(rate for least, rate in ((0xCF, 40), (0x8F, 22), (0x55, 10), (0, 6)) if newer >= least) * GB
        case "CentaurHauls" | "  Shanghai  " | "Shanghai":
            return 6 * GB
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a GPU's name tells: its compute capability, and GT/s of its PCI Express link of 16 lanes."""

    sm: int
    pci: float


_NAMES = (
    (r"K[48]0", 37, 8.0),
    (r"P100|P40|P4\b", 60, 8.0),
    (r"V100", 70, 8.0),
    (r"T4\b|RTX ?20\d\d|TITAN ?RTX|QUADRO ?RTX", 75, 8.0),
    (r"A100|A800|A30\b", 80, 16.0),
    (r"RTX ?30\d\d|A6000|A5000|A40\b|A10G?\b", 86, 16.0),
    (r"L40S?|L4\b|L20\b|RTX ?40\d\d|6000 ?ADA", 89, 16.0),
    (r"GH200|H[12]00|H800|H20\b", 90, 32.0),
    (r"G?B[123]00", 100, 32.0),
    (r"RTX ?50\d\d|RTX ?PRO", 120, 32.0),
)


def generation_of(device: str) -> Generation | None:
    """What the name of a device (or of its file) tells; None for one that is not known."""
    name = re.sub(r"[-_]", " ", device.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")).upper()
    for pattern, sm, pci in _NAMES:
        if re.search(rf"\b(?:{pattern})", name):
            return Generation(sm=sm, pci=pci)
    return None


PCI_NAMES = {
    "0x102d": "K80",
    "0x15f7": "P100",
    "0x15f8": "P100",
    "0x15f9": "P100",
    "0x1db1": "V100",
    "0x1db4": "V100",
    "0x1db5": "V100",
    "0x1db6": "V100",
    "0x1db8": "V100",
    "0x1eb8": "T4",
    "0x20b0": "A100",
    "0x20b2": "A100",
    "0x20b5": "A100",
    "0x20f1": "A100",
    "0x2204": "RTX3090",
    "0x2230": "A6000",
    "0x2235": "A40",
    "0x2236": "A10",
    "0x2237": "A10G",
    "0x26b5": "L40",
    "0x26b9": "L40S",
    "0x27b8": "L4",
    "0x2330": "H100",
    "0x2331": "H100",
    "0x2335": "H200",
    "0x2684": "RTX4090",
    "0x2901": "B200",
    "0x2b85": "RTX5090",
}
"""What a GPU is, by its device number on the bus."""
