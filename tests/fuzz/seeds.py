"""Good files of every format that is read, each with the commands that read it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

from tests.importers.foreign_files import cpu, gpu, nic, system
from tests.importers.logs import log
from tests.importers.test_ibnetdiscover import TEXT as SUBNET
from tests.importers.test_infragraph import EDGES as CLOS
from tests.importers.test_nvidia_smi import SWITCHED
from tests.importers.test_simai import RAILS

ROOT = Path(__file__).parents[2]

EXPERIMENT = """\
name: fuzzed
description: Two nodes, two rows.
cluster: topology.yaml
batch_per_worker: 4
precision: fp32
models:
  - {model: alexnet, name: wide, scale: {bytes: 2.0, compute: 0.5}}
strategies:
  - {strategy: parameter_server, label: "PS, one", settings: {servers: 1, assignment: cut, overlap: true}}
  - {strategy: stanza, settings: {fc_workers: 1, bucket: 4MiB}}
network: {rate: 5Gbps}
simulation: {jitter: {kind: lognormal, spread: 0.05}, straggler: {probability: 0.1, slowdown: 2.0}, repeats: 2}
training:
  iterations: 4
  warmup: 1
  optimizer: {kind: adamw, lr: 0.1, betas: [0.9, 0.99], no_decay: [bias], clip_norm: 1.0}
uncertainty: {computation: 0.1, network: 0.05}
"""
TOPOLOGY = """\
name: fuzzed
description: Hosts of their own, two switches.
hosts:
  - name: a
    count: 2
    cores: 4
    devices: [V100, mine]
    nic: {rate: 10Gbps, latency: 25us, overhead: 15us, efficiency: 0.9}
    intra: {kind: pcie, rate: 11GB/s, latency: 5us}
  - name: b
    cores: 2
    nic: {rate: 1Gbps, preset: tcp}
switches: [{name: s}, {name: t, backplane: 20Gbps}]
links:
  - {from: a-0, to: s}
  - {from: a-1, to: s}
  - {from: b, to: t}
  - {from: s, to: t, rate: 20Gbps, latency: 2us}
routing: shortest
overrides:
  a-1: {device_speed: 0.8}
"""
FABRIC = """\
name: fuzzed
hosts: [{name: n, cores: 4, devices: [V100], nic: {rate: 10Gbps}}]
fabric: {kind: leaf-spine, leaves: 2, hosts_per_leaf: 2, spines: 2, oversubscription: 2}
routing: spread
"""
DEVICE = """\
name: mine
description: A device of one's own.
memory: 16GB
memory_bandwidth: 900GB/s
launch_overhead: 5us
precisions:
  fp32: {peak: 15.7TFLOPS, note: fp32}
sources: ["its datasheet"]
"""
SLURM = "SwitchName=s0 Nodes=n[00-03]\nSwitchName=s1 Nodes=n[04-07]\nSwitchName=top Switches=s[0-1]\n"
FLOWS = {
    "hosts": ["a", "b"],
    "links": [{"name": "x", "bandwidth": 1e9, "latency": 1e-6}],
    "routes": [{"src": "a", "dst": "b", "links": ["x"]}],
    "flows": [
        {"id": "f", "src": "a", "dst": "b", "bytes": 1e6},
        {"id": "g", "src": "a", "dst": "b", "bytes": 2e6, "deps": ["f"], "delay": 1e-3},
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A format: the file that is mutated, its good content, and the commands that read it in a folder of good files."""

    file: str
    content: bytes
    commands: tuple[tuple[str, ...], ...]


def _graph() -> nx.Graph:
    graph = nx.Graph(name="fuzzed")
    for name in "ab":
        graph.add_node(name, kind="host", cores=4)
        graph.add_edge(name, "s", rate="10Gbps", latency="5us")
    graph.nodes["s"]["kind"] = "switch"
    return graph


SUITE = """\
name: fuzzed
bounds: {median: 3, p90: 6, max: 8}
repeats: 2
timing: {time: 2s, least: 5, most: 20, warmup: 2}
execute: {compute: emulated}
models: {small: {model: alexnet, batch_per_worker: 8, scale: {bytes: 0.01}}}
strategies: {ps: {strategy: parameter_server, settings: {servers: 1}}, ring: all_reduce}
networks: {star: {cluster: emulated-star, nodes: 3, rate: 100Mbps}}
cases:
  - {network: star, model: small, strategy: [ps, ring]}
"""
PUBLISHED = """\
name: fuzzed
kind: published
bounds:
  training: {median: 4, p90: 25}
  nccl: {median: 5, p90: 15}
losses: {device_spread: 0.04, cpu_reduce_rate: 20GB/s}
"""
ROWS = """\
id,framework,model,strategy,servers,gpu,gpus_per_host,hosts,nic_gbps,transport,intra,batch_per_gpu,precision,samples_per_s,single_gpu_samples_per_s,usable
a,TensorFlow 1.x tf_cnn_benchmarks,resnet50,tf_ps_cpu,,P100,1,1,,,,64,fp32,219,219,yes
b,Horovod,alexnet,horovod_nccl,,V100,2,2,25,tcp,nvlink,32,fp32,900,,yes
"""
NCCL_ROWS = "gpus,bytes,time_us_out_of_place,busbw_GBps\n2,1048576,40,40\n8,16777216,180,160\n"
SINGLE_ROWS = """\
gpu,framework,precision,model,factory,batch,image,samples_per_s,address
V100,"PyTorch, eager",fp32,resnet50,torchvision,32,224,360.5,https://example.org/x
"""


def targets(folder: Path) -> Mapping[str, Target]:
    """The formats, after the good files that others name were written to `folder`."""
    (folder / "devices").mkdir(exist_ok=True)
    (folder / "topology.yaml").write_text(TOPOLOGY)
    (folder / "fabric.yaml").write_text(FABRIC)
    (folder / "devices" / "mine.yaml").write_text(DEVICE)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    for name, rows in (("rows", ROWS), ("nccl", NCCL_ROWS), ("single", SINGLE_ROWS)):
        (folder / f"{name}.csv").write_text(rows)
    (folder / "published.yaml").write_text(PUBLISHED)
    nx.write_graphml(_graph(), folder / "graph.graphml")
    data = ROOT / "stanza_sim" / "data"
    for kind, name in (("nccl", "nvlink"), ("transports", "tcp"), ("devices", "P100")):
        shutil.copy(data / kind / f"{name}.yaml", folder / f"{kind}.yaml")
    run = ("run", "experiment.yaml", "--json", "--set", "simulation.repeats=1")
    judge = ("validate", "published.yaml", "--rows", "rows.csv", "--nccl", "nccl.csv", "--single", "single.csv")
    judges = ((*judge, "--json"), (*judge, "--dry-run"))
    text: dict[str, tuple[str, str | bytes, tuple[tuple[str, ...], ...]]] = {
        "experiment": (
            "experiment.yaml",
            EXPERIMENT,
            (("run", "experiment.yaml", "--json"), ("show", "schedule", "experiment.yaml")),
        ),
        "topology": ("topology.yaml", TOPOLOGY, (("show", "cluster", "topology.yaml"), run)),
        "fabric": ("fabric.yaml", FABRIC, (("show", "cluster", "fabric.yaml"), (*run, "--set", "cluster=fabric.yaml"))),
        "device": ("devices/mine.yaml", DEVICE, (("show", "device", "mine"), run)),
        "fitted device": ("devices/P100.yaml", (folder / "devices.yaml").read_bytes(), (("show", "device", "P100"),)),
        "nccl": ("nccl.yaml", (folder / "nccl.yaml").read_bytes(), ((*run, "--nccl", "nccl.yaml"),)),
        "transport": ("transports/tcp.yaml", (folder / "transports.yaml").read_bytes(), (run,)),
        "blocks": ("blocks.json", _blocks(), ((*run, "--profile", "blocks.json", "--set", "models=[alexnet]"),)),
        "network": ("network.json", _network(), ((*run, "--profile", "network.json"),)),
        "flows": ("flows.json", json.dumps(FLOWS, indent=1), (("flows", "flows.json"),)),
        "graphml": ("graph.graphml", (folder / "graph.graphml").read_bytes(), (("show", "cluster", "graph.graphml"),)),
        "node-link": (
            "graph.json",
            json.dumps(nx.node_link_data(_graph(), edges="edges"), indent=1),
            (("show", "cluster", "graph.json"),),
        ),
        "sweep": (
            "points.csv",
            _sweep(folder),
            (
                ("sweep", "experiment.yaml", "--vary", "batch_per_worker=4", "-o", "points.csv", "--jobs", "1"),
                ("plot", "points.csv"),
            ),
        ),
        **_result(folder),
        "suite": ("suite.yaml", SUITE, (("validate", "suite.yaml", "--dry-run"),)),
        "published suite": ("published.yaml", PUBLISHED, judges),
        "published rows": ("rows.csv", ROWS, judges),
        "published nccl": ("nccl.csv", NCCL_ROWS, judges),
        "published single": ("single.csv", SINGLE_ROWS, judges),
        "nccl-topo": (
            "topo.xml",
            system(cpu(0, gpu("0000:07:00.0", 0) + nic("0000:08:00.0", "mlx5_0"))),
            (("import", "nccl-topo", "topo.xml", "--device", "A100"),),
        ),
        "nvidia-smi": ("smi.txt", SWITCHED, (("import", "nvidia-smi", "smi.txt", "--device", "A100"),)),
        "ibnetdiscover": (
            "subnet.txt",
            SUBNET,
            (("import", "ibnetdiscover", "subnet.txt", "--device", "A100", "--devices-per-host", "2"),),
        ),
        "infragraph": ("graph.yaml", CLOS, (("import", "infragraph", "graph.yaml"),)),
        "simai": ("simai.txt", RAILS, (("import", "simai", "simai.txt"),)),
        "kineto": (
            "trace.json",
            _trace(folder),
            (("import", "kineto", "trace.json", "--model", "alexnet", "-o", "b.json"),),
        ),
        "kineto, compressed": (
            "trace.json.gz",
            gzip.compress((folder / "trace.json").read_bytes(), mtime=0),
            (("import", "kineto", "trace.json.gz", "--model", "alexnet", "-o", "b.json"),),
        ),
        "slurm": (
            "topology.conf",
            SLURM,
            (
                (
                    "import",
                    "slurm",
                    "topology.conf",
                    "--rate",
                    "nic=10Gbps",
                    "--rate",
                    "level1=40Gbps",
                    "--device",
                    "V100",
                ),
            ),
        ),
        "nccl-tests": (
            "nccl.log",
            log([(2**k, 20 + 2**k / 1e5) for k in range(18, 28)]),
            (("import", "nccl-tests", "nccl.log", "-o", "out.json"),),
        ),
    }
    return {
        name: Target(file=file, content=content if isinstance(content, bytes) else content.encode(), commands=commands)
        for name, (file, content, commands) in text.items()
    }


def _trace(folder: Path) -> bytes:
    from tests.importers.traces import Tracing

    return Tracing(marks=True).write(folder / "trace.json").read_bytes()


def _blocks() -> str:
    from stanza_sim.model import zoo
    from stanza_sim.model.profile_json import fingerprint

    model = zoo.get("alexnet")
    rows = [
        {
            "block": b.name,
            "samples": 4,
            "forward_s": 1e-3,
            "backward_s": 2e-3,
            "backward_input_s": 1e-3,
            "backward_weight_s": 1e-3,
        }
        for b in model.blocks
    ]
    return json.dumps(
        {
            "format": "stanza-sim-profile/1",
            "device": "cpu X",
            "host_cores": 4,
            "date": "2026-01-01T00:00:00Z",
            "precision": "fp32",
            "ranks_at_once": 1,
            "model": {"name": "alexnet", "fingerprint": fingerprint(model)},
            "blocks": rows,
            "reduce_Bps": 8e9,
            "update_Bps": 2e9,
        },
        indent=1,
    )


def _network() -> str:
    about: Callable[[float], dict[str, float]] = lambda v: {"value": v, "low": 0.9 * v, "high": 1.1 * v}  # noqa: E731
    return json.dumps(
        {
            "format": "stanza-sim-network/1",
            "cluster": "t",
            "date": "2026-01-01T00:00:00Z",
            "testbed": False,
            "ranks": 4,
            "machine": {"device": "cpu X", "cores": 2, "kernel": "6.1", "load": 0.5},
            "pairs": [
                {
                    "sender_Bps": 25e6,
                    "receiver_Bps": 25e6,
                    "source": 0,
                    "destination": 1,
                    "messages": 3,
                    "latency_s": about(8e-5),
                    "overhead_s": about(3e-5),
                    "posting_s": about(3e-4),
                    "goodput_Bps": about(2.4e7),
                    "burst_bytes": about(0.0),
                }
            ],
            "hop_s": about(9e-5),
            "reduce_Bps": about(8e9),
            "update_Bps": about(2e9),
        },
        indent=1,
    )


def _result(folder: Path) -> dict[str, tuple[str, bytes, tuple[tuple[str, ...], ...]]]:
    """The files of a result's folder that a page is made of."""
    from stanza_sim.experiment.run import run_experiment
    from stanza_sim.report.folder import write_result

    result = run_experiment(str(folder / "experiment.yaml"), overrides=["simulation.repeats=1"])
    assert result is not None
    write_result(result, folder / "out")
    stem = min(path.stem for path in (folder / "out" / "schedules").iterdir())
    files = {
        "result": "out/result.json",
        "details": "out/details.json",
        "spans": f"out/spans/{stem}.predicted.csv",
        "path": f"out/paths/{stem}.csv",
        "schedule of a result": f"out/schedules/{stem}.txt",
    }
    return {name: (file, (folder / file).read_bytes(), (("report", "out"),)) for name, file in files.items()}


def _sweep(folder: Path) -> bytes:
    from stanza_sim.studies.sweep.session import Sweep

    path = folder / "points.csv"
    Sweep(str(folder / "experiment.yaml"), vary=["batch_per_worker=4"], output=path).run(jobs=1)
    return path.read_bytes()
