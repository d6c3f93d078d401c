"""Blocks that compute a part of their forward pass again in the backward pass (`torch.utils.checkpoint`)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from stanza_sim.model.extract.run_nodes import run_node


def recompute_regions(block: fx.GraphModule) -> None:
    """Let `block` run its checkpointed nodes as `torch.utils.checkpoint` does; the module's own code stays."""
    if any("checkpoint" in n.meta for n in block.graph.nodes):
        block.__dict__["forward"] = _Forward(block)


def keeps_all(block: fx.GraphModule) -> Callable[..., object] | None:
    """Return the block's forward pass without recomputation; None if it has none."""
    return type(block).forward.__get__(block) if "forward" in block.__dict__ else None


class _Forward:
    """Runs the nodes of a block one by one, each run of nodes of one checkpoint under `checkpoint`."""

    def __init__(self, block: fx.GraphModule) -> None:
        self.block = block
        nodes = [n for n in block.graph.nodes if n.op == "get_attr"]
        nodes += [n for n in block.graph.nodes if n.op not in ("get_attr", "placeholder", "output")]
        self.runs: list[tuple[tuple[int, bool] | None, list[fx.Node]]] = []
        for node in nodes:
            region = node.meta.get("checkpoint")
            if not self.runs or self.runs[-1][0] != region:
                self.runs.append((region, []))
            self.runs[-1][1].append(node)

    def __call__(self, *samples: Tensor) -> object:
        """Return the block's output."""
        graph = self.block.graph
        values: dict[fx.Node, object] = dict(
            zip((n for n in graph.nodes if n.op == "placeholder"), samples, strict=True)
        )
        for region, nodes in self.runs:
            if region is None:
                self._run(nodes, values)
            else:
                self._checkpointed(nodes, values, whole=region[1])
        (result,) = next(n for n in graph.nodes if n.op == "output").args
        return values[result]

    def _checkpointed(self, nodes: list[fx.Node], values: dict[fx.Node, object], *, whole: bool) -> None:
        """Run `nodes` so that only what they are given and what others use of them is kept.

        The backward pass computes them again up to the last value that it needs, or all of them if `whole`.
        """
        inside = set(nodes)
        given = list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside))
        wanted = [n for n in nodes if any(u not in inside for u in n.users)]

        def compute(*inputs: object) -> tuple[object, ...]:
            within = dict(zip(given, inputs, strict=True))
            self._run(nodes, within)
            return tuple(within[n] for n in wanted)

        inputs = [values[n] for n in given]
        real = all(not t.is_meta for t in inputs if isinstance(t, Tensor))
        with set_checkpoint_early_stop(not whole):
            made = checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=real)
        values.update(zip(wanted, made, strict=True))

    def _run(self, nodes: list[fx.Node], values: dict[fx.Node, object]) -> None:
        for node in nodes:
            values[node] = run_node(node, values, self._part)

    def _part(self, name: str) -> object:
        path, _, leaf = name.rpartition(".")
        return getattr(self.block.get_submodule(path), leaf)
