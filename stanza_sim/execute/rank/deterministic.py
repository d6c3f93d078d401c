"""Computing so that repeats are bitwise equal: torch's switches for it, set while a job runs.

On a CPU every operation of a run has one order of its sums, so repeats are equal without any switch. On a GPU some add
up with atomic operations, in an order that is chance, and cuDNN picks its algorithms by timing them.

Sources: "Reproducibility" in torch's notes, and cuBLAS's "Results reproducibility", by which several streams of one
process need a workspace of a stated size, which CUBLAS_WORKSPACE_CONFIG gives before CUDA starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from stanza_sim.base.errors import RunError

_REFUSALS = ("does not have a deterministic implementation", "CUBLAS_WORKSPACE_CONFIG")
"""What torch says where there is no deterministic form, in a plain `RuntimeError`."""


@contextmanager
def deterministically(wanted: bool) -> Iterator[None]:
    """Within, operations of all threads give the same bits each time, if `wanted`; afterwards all is as it was.

    Raises `RunError` for an operation that has no such form.
    """
    if not wanted:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Memory that is not written is never read here, so filling it would only take time.
    cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in _REFUSALS):
            said = str(error).partition("\n")[0].partition(". You can")[0]
            raise RunError(
                f"with deterministic: true, an operation cannot be carried out: {said}; leave `deterministic` out, or "
                "replace the operation in the model"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
