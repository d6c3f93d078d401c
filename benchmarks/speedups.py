"""Speed-ups over one parameter server, predicted and measured: Stanza, other parameter servers, and PyTorch's own DDP.

`speedups.yaml` says what is trained. Its rows are predicted and run by the executor in an emulated cluster; then
`DistributedDataParallel` itself trains the same model in the same cluster, with the buckets of the row all-reduce:
its blocks have the model's parameters and wait as long as the others' computations do, in the forward and in the
backward pass, and DDP exchanges their gradients. The prediction for DDP is that of all-reduce. As root:

    python benchmarks/speedups.py

Any key can be changed as with `stanza-sim run`: `--set network.rate=200Mbps --set nodes=6`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # so that it runs from a checkout as well

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stanza_sim.cluster import Cluster
    from stanza_sim.experiment.rows import Plan

EXPERIMENT = Path(__file__).with_suffix(".yaml")
PORT = 29_500
MIB = 1024 * 1024


# --- one rank of DDP -------------------------------------------------------------------------------------------------


class Clock:
    """Waits that follow one another without gaps, as computations do: what waking up takes does not add up."""

    def __init__(self) -> None:
        self._end_s = 0.0

    def begin(self) -> None:
        """The next wait begins now."""
        self._end_s = time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Return so long after the end of the last wait."""
        from stanza_sim.execute.emulated.waits import sleep_until

        self._end_s += seconds
        sleep_until(self._end_s)


def waiting_model(blocks: Sequence[dict[str, Any]]) -> tuple[nn.Module, Clock]:
    """Return a chain of blocks that have parameters and wait in the place of computing.

    Each of `blocks` has `numels` (of its tensors), `forward_s` and `backward_s`.
    """
    import torch
    from torch import nn

    clock = Clock()

    class Wait(torch.autograd.Function):
        """Passes its input on."""

        @staticmethod
        def forward(ctx, x, block, *parameters):  # type: ignore[no-untyped-def]
            ctx.block = block
            clock.wait(block.forward_s)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            clock.wait(ctx.block.backward_s)
            return gradient, None, *ctx.block.gradients

    class Block(nn.Module):
        """Waits."""

        def __init__(self, numels: Sequence[int], forward_s: float, backward_s: float) -> None:
            super().__init__()
            self.forward_s, self.backward_s = forward_s, backward_s
            self.held = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in numels])
            self.gradients = [torch.zeros(n) for n in reversed(numels)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Wait.apply(x, self, *reversed(list(self.held)))  # type: ignore[no-any-return, no-untyped-call]

    return nn.Sequential(*(Block(**block) for block in blocks)), clock


def serve(options: argparse.Namespace) -> None:
    """One rank: train `iterations` iterations, print when each ended and the sizes of the buckets."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from stanza_sim.execute.emulated.emulate import realtime
    from stanza_sim.execute.emulated.waits import set_timer_slack

    told = json.loads(Path(options.told).read_text())
    torch.set_num_threads(1)
    set_timer_slack()
    meet = f"tcp://{options.address}:{PORT}"
    dist.init_process_group("gloo", init_method=meet, rank=options.rank, world_size=told["nodes"])
    chain, clock = waiting_model(told["blocks"])
    model = DistributedDataParallel(chain, bucket_cap_mb=told["bucket_mib"], gradient_as_bucket_view=True)
    x, ends = torch.zeros(1, requires_grad=True), []
    with realtime(True):
        for _ in range(told["iterations"]):
            clock.begin()
            y = model(x)
            clock.wait(told["loss_s"])
            y.sum().backward()
            clock.begin()
            clock.wait(told["update_s"])
            ends.append(time.perf_counter())
        dist.barrier()
    sizes = model._get_ddp_logging_data()["rebuilt_bucket_sizes"]  # type: ignore[no-untyped-call]
    print(json.dumps([ends, [int(size) for size in sizes.split(",")]]), flush=True)
    dist.destroy_process_group()


# --- all ranks -------------------------------------------------------------------------------------------------------


def ddp_iteration_s(plan: Plan, cluster: Cluster, seconds: dict[str, float], iterations: int, warmup: int) -> float:
    """Run DDP in a testbed of `cluster` with computations of `seconds` by op; the median duration of an iteration."""
    from tempfile import TemporaryDirectory

    from stanza_sim.execute.start.measure import iteration_durations
    from stanza_sim.testbed import Testbed

    schedule = plan.schedule
    ours = [b.numel * schedule.itemsize for b in schedule.bundles]
    told = {
        "nodes": cluster.nodes,
        "iterations": iterations,
        "bucket_mib": plan.strategy.settings.bucket / MIB,  # type: ignore[attr-defined]
        "blocks": [
            {
                "numels": [t.numel for t in b.tensors],
                "forward_s": seconds[f"fwd.{b.name}"],
                "backward_s": seconds[f"bwd.{b.name}"],
            }
            for b in plan.model.blocks
        ],
        "loss_s": seconds["loss"],
        "update_s": sum(seconds[f"upd.{b.name}"] for b in schedule.bundles),
    }
    with Testbed(cluster) as bed, TemporaryDirectory() as folder:
        file = Path(folder) / "told.json"
        file.write_text(json.dumps(told))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": bed.interface}
        environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # else it warns that addresses in the testbed have no names
        ranks: list[subprocess.Popen[str]] = []
        try:
            for rank in range(cluster.nodes):
                own = ["--rank", str(rank), "--address", bed.address_of(0), "--told", str(file)]
                command = [*bed.exec_prefix(rank), sys.executable, str(Path(__file__).resolve()), *own]
                ranks.append(subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE))
            found = [rank.communicate()[0] for rank in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if any(process.returncode for process in ranks):
        raise SystemExit("speedups.py: a rank of DDP failed")
    parts = [json.loads(text) for text in found]
    if parts[0][1] != ours:
        raise SystemExit(f"speedups.py: DDP has buckets of {parts[0][1]} bytes, our all_reduce of {ours}")
    ends = [max(together) for together in zip(*(part[0] for part in parts), strict=True)]
    return median(iteration_durations(ends, warmup))


def compare(overrides: Sequence[str]) -> None:
    """Run everything and print the table."""
    from stanza_sim.experiment.file import load_experiment
    from stanza_sim.experiment.rows import cluster_of, plans_of
    from stanza_sim.experiment.run import jobs_of, run_experiment

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result = run_experiment(str(EXPERIMENT), overrides=overrides, execute=True, testbed=True, say=say)
    if result is None:
        raise SystemExit("speedups.py: is not for launchers")
    loaded = load_experiment(str(EXPERIMENT), overrides)
    cluster = cluster_of(loaded)
    plans = plans_of(loaded, cluster)
    plan = next(p for p in plans if p.strategy.strategy == "all_reduce")
    (job,) = jobs_of(loaded, [plan], cluster, {}, testbed=True)
    if job.emulation is None:
        raise SystemExit("speedups.py: is for emulated compute")
    seconds = dict(job.emulation.seconds[0])
    say("running DistributedDataParallel")
    ddp_s = ddp_iteration_s(plan, cluster, seconds, job.training.iterations, job.training.warmup)
    rows: list[tuple[str, float, float]] = []  # label, predicted and measured samples/s
    for row in result.rows:
        if row.measurement is None:
            raise SystemExit(f"speedups.py: {row.label} was not measured")
        samples = row.schedule.global_batch
        rows.append((row.label, samples / row.prediction.iteration_s, samples / row.measurement.iteration_s))
        if row.strategy == "all_reduce":
            rows.append(("DistributedDataParallel", rows[-1][1], samples / ddp_s))
    print(f"{cluster.nodes} hosts of {cluster.name}; speed-ups over {rows[0][0]}\n")
    print("                          samples/s             speed-up")
    print("                          predicted  measured   predicted  measured  error, %")
    for label, predicted, measured in rows:
        a, b = predicted / rows[0][1], measured / rows[0][2]
        print(f"{label:24}  {predicted:9.1f}  {measured:8.1f}  {a:9.3f}x {b:8.3f}x  {(a / b - 1) * 100:+8.1f}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the experiment"
    )
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    parser.add_argument("--told", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        serve(options)
        return
    from stanza_sim.base.errors import StanzaError

    try:
        compare(options.set)
    except StanzaError as error:
        raise SystemExit(f"speedups.py: {error}") from None


if __name__ == "__main__":
    main()
