"""Traces of PyTorch's profiler, made by hand: AlexNet's ops, with kernels whose durations are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stanza_sim.model.zoo import load_model

MODEL = load_model("alexnet")
FORWARD_US = tuple(100.0 * (k + 1) for k in range(len(MODEL.blocks)))
"""What the kernel of each block's layer takes; the one of its ReLU takes 10 more."""
BACKWARD_US = tuple(250.0 * (k + 1) for k in range(len(MODEL.blocks)))
RELU_US, LOSS_US, UPDATE_US, NCCL_US = 10.0, 7.0, 400.0, 1500.0
BATCH = 32


@dataclass
class Tracing:
    """What is profiled, and how."""

    shapes: bool = True
    marks: bool = False
    modules: bool = False
    backward: bool = True
    update: bool = True
    nccl: bool = False
    zero_us: float = 0.0
    """What clearing the gradients takes."""
    gpu: str | None = "NVIDIA A100-SXM4-40GB"
    correlation: bool = True
    steps: int = 3
    slower: Sequence[float] = (1.0, 1.0, 1.0)
    """How many times as long each step takes."""
    prefix: str = "module."
    half: str = "float"
    events: list[dict[str, object]] = field(default_factory=list)
    now: float = 1000.0
    gpu_free: float = 0.0
    number: int = 0

    def span(self, cat: str, name: str, dur: float, tid: int, **args: object) -> dict[str, object]:
        self.number += 1
        event = {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": tid, "ts": self.now, "dur": dur}
        event["args"] = {"External id": self.number, **args}
        self.events.append(event)
        return event

    def op(self, name: str, tid: int, *, us: float, kernel: str = "gemm", times: float = 1.0, **args: object) -> None:
        """An op that launches a kernel of `us`; on a CPU it takes so long itself."""
        us *= times
        lasts = 20.0 if self.gpu else us
        made = self.span("cpu_op", name, lasts, tid, **args)
        if self.gpu:
            self.launch(tid, kernel, us, made)
        self.now += lasts + 2.0

    def launch(self, tid: int, kernel: str, us: float, op: Mapping[str, object] | None = None, **args: object) -> None:
        number = 100_000 + self.number
        begin = max(self.now + 10.0, self.gpu_free)
        shared = {"correlation": number} if self.correlation else {}
        if op is not None and isinstance(held := op["args"], dict):
            shared |= {"External id": held["External id"]}
        if self.correlation:
            self.events.append(
                {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 7, "tid": tid}
                | {"ts": self.now + 5.0, "dur": 3.0, "args": {"correlation": number}}
            )
        self.events.append(
            {"ph": "X", "cat": "kernel", "name": kernel, "pid": 0, "tid": 13, "ts": begin, "dur": us}
            | {"args": {"device": 0, "stream": 13, **shared, **args}}
        )
        if "nccl" not in kernel.lower():
            self.gpu_free = begin + us

    def step(self, k: int) -> None:
        """One step of training."""
        began, times, sequence = self.now, self.slower[k], 100 * k
        if self.zero_us:
            self.op("aten::zero_", 1, us=self.zero_us, kernel="fill", times=times)
            self.around("user_annotation", "Optimizer.zero_grad#SGD.zero_grad", began)
        nodes: list[tuple[str, int, float]] = []
        for b, block in enumerate(MODEL.blocks):
            weight = list(block.tensors[0].shape)
            conv = len(weight) == 4
            given = [BATCH, *MODEL.input_shape] if b == 0 else [BATCH, weight[1]]
            shapes = {"Input Dims": [given, weight, []], "Input type": [self.half, self.half]} if self.shapes else {}
            start, name = self.now, "Conv2d" if conv else "Linear"
            numbers = {"Sequence number": sequence, "Fwd thread id": 0}
            self.op("aten::conv2d" if conv else "aten::linear", 1, us=FORWARD_US[b], times=times, **numbers, **shapes)
            if self.marks:
                self.around("user_annotation", f"{self.prefix}{block.name}", start)
            if self.modules:
                self.around("python_function", f"nn.Module: {name}_{b}", start - 0.5)
            nodes.append(("ConvolutionBackward0" if conv else "AddmmBackward0", sequence, BACKWARD_US[b]))
            sequence += 1
            numbers["Sequence number"] = sequence
            self.op("aten::relu_", 1, us=RELU_US, kernel="elementwise", times=times, **numbers)
            sequence += 1
        if self.backward:
            self.op("aten::cross_entropy_loss", 1, us=LOSS_US, times=times, **{"Sequence number": sequence})
            for name, number, us in reversed([*nodes, ("NllLossBackward0", sequence, LOSS_US)]):
                args = {"Sequence number": number, "Fwd thread id": 1}
                self.op(f"autograd::engine::evaluate_function: {name}", 2, us=us, times=times, **args)
                if name != "NllLossBackward0":
                    self.op("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 2, us=0.0)
            if self.nccl:
                said = {"Collective name": "allreduce", "In msg nelems": 2_500_000, "Out msg nelems": 2_500_000}
                said |= {"dtype": "Float", "Group size": 16}
                self.launch(2, "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)", NCCL_US * times, **said)
        if self.update:
            start = self.now
            self.op("aten::_foreach_add_", 1, us=UPDATE_US, kernel="multi_tensor_apply", times=times)
            self.around("user_annotation", "Optimizer.step#SGD.step", start)
        self.now += 1.0
        self.around("user_annotation", f"ProfilerStep#{k}", began)

    def around(self, cat: str, name: str, start: float) -> None:
        """A span from `start` until now."""
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": 1, "ts": start, "dur": self.now - 0.5 - start}
        )

    def data(self) -> dict[str, object]:
        """The trace."""
        for k in range(self.steps):
            self.step(k)
        head: dict[str, object] = {"schemaVersion": 1, "baseTimeNanoseconds": 1_700_000_000_000_000_000}
        if self.gpu:
            head["deviceProperties"] = [{"id": 0, "name": self.gpu}]
        return {**head, "traceEvents": self.events}

    def write(self, path: Path) -> Path:
        """Write the trace, and return where it is."""
        path.write_text(json.dumps(self.data()))
        return path
