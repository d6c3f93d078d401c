"""One node of a graph, run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx


def run_node(node: fx.Node, values: Mapping[fx.Node, object], part: Callable[[str], Any]) -> object:
    """Return what `node` gives for the `values` of the nodes before; `part` finds the module or tensor of a name."""
    args: Any = fx.node.map_arg(node.args, lambda n: values[n])  # type: ignore[arg-type,return-value]
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: values[n])  # type: ignore[arg-type,return-value]
    target: Any = node.target
    match node.op:
        case "call_module":
            return part(target)(*args, **kwargs)
        case "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        case "call_function":
            return target(*args, **kwargs)
        case _:
            return part(target)
