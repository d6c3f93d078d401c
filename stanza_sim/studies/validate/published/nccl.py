"""Published logs of nccl-tests, predicted: all-reduces on hosts of 8 A100, as the simulator prices them.

Rules. Rows are all-reduces, out of place, on the topology `dgx-a100-16`. Up to 8 GPUs are on one host. More are on the
fewest hosts that share them out evenly (12 on two hosts of 6, 24 on three of 8); where that would take more than twice
as many hosts as are needed, on full hosts and one with the rest. One process drives all GPUs of a host, as in the logs
that the constants were fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.schedule import CollectiveKind
from stanza_sim.simulate.one_collective import OneCollective

TOPOLOGY = "dgx-a100-16"
PER_HOST = 8
MOST_GPUS = 100_000


def gpus_by_host(gpus: int) -> list[int]:
    """How many GPUs of each host take part.

    >>> gpus_by_host(6), gpus_by_host(12), gpus_by_host(24), gpus_by_host(17)
    ([6], [6, 6], [8, 8, 8], [8, 8, 1])
    """
    if not 1 <= gpus <= MOST_GPUS:
        raise InputError(f"{gpus} GPUs", hint=f"a row is of 1 to {MOST_GPUS:,} GPUs")
    fewest = -(-gpus // PER_HOST)
    for hosts in range(fewest, 2 * fewest + 1):
        if gpus % hosts == 0:
            return [gpus // hosts] * hosts
    return [PER_HOST] * (fewest - 1) + [gpus - PER_HOST * (fewest - 1)]


@lru_cache(maxsize=64)
def _among(gpus: int) -> OneCollective:
    by_host = gpus_by_host(gpus)
    cluster = load_cluster(TOPOLOGY, nodes=len(by_host))
    ranks = [PER_HOST * h + d for h, count in enumerate(by_host) for d in range(count)]
    return OneCollective(cluster, ranks, gpus_per_process=max(by_host))


def predict_nccl(rows: Sequence[Mapping[str, object]]) -> list[float]:
    """Return the microseconds that each row's all-reduce is predicted to take.

    A row has `gpus` and `bytes`, as numbers or texts of a CSV file; what else it has does not matter. Raises
    `InputError`, which names the row (the first is 1), where one of the two is missing or no whole number.
    """
    found = []
    for i, row in enumerate(rows):
        gpus, nbytes = _whole(row, "gpus", i + 1, least=1), _whole(row, "bytes", i + 1, least=0)
        found.append(_among(gpus).seconds(CollectiveKind.ALL_REDUCE, nbytes) * 1e6)
    return found


def _whole(row: Mapping[str, object], key: str, number: int, *, least: int) -> int:
    value = row.get(key)
    where, hint = f"row {number}: {key}", f"a whole number of at least {least} is expected"
    if value is None:
        raise InputError("is missing", where=where, hint=hint)
    try:
        whole = int(str(value))
    except ValueError:
        raise InputError(f"is {value!r}", where=where, hint=hint) from None
    if whole < least or (key == "gpus" and whole > MOST_GPUS):
        raise InputError(f"is {whole}", where=where, hint=hint)
    return whole
