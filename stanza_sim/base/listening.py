"""Where a process listens on TCP, as Linux says it."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

LOOPBACK = "loopback"
_LISTEN = "0A"
_SIOCGIFADDR = 0x8915
"""Asks for the IPv4 address of an interface; see netdevice(7)."""


def listening(process: int | None = None) -> tuple[str, ...]:
    """The addresses at which a process, or this one, listens, each once; nothing where the system does not say.

    `0.0.0.0` and `::` stand for all interfaces. Only processes of this user are looked into, unless root asks.
    """
    home = Path(f"/proc/{process or 'self'}")
    mine = set()
    with suppress(OSError):
        for entry in (home / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                mine.add(os.readlink(entry))
    found = (address for name in ("tcp", "tcp6") for address, inode in _sockets(home / "net" / name) if inode in mine)
    return tuple(dict.fromkeys(found))


def _sockets(table: Path) -> Iterator[tuple[str, str]]:
    """Address, and what a link to it is called, of every socket that listens. See proc(5), /proc/net/tcp."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        _, local, _, state, *rest = line.split()
        if state == _LISTEN:
            words = bytes.fromhex(local.partition(":")[0])  # 32 bits each, in the machine's own order
            raw = b"".join(struct.pack(">I", word) for (word,) in struct.iter_unpack("=I", words))
            address = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
            mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
            yield str(mapped or address), f"socket:[{rest[5]}]"


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`."""
    return (IPv6Address if ":" in address else IPv4Address)(address).is_loopback


def in_words(address: str) -> str:
    """`address` with the name of its interface here, such as `eth0 (10.0.0.4)`; `LOOPBACK`; or `all interfaces`."""
    if is_loopback(address):
        return LOOPBACK
    if address in ("0.0.0.0", "::"):
        return "all interfaces"
    names = [name for name, own in _own_addresses() if own == address]
    return f"{names[0]} ({address})" if names else address


def _own_addresses() -> Iterator[tuple[str, str]]:
    """The name of each interface of this machine with an address of it."""
    if sys.platform != "linux":
        return
    from fcntl import ioctl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                yield name, socket.inet_ntoa(ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24])
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            address, *_, name = line.split()
            yield name, str(IPv6Address(bytes.fromhex(address)))
