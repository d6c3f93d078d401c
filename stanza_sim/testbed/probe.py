"""What this machine lacks for a testbed, in words."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.testbed.shell import Tools, call, find_program, find_tools
from stanza_sim.testbed.steps import CONGESTION_CONTROL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """A feature, what to do where it is missing, and a command that needs it and those above."""

    what: str
    hint: str
    command: str


_KERNEL = "a kernel with {} (or the module that its distribution packages separately) is needed"
_NEEDS = (
    _Need(what="veth pairs", hint=_KERNEL.format("CONFIG_VETH"), command="ip link add v0 type veth peer name v1"),
    _Need(what="bridges", hint=_KERNEL.format("CONFIG_BRIDGE"), command="ip link add br0 type bridge"),
    _Need(
        what="the largest packet of an interface",
        hint="Linux 4.16 or later, and an iproute2 as new, are needed",
        command="ip link set v0 gso_max_size 16000",
    ),
    _Need(
        what="htb",
        hint=_KERNEL.format("CONFIG_NET_SCH_HTB"),
        command="tc qdisc add dev v0 root handle 1: htb default 1",
    ),
    _Need(
        what="classes of htb",
        hint=_KERNEL.format("CONFIG_NET_SCH_HTB"),
        command="tc class add dev v0 parent 1: classid 1:1 htb rate 100mbit",
    ),
    _Need(
        what="bfifo",
        hint=_KERNEL.format("CONFIG_NET_SCH_FIFO"),
        command="tc qdisc add dev v0 parent 1:1 bfifo limit 10000",
    ),
    _Need(
        what="u32 filters",
        hint=_KERNEL.format("CONFIG_NET_CLS_U32"),
        command="tc filter add dev v0 parent 1: protocol ip u32 match ip src 10.0.0.1/32 flowid 1:1",
    ),
    _Need(
        what="TCP reno by route",
        hint=_KERNEL.format("CONFIG_INET"),
        command="ip link set v0 up && ip link set v1 up && "
        f"ip route add 10.77.0.0/24 dev v0 scope link congctl {CONGESTION_CONTROL}",
    ),
    _Need(
        what="rules for routes",
        hint=_KERNEL.format("CONFIG_IP_MULTIPLE_TABLES"),
        command="ip rule add from 10.77.0.1/32 table 1000",
    ),
)


def require_linux() -> None:
    """Raise `InputError` on another system."""
    if not sys.platform.startswith("linux"):
        raise InputError(f"a testbed needs Linux, this is {sys.platform}", where="testbed")


def require_tools() -> Tools:
    """Return `ip` and `tc`. Raises `InputError`, before anything is done, without Linux, root or iproute2."""
    require_linux()
    if os.geteuid() != 0:
        raise InputError("a testbed needs root, to make network namespaces", where="testbed", hint="run it with sudo")
    return find_tools()


def missing(tools: Tools) -> list[tuple[str, str]]:
    """Return what the kernel lacks, as (what was tried and its answer, what would help).

    All is tried in a scratch namespace without a name, which is gone when this returns.
    """
    unshare = find_program("unshare")
    if unshare is None:
        return [("`unshare` not found", "install util-linux")]
    inside = call([unshare, "--net", "--mount", "true"])
    if inside.returncode:
        hint = "root needs CAP_SYS_ADMIN and CAP_NET_ADMIN here; in a container, run it with --privileged"
        return [(f"network namespaces cannot be made: {_last(inside.stderr)}", hint)]
    script = [f'ip() {{ {tools.ip} "$@"; }}', f'tc() {{ {tools.tc} "$@"; }}']
    script += [f"answer=$( {{ {need.command}; }} 2>&1 ) || echo {i} $answer" for i, need in enumerate(_NEEDS)]
    done = call([unshare, "--net", "/bin/sh"], "\n".join(script) + "\n")
    found = []
    for line in done.stdout.splitlines():
        number, _, answer = line.partition(" ")
        need = _NEEDS[int(number)]
        found.append((f"{need.what}: {answer}", need.hint))
    return found


def require_kernel(tools: Tools) -> None:
    """Raise `InputError` with the first feature that the kernel lacks; do nothing if it has all."""
    if lacks := missing(tools):
        what, hint = lacks[0]
        raise InputError(f"this machine cannot run a testbed: {what}", where="testbed", hint=hint)


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
