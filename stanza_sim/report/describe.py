"""What `stanza-sim show` prints: a model's blocks, a cluster's hosts, a device's data, a strategy's settings."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from stanza_sim.base.keys import Key, keys_of
from stanza_sim.base.units import format_bytes, format_flops, format_rate, format_time
from stanza_sim.cluster.cluster import Cluster, LinkKind
from stanza_sim.cluster.device import DeviceSpec, ModelEfficiency, ModelFactor, WorkConstants
from stanza_sim.cluster.hardware import Losses, PcieTree
from stanza_sim.cluster.nccl import platform_on
from stanza_sim.model.profile import ModelInput, ModelProfile
from stanza_sim.report.rich_table import plain_table

_SHOWN = 12
"""Rows of hosts and links beyond so many are left out."""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> Table:
    """A plain table; the first `texts` columns are texts, the others numbers."""
    table = plain_table(heads[:texts], heads[texts:], fold=True)
    for row in rows:
        table.add_row(*row)
    return table


def _facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)


def print_model(profile: ModelProfile, console: Console) -> None:
    """Blocks with their parameters, work and output; where the CONV part ends; totals."""
    forward = sum(b.forward_flops for b in profile.blocks)
    backward = sum(b.backward_input_flops + b.backward_weight_flops for b in profile.blocks)
    fc = sum(b.numel for b in profile.fc_blocks)
    _facts(
        console,
        [
            ("model", profile.name),
            ("factory", profile.factory or "none"),
            ("input", _inputs(profile)),
            *([("output", f"`{profile.output}` of what forward returns")] if profile.output else []),
            ("parameters", f"{profile.numel:,} ({format_bytes(profile.nbytes)}), {fc / profile.numel:.1%} of them FC"),
            ("work per sample", f"{forward / 1e9:.4g} GFLOP forward, {backward / 1e9:.4g} GFLOP backward"),
            ("FC part", f"from {profile.fc_blocks[0].name}" if profile.fc_blocks else "none"),
        ],
    )
    console.print()
    rows = [
        (
            b.name,
            b.kind,
            f"{b.numel:,}",
            f"{b.forward_flops / 1e6:,.1f}",
            f"{(b.backward_input_flops + b.backward_weight_flops) / 1e6:,.1f}",
            "x".join(map(str, b.output_shape)),
        )
        for b in profile.blocks
    ]
    console.print(_table(("block", "part", "parameters", "fwd MFLOP", "bwd MFLOP", "output"), rows, texts=2))


def _inputs(profile: ModelProfile) -> str:
    """The tensors of a sample with their shapes, what integers may be, and the classes that are told apart."""
    first = ModelInput(name="", shape=profile.input_shape, vocabulary=profile.vocabulary)
    words = []
    for one in (first, *profile.more_inputs):
        tokens = "" if one.vocabulary is None else f" int64 below {one.vocabulary:,}" if one.vocabulary else " int64"
        words.append("x".join(map(str, one.shape)) + tokens)
    labels = profile.labels
    each = f" at each of {'x'.join(map(str, labels.shape))} positions" if labels.shape and labels.indices else ""
    return f"{' and '.join(words)}, {profile.num_classes} classes{each}"


def _counted(names: Sequence[str]) -> str:
    """`8 x A100`, for devices and NICs of a host."""
    counts = Counter(names)
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


def _host_rows(cluster: Cluster) -> list[tuple[str, ...]]:
    """A row for each run of equal hosts."""
    ranks = Counter(place.host for place in cluster.placement)
    several = len(cluster.hosts) > 1
    rows: list[tuple[str, ...]] = []
    alike = groupby(enumerate(cluster.hosts), key=lambda item: (replace(item[1], name=""), ranks[item[0]]))
    for (host, count), members in alike:
        names = [member.name for _, member in members]
        rows.append(
            (
                names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})",
                _counted([d.rpartition("/")[2] for d in host.devices]) or "cores",
                str(host.cores),
                f"{host.device_speed:g}",
                _counted([format_rate(nic.bandwidth_Bps) for nic in host.nics]) if several else "-",
                f"{host.nic.efficiency:.3g}" if several else "-",
                str(count),
            )
        )
    return rows


def _transports(cluster: Cluster) -> list[str]:
    """What is in force of each kind of transport that some NIC states."""
    found = dict.fromkeys(nic.transport for host in cluster.hosts for nic in host.nics)
    texts = []
    for stated in found:
        parts = []
        if stated.stream_Bps is not None:
            parts.append(f"at most {format_rate(stated.stream_Bps)} a message")
        if stated.process_Bps is not None:
            inside = ", those inside the host too" if stated.process_inside else ""
            parts.append(f"at most {format_rate(stated.process_Bps)} each way a process{inside}")
        if stated.message_core_s or stated.byte_core_s:
            message, byte_ns = format_time(stated.message_core_s), stated.byte_core_s * 1e9
            parts.append(f"{message} of a core a message, {byte_ns:.3g} ns a byte, at both hosts")
        if parts or stated.preset:
            texts.append(": ".join(filter(None, (stated.preset, "; ".join(parts)))))
    return texts


def _about_tree(tree: PcieTree) -> str:
    """What a PCIe tree is made of, in a few words."""
    limits = [
        ("an uplink", tree.switch_Bps),
        ("a root complex", tree.root_Bps),
        ("between sockets", tree.socket_Bps),
        ("host memory", tree.memory_Bps),
    ]
    under = ", ".join(" ".join(map(str, devices)) for devices in tree.switches)
    parts = [f"switches over devices {under}" if under else "no switches"]
    parts += [f"{tree.sockets} sockets"] if tree.sockets > 1 else []
    parts += [f"{what} {limit_Bps / 1e9:g} GB/s" for what, limit_Bps in limits if limit_Bps is not None]
    return "; ".join(parts)


def _about_losses(losses: Losses) -> str:
    """What a full host loses, in a few words; nothing where that is off."""
    parts = []
    if losses.collective_share:
        parts.append(f"collectives take {losses.collective_share:.3g} of a device")
    if losses.iteration_overhead_s or losses.overhead_per_device_s:
        more = f" and {format_time(losses.overhead_per_device_s)} for each further device of the host"
        extra = more if losses.overhead_per_device_s else ""
        parts.append(f"{format_time(losses.iteration_overhead_s)} an iteration{extra}")
    if losses.barrier:
        parts.append("a barrier between iterations")
    return "; ".join(parts)


def print_cluster(cluster: Cluster, console: Console) -> None:
    """Hosts with their cores, devices, NICs and ranks; what is between them."""
    several = len(cluster.hosts) > 1
    first = cluster.hosts[0]
    facts = [
        ("cluster", cluster.name),
        ("", cluster.description),
        ("nodes", f"{cluster.nodes} ({'ranks' if cluster.nodes_are_ranks else 'hosts'})"),
        ("ranks", str(cluster.world_size)),
    ]
    if several:
        latency, overhead = format_time(cluster.latency_s(0, 1)), format_time(first.nic.overhead_s)
        facts.append(("switches", _first(cluster.switches)))
        facts.append(("messages", f"{first.name} to {cluster.hosts[1].name}: {latency}, {overhead} to send one"))
        facts += [("transport" if i == 0 else "", text) for i, text in enumerate(_transports(cluster))]
    shares = cluster.world_size > len({place.host for place in cluster.placement})
    if first.intra is not None:
        inside = first.intra
        rate = f"{inside.bandwidth_Bps / 1e9:g} GB/s at {inside.efficiency:.3g}"
        facts.append(("inside a host", f"{inside.kind}, {rate} for a device, {format_time(inside.latency_s)} a link"))
        if inside.tree is not None:
            facts.append(("", _about_tree(inside.tree)))
        if inside.host_link_Bps is not None:
            facts.append(("", f"{inside.host_link_Bps / 1e9:g} GB/s between a device and host memory"))
    elif shares:
        loop = first.loopback
        costs = f"{format_time(loop.message_core_s)} of a core a message, {loop.byte_core_s * 1e9:.3g} ns a byte"
        rate = f"{loop.bandwidth_Bps / 1e9:g} GB/s, latency {format_time(loop.latency_s)}"
        facts.append(("inside a host", f"{rate}, {costs}"))
    if first.devices and first.staging is None and cluster.world_size > 1:
        why = "" if first.nccl else ", by what joins the devices"
        facts.append(("NCCL", f"platform {platform_on(first).name}{why}"))
    if first.reduce_Bps is not None:
        facts.append(("servers on cores", f"sums and updates at {first.reduce_Bps / 1e9:g} GB/s"))
    if lost := _about_losses(first.losses):
        facts.append(("losses", lost))
    prices = [host.price_per_hour for host in cluster.hosts if host.price_per_hour is not None]
    if prices:
        without = len(cluster.hosts) - len(prices)
        rest = f"; {without:,} hosts state none" if without else ""
        facts.append(("price", f"{sum(prices):,.2f} dollars an hour{rest}"))
    _facts(console, facts)
    console.print()
    heads = ("host", "devices", "cores", "speed", "NIC", "goodput", "ranks")
    rows = _host_rows(cluster)
    console.print(_table(heads, rows[:_SHOWN], texts=2))
    if len(rows) > _SHOWN:
        console.print(f"... and {len(rows) - _SHOWN} more")
    between = [k for k in cluster.links if k.kind in (LinkKind.TRUNK, LinkKind.CABLE, LinkKind.BACKPLANE)]
    if between:
        console.print()
        links = [(k.label, format_rate(k.bandwidth_Bps), format_time(k.latency_s)) for k in between[:_SHOWN]]
        console.print(_table(("link", "goodput", "latency"), links))
        if len(between) > _SHOWN:
            console.print(f"... and {len(between) - _SHOWN} more")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def print_device(device: DeviceSpec, console: Console) -> None:
    """Data sheet, constants or efficiencies, and every published timing beside what the fit makes of it."""
    launch = device.launch
    facts = [
        ("device", device.name),
        ("", device.description),
        *([("form", device.form)] if device.form else []),
        ("memory", f"{format_bytes(device.memory_nbytes)} at {device.memory_bandwidth_Bps / 1e9:.4g} GB/s"),
        ("kernel launch", format_time(device.launch_overhead_s)),
    ]
    if launch is not None:
        eager = f"{format_time(launch.forward_s)} forward, {format_time(launch.backward_s)} backward"
        facts.append(("eager launch", f"{eager}, of the host for each kernel; overlap {launch.overlap:g}"))
    facts += [("peak", f"{format_flops(p.peak_flops)}, {p.note}") for p in device.precisions.values()]
    _facts(console, [*facts, *(("source", s) for s in device.sources)])
    for precision in device.precisions.values():
        console.print()
        if precision.constants is None:
            default = f"{precision.default:.3g} for other models: {precision.default_source}"
            console.print(f"{precision.name}: efficiency (achieved over peak) by model; {default}", soft_wrap=False)
            _timings(console, "effic.", precision.models)
        else:
            _constants(console, precision.name, precision.constants)


def _constants(console: Console, precision: str, known: WorkConstants) -> None:
    """What ops of each kind take, how far models left out of the fit are from what was published, and the factors."""
    console.print(f"{precision}: {known.source}", soft_wrap=False)
    left = known.residuals
    if left is not None:
        many = f"{left.models} model{'s' * (left.models != 1)}"
        each = f"each left out: median error {left.median:.1%}, p90 {left.p90:.1%}"
        family = f"its family left out: {left.family_median:.1%}, {left.family_p90:.1%}"
        console.print(f"residuals of {many}, {each}; {family}", soft_wrap=False)
    rows = [
        (kind.value, f"{known.flops[kind]:.3g}" if kind in known.flops else "-", f"{value:.3g}")
        for kind, value in known.nbytes.items()
    ]
    console.print(_table(("kind of op", "FLOP x peak", "byte x bandwidth"), rows))
    _timings(console, "factor", known.models)


def _timings(console: Console, head: str, models: Mapping[str, ModelEfficiency] | Mapping[str, ModelFactor]) -> None:
    rows = [
        (
            name,
            timing.gpu,
            f"{fit.value:.3f}",
            f"{timing.batch}{'?' if timing.batch_assumed else ''}",
            f"{timing.images_per_s:,g}",
            f"{timing.ratio - 1:+.0%}" + ("" if timing.fitted else " (not fitted)"),
        )
        for name, fit in models.items()
        for timing in fit.timings
    ]
    if rows:
        console.print(_table(("model", "measured on", head, "batch", "images/s", "residual"), rows, texts=2))


def print_settings(settings: type[BaseModel], console: Console) -> None:
    """The keys that `settings:` of a strategy takes, with defaults."""
    rows = [(key.path, key.default or "", key.meaning) for key in keys_of(settings)]
    if not rows:
        console.print("it has no settings")
        return
    console.print(_table(("setting", "default", "meaning"), rows, texts=3))


def print_keys(keys: Iterable[Key], console: Console) -> None:
    """Keys of a file, each with what it takes and its default, and below that its meaning."""
    for key in keys:
        default = "to be given" if key.default is None else f"default {key.default or 'empty'}"
        said = [*textwrap.wrap(f"{key.path}: {key.takes}; {default}", 80, subsequent_indent="  ")]
        said += textwrap.wrap(key.meaning, 80, initial_indent="    ", subsequent_indent="    ")
        for line in said:
            console.print(line, soft_wrap=True)
