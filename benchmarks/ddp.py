"""How fast the executor is beside PyTorch, in one emulated cluster: `all_reduce` beside `DistributedDataParallel`, or
`fsdp` beside `fully_shard`.

Both train the same model for real, with the same batches' shapes, SGD with momentum, bucket sizes, backend (gloo) and
number of threads (one per rank), in the same namespaces, in turn: DDP, ours, DDP, ours, and so on. Ranks of both stay
for the whole run, and those whose turn it is not wait without using a core. An iteration ends when it has ended on all
ranks; its duration is the time since the end of the one before, for both (`stanza_sim.execute.start.measure`). As root:

    python benchmarks/ddp.py --nodes 4 --rate 500Mbps
    python benchmarks/ddp.py --nodes 4 --rate 500Mbps --peer fully_shard

With `fully_shard` a unit is a layer in both, gathered again for its backward pass but for the last, and parameters and
gradients are fp32.

How many cores other programs used is measured with every run, since ranks that share their cores with them are slower
by chance. The line `of quiet runs` compares only runs in which others used less than a tenth of a core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # so that it runs from a checkout as well

if TYPE_CHECKING:
    from torch import nn

    from stanza_sim.cluster import Cluster
    from stanza_sim.execute.rank.job import RunJob
    from stanza_sim.execute.start.launch import Pool
    from stanza_sim.testbed import Testbed

INPUT_SHAPE, CLASSES = (3, 32, 32), 100
LEARNING_RATE, MOMENTUM = 0.01, 0.9
BATCHES = 8
"""So many different batches are used in turn by DDP; they are in memory before anything is timed, as ours are."""
PORT = 29_500
MIB = 1024 * 1024
QUIET_CORES = 0.1


def small_vgg(dropout: float = 0.5) -> nn.Module:
    """Return a network of VGG's shape for 3 x 32 x 32: 5 convolutions, 3 linear layers, 13.6 MB of parameters.

    96% of the parameters lie in the linear layers and most of the arithmetic in the convolutions.
    """
    from torch import nn

    def convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)]

    features = [
        *convolution(3, 32),
        *convolution(32, 32),
        nn.MaxPool2d(2),
        *convolution(32, 64),
        *convolution(64, 64),
        nn.MaxPool2d(2),
        *convolution(64, 128),
        nn.MaxPool2d(2),
    ]
    classifier = [
        nn.Flatten(),
        nn.Linear(2048, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, CLASSES),
    ]
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), classifier=nn.Sequential(*classifier)))


# --- DistributedDataParallel -----------------------------------------------------------------------------------------


def serve_ddp(options: argparse.Namespace) -> None:
    """One rank of DDP: for each line on standard input train so many iterations, print when each of them ended."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    meet = f"tcp://{options.address}:{PORT}"
    dist.init_process_group("gloo", init_method=meet, rank=options.rank, world_size=options.nodes)
    torch.manual_seed(1)
    model, units = sharded(options) if options.peer == "fully_shard" else (None, [])
    if model is None:
        # With a size DDP closes the first bucket at it too; without, at 1 MiB, and all others at 25 MiB.
        model = DistributedDataParallel(small_vgg(options.dropout), bucket_cap_mb=options.bucket)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    torch.manual_seed(1 + options.rank)
    batches = [
        (torch.randn(options.batch, *INPUT_SHAPE), torch.randint(CLASSES, (options.batch,))) for _ in range(BATCHES)
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        ends: list[float] = []
        dist.barrier()
        for i in range(int(line)):
            x, y = batches[i % BATCHES]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            ends.append(time.perf_counter())
        dist.barrier()
        if isinstance(model, DistributedDataParallel):
            sizes = model._get_ddp_logging_data()["rebuilt_bucket_sizes"]  # "0" until the first iteration is over
            units = [int(size) for size in sizes.split(",")]
        print(json.dumps([ends, units]), flush=True)
    dist.destroy_process_group()


def sharded(options: argparse.Namespace) -> tuple[nn.Module, list[int]]:
    """The model with every layer a unit of FSDP, and the bytes of each unit."""
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = small_vgg(options.dropout)
    mesh = init_device_mesh("cpu", (options.nodes,))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    units = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers]
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=layer is not layers[-1])
    fully_shard(model, mesh=mesh)
    return model, units


class Ddp:
    """The ranks of PyTorch's own, one in each host of a testbed."""

    def __init__(self, bed: Testbed, options: argparse.Namespace) -> None:
        self._ranks: list[subprocess.Popen[str]] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": bed.interface}
        environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # else it warns that addresses in the testbed have no names
        for rank in range(options.nodes):
            own = ["--rank", str(rank), "--address", bed.address_of(0), "--nodes", str(options.nodes)]
            own += ["--batch", str(options.batch), "--dropout", str(options.dropout), "--peer", options.peer]
            own += [] if options.bucket is None else ["--bucket", str(options.bucket)]
            command = [*bed.exec_prefix(rank), sys.executable, str(Path(__file__).resolve()), *own]
            pipe = subprocess.PIPE
            self._ranks.append(subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe))

    def _lines(self) -> list[str]:
        lines = [rank.stdout.readline() for rank in self._ranks if rank.stdout is not None]
        if not all(lines):
            raise SystemExit(f"ddp.py: rank {lines.index('')} of DDP has ended")
        return lines

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the ranks."""
        return [rank.pid for rank in self._ranks]

    def wait(self) -> None:
        """Return when all ranks have met."""
        self._lines()

    def run(self, iterations: int) -> tuple[list[list[float]], list[int]]:
        """Train `iterations` iterations; when each of them ended, by rank, and the sizes of buckets in bytes."""
        for rank in self._ranks:
            if rank.stdin is not None:
                rank.stdin.write(f"{iterations}\n")
                rank.stdin.flush()
        told = [json.loads(line) for line in self._lines()]
        return [ends for ends, _ in told], told[0][1]

    def close(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.kill()
        for rank in self._ranks:
            rank.wait()


# --- ours ------------------------------------------------------------------------------------------------------------


def job_of(options: argparse.Namespace) -> RunJob:
    """What our executor is told."""
    from stanza_sim import strategies
    from stanza_sim.execute.rank.job import Backend, Optimizer, RunJob, Training
    from stanza_sim.model.zoo import load_model

    model = load_model("ddp:small_vgg", input_shape=INPUT_SHAPE, factory_kwargs={"dropout": options.dropout})
    strategy = strategies.get("fsdp" if options.peer == "fully_shard" else "all_reduce")
    size = f"{options.bucket}MiB"
    sizes = {} if options.bucket is None else {"first_bucket": size, "bucket": size}
    settings = strategy.Settings.model_validate(sizes)
    schedule = strategy.build(model, world_size=options.nodes, batch_per_worker=options.batch, settings=settings)
    optimizer = Optimizer(lr=LEARNING_RATE, momentum=MOMENTUM)
    training = Training(iterations=options.warmup + options.iterations + 1, warmup=options.warmup, optimizer=optimizer)
    return RunJob(schedule=schedule, model=model, training=training, backend=Backend.GLOO)


def run_ours(job: RunJob, pool: Pool) -> list[list[float]]:
    """Train as `job` says; when each iteration ended, by rank, warm-up included."""
    from stanza_sim.execute import execute

    (found,) = execute([job], pool)
    return [list(found.timeline.iteration_end_s[rank]) for rank in range(job.schedule.world_size)]


# --- the comparison --------------------------------------------------------------------------------------------------


def seconds_per_iteration(ends: Sequence[Sequence[float]], warmup: int) -> tuple[float, float]:
    """Median and mean duration of the iterations after the warm-up, without the last; `ends` by rank."""
    from stanza_sim.execute.start.measure import iteration_durations

    durations = iteration_durations([max(together) for together in zip(*ends, strict=True)], warmup)
    return median(durations), sum(durations) / len(durations)


@contextmanager
def both(cluster: Cluster, bed: Testbed, options: argparse.Namespace) -> Iterator[tuple[Ddp, Pool]]:
    """Ranks of both kinds in the testbed."""
    from stanza_sim.execute.start.launch import Pool
    from stanza_sim.experiment.emulation import places_in

    ddp = Ddp(bed, options)
    try:
        with Pool(options.nodes, places=places_in(bed, cluster)) as pool:
            pool.start()
            ddp.wait()
            yield ddp, pool
    finally:
        ddp.close()


class Others:
    """How many cores programs other than `processes` and this one use, in user mode, since it was made."""

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = (os.getpid(), *processes)
        self._since, self._ticks = time.perf_counter(), self._count()

    def _count(self) -> int:
        user, nice = (int(n) for n in Path("/proc/stat").read_text().split()[1:3])
        own = sum(int(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[11]) for p in self._processes)
        return user + nice - own

    def cores(self) -> float:
        """Their mean number."""
        return (self._count() - self._ticks) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - self._since)


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest in words."""
    return f"{median(values):8.1f}  ({min(values):.1f} to {max(values):.1f})"


def compare(options: argparse.Namespace) -> None:
    """Measure both in turn and print what came of it."""
    from stanza_sim.base.units import rate
    from stanza_sim.cluster import load_cluster
    from stanza_sim.testbed import Testbed

    job = job_of(options)
    cluster = load_cluster("emulated-star", nodes=options.nodes, rate_Bps=rate(options.rate))
    buckets = [b.numel * job.model.itemsize for b in job.schedule.bundles]
    sizes = " and ".join(f"{b / MIB:.2f}" for b in buckets)
    print(
        f"{options.nodes} hosts around a switch at {options.rate}, one rank of one thread each; "
        f"{len(os.sched_getaffinity(0))} cores; {options.batch} samples per rank\n"
        f"{job.model.nbytes / 1e6:.1f} MB of parameters in buckets of {sizes} MiB\n"
        f"{options.repeats} x {options.iterations} iterations each, after {options.warmup} of warm-up\n"
    )
    total = job.training.iterations
    rates: dict[str, list[float]] = {"ddp": [], "ours": []}
    means: dict[str, list[float]] = {"ddp": [], "ours": []}
    quiet: dict[str, list[float]] = {"ddp": [], "ours": []}
    before = os.getloadavg()[0]
    with Testbed(cluster) as bed, both(cluster, bed, options) as (ddp, pool):
        for _ in range(options.repeats):
            for name in rates:
                others = Others([*ddp.process_ids, *pool.process_ids])
                if name == "ddp":
                    ends, theirs = ddp.run(total)
                    if theirs != buckets:
                        raise SystemExit(f"ddp.py: {options.peer} has buckets of {theirs} bytes, ours are {buckets}")
                else:
                    ends = run_ours(job, pool)
                typical, mean = seconds_per_iteration(ends, options.warmup)
                rates[name].append(job.schedule.global_batch / typical)
                means[name].append(job.schedule.global_batch / mean)
                if (busy := others.cores()) < QUIET_CORES:
                    quiet[name].append(rates[name][-1])
                took = f"{typical * 1e3:7.1f} ms an iteration"
                print(f"{name:4}  {rates[name][-1]:8.1f} samples/s  {took}, others {busy:.2f} cores", flush=True)
    print("\nsamples/s, median (least to greatest) of the repeats")
    print(f"{options.peer:23}  {spread(rates['ddp'])}")
    print(f"our {job.schedule.name:19}  {spread(rates['ours'])}")
    # Neighbours in time saw the same other load, if there was any.
    pairs = [ours / ddp for ours, ddp in zip(rates["ours"], rates["ddp"], strict=True)]
    print(f"ours / theirs            {median(rates['ours']) / median(rates['ddp']):8.3f}")
    print(f"  of each pair of runs   {median(pairs):8.3f}  ({min(pairs):.3f} to {max(pairs):.3f})")
    print(f"  by mean iterations     {median(means['ours']) / median(means['ddp']):8.3f}")
    if all(quiet.values()):
        counts = f"{len(quiet['ours'])} and {len(quiet['ddp'])} runs"
        print(f"  of quiet runs          {median(quiet['ours']) / median(quiet['ddp']):8.3f}  ({counts})")
    print(f"load average             {before:8.2f} before, {os.getloadavg()[0]:.2f} after")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=4, help="hosts, 2 to 8 (default: 4)")
    parser.add_argument("--rate", default="500Mbps", help="rate of every host's link (default: 500Mbps)")
    parser.add_argument("--batch", type=int, default=16, help="samples per rank and iteration (default: 16)")
    parser.add_argument("--peer", choices=("DistributedDataParallel", "fully_shard"), default="DistributedDataParallel")
    parser.add_argument("--bucket", type=int, default=None, help="bucket size of both in MiB (default: 1, then 25)")
    parser.add_argument("--dropout", type=float, default=0.5, help="rate of dropout of the model (default: 0.5)")
    parser.add_argument("--iterations", type=int, default=10, help="timed iterations of a run (default: 10)")
    parser.add_argument("--warmup", type=int, default=3, help="iterations before these (default: 3)")
    parser.add_argument("--repeats", type=int, default=8, help="runs of each (default: 8)")
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        serve_ddp(options)
        return
    from stanza_sim.base.errors import StanzaError

    try:
        compare(options)
    except StanzaError as error:
        raise SystemExit(f"ddp.py: {error}") from None


if __name__ == "__main__":
    main()
