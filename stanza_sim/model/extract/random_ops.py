"""Functions of torch that draw random numbers in another way than elementwise dropout."""

from __future__ import annotations

from torch import fx

RANDOM_NAMES = frozenset(
    (
        *("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "dropout_", "feature_alpha_dropout"),
        *("feature_dropout", "stochastic_depth", "rrelu", "rrelu_", "gumbel_softmax"),
        *("bernoulli", "bernoulli_", "multinomial", "normal", "normal_", "uniform_", "exponential_", "random_"),
        *("rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm"),
    )
)


def is_random(node: fx.Node) -> bool:
    """Whether `node` calls a function that draws random numbers."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in RANDOM_NAMES
