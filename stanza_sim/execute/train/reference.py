"""Single-process training with the arithmetic of a schedule: what every strategy must equal.

The whole model, plain autograd over the whole global batch, an optimiser of `torch.optim`. From the schedule it takes
only which sub-batches each block sees, since batch norm has the statistics of each sub-batch by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.job import Array, Optimizer, RunJob
from stanza_sim.execute.train import data
from stanza_sim.execute.train.arithmetic import Arithmetic
from stanza_sim.execute.train.dropout import CounterDropout
from stanza_sim.execute.train.losses import summed_loss, terms
from stanza_sim.execute.train.samples import follow
from stanza_sim.model.decay import without_decay
from stanza_sim.model.extract import build_module, replace_dropout, split
from stanza_sim.model.labels import Labels, Loss
from stanza_sim.model.profile import ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What single-process training gives: parameters before and after, and the mean loss of each iteration."""

    start: dict[str, Array]
    end: dict[str, Array]
    losses: tuple[float, ...]


def train(job: RunJob) -> Trained:
    """Train as `job` says, in this process on a CPU, in its precision; TF32, which that has not, is fp32 there."""
    training, schedule = job.training, job.schedule
    samples = follow(schedule, job.model)
    torch.manual_seed(training.seed)
    module = build_module(job.model, device="cpu")
    dropouts: dict[str, list[CounterDropout]] = {}
    parts = split(module, job.model)
    for part in parts:
        dropouts[part.name] = []

        def make(key: str, p: float, found: list[CounterDropout] = dropouts[part.name]) -> nn.Module:
            found.append(CounterDropout(key, p, training.seed))
            return found[-1]

        replace_dropout(part.module, make)
        part.module.train()
    parameters = {name: p for part in parts for name, p in part.parameters.items()}
    start = _arrays(parameters)
    o = training.optimizer
    optimizer = _optimizer(o, parameters, without_decay(job.model, o.no_decay))
    items = data.load(training.data, job.model, training.seed)
    numbers, _ = data.divide(training.data, len(items), training.seed)
    losses, arithmetic = [], Arithmetic.of(job)
    for step, batch in enumerate(data.draw(numbers, schedule.global_batch, training.iterations, training.seed)):
        x, y = data.stack(items, batch, torch.device("cpu"))
        for part in parts:
            with arithmetic.autocast(y.device):
                x = (_through(part.module, x, samples.of_block(part.name), dropouts[part.name], step),)
        for group in optimizer.param_groups:
            group["lr"] = o.schedule.at(o.lr, step, training.iterations)
        optimizer.zero_grad()
        losses.append(_backward(x[0], y, job.model, parameters, arithmetic))
        for parameter in parameters.values():  # momentum and weight decay are of all rows, sparse gradients or not
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        if o.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), o.clip_norm)
        optimizer.step()
    return Trained(start=start, end=_arrays(parameters), losses=tuple(losses))


def _optimizer(o: Optimizer, parameters: dict[str, nn.Parameter], no_decay: Collection[str]) -> torch.optim.Optimizer:
    """The optimiser of torch's that `o` is."""
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in parameters.items() if name not in no_decay], "weight_decay": o.weight_decay},
        {"params": [p for name, p in parameters.items() if name in no_decay], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match o.kind:
        case OptimizerKind.SGD:
            return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
        case OptimizerKind.ADAM:
            return torch.optim.Adam(groups, lr=o.lr, betas=o.betas, eps=o.eps)
        case OptimizerKind.ADAMW:
            return torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps)


def _backward(
    x: Tensor, y: Tensor, model: ModelProfile, parameters: dict[str, nn.Parameter], arithmetic: Arithmetic
) -> float:
    """Compute the gradients of the mean loss, through those of the scaled sum under autocast; return that loss."""
    kind, dtype = model.labels, next(iter(parameters.values())).dtype
    if not arithmetic.precision.is_half:
        loss = _mean(x, y, kind)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()
    count = terms(y, kind, model.blocks[-1].output_shape)
    loss = summed_loss(x.to(dtype), y, kind)
    (loss * arithmetic.scale).backward()  # type: ignore[no-untyped-call]
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            arithmetic.check(parameter.grad, name)
            parameter.grad.div_(arithmetic.scale * count)
    return loss.item() / count


def _mean(output: Tensor, labels: Tensor, kind: Labels) -> Tensor:
    """The mean loss as torch has it, with the classes where it takes them."""
    match kind.loss:
        case Loss.CROSS_ENTROPY:
            last = kind.class_axis == -1
            if last and kind.probabilities:
                labels = labels.movedim(-1, 1)
            return F.cross_entropy(output.movedim(-1, 1) if last else output, labels)
        case Loss.MSE:
            return F.mse_loss(output, labels)
        case Loss.BCE:
            return F.binary_cross_entropy_with_logits(output, labels)


def _through(
    block: nn.Module, inputs: data.Inputs, sub_batches: list[tuple[int, ...]], dropouts: list[CounterDropout], step: int
) -> Tensor:
    """Output of `block` for the whole global batch, computed sub-batch by sub-batch."""
    outputs = []
    for rows in sub_batches:
        for dropout in dropouts:
            dropout.step, dropout.positions = step, torch.tensor(rows, dtype=torch.int32)
        outputs.append(block(*(x[list(rows)] for x in inputs)))
    order = torch.tensor([p for rows in sub_batches for p in rows]).argsort()
    return torch.cat(outputs)[order]


def _arrays(parameters: dict[str, nn.Parameter]) -> dict[str, Array]:
    return {name: np.array(p.detach().numpy()) for name, p in parameters.items()}


def largest_deviation(got: dict[str, Array], trained: Trained) -> float:
    """The largest ||p - q|| / ||q - p0|| over tensors: p is `got`, q the reference's end, p0 its start."""
    worst = 0.0
    for name, q in trained.end.items():
        moved = float(np.linalg.norm(_double(q) - _double(trained.start[name])))
        off = float(np.linalg.norm(_double(got[name]) - _double(q)))
        worst = max(worst, off / moved if moved else (0.0 if off == 0 else float("inf")))
    return worst


def _double(values: Array) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
