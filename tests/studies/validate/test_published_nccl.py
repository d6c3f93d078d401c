"""Published logs of nccl-tests: how far predictions are off, by which rules rows are laid out, and wrong rows."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate.published.nccl import gpus_by_host, predict_nccl

PUBLISHED = Path(__file__).parents[3] / "stanza_sim/data/published/nccl.csv"
ROWS = list(csv.DictReader(PUBLISHED.open()))


def errors_pct(least_bytes: int) -> list[float]:
    rows = [row for row in ROWS if int(row["bytes"]) >= least_bytes]
    found = predict_nccl(rows)
    return [abs(us / float(row["time_us_out_of_place"]) - 1) * 100 for us, row in zip(found, rows, strict=True)]


def test_errors_of_what_training_sends() -> None:
    off = errors_pct(256 * 1024)
    assert len(off) == 71
    assert median(off) <= 5
    assert np.percentile(off, 90) <= 15


def test_small_ones_are_of_the_right_order() -> None:
    """Below 256 KiB programs and processes count: half are within 10%, and nine of ten within a factor of two."""
    off = errors_pct(1)
    assert median(off) <= 10
    assert np.percentile(off, 90) <= 50


def test_numbers_and_texts_are_taken() -> None:
    rows = [{"gpus": 8, "bytes": 1048576}, {"gpus": "8", "bytes": "1048576", "busbw_GBps": "25.3"}]
    first, second = predict_nccl(rows)
    assert first == second == pytest.approx(72.5, rel=0.1)
    assert predict_nccl([{"gpus": 1, "bytes": 1}, {"gpus": 8, "bytes": 0}]) == [0.0, 0.0]


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 16, 17, 24, 40, 48, 56, 64, 96, 100, 128, 1000])
def test_gpus_are_laid_out_on_few_hosts_and_evenly(gpus: int) -> None:
    by_host = gpus_by_host(gpus)
    assert sum(by_host) == gpus
    assert max(by_host) <= 8
    assert len(by_host) <= 2 * -(-gpus // 8)
    if len(set(by_host)) > 1:
        assert len(by_host) == -(-gpus // 8)
        assert set(by_host[:-1]) == {8}
    if gpus % 8 == 0:
        assert by_host == [8] * (gpus // 8)


def test_larger_clusters_than_the_topologys_are_predicted() -> None:
    (took,) = predict_nccl([{"gpus": 256, "bytes": 1 << 28}])
    (fewer,) = predict_nccl([{"gpus": 128, "bytes": 1 << 28}])
    assert took > fewer


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"bytes": 8}, "row 2: gpus: is missing"),
        ({"gpus": 8}, "row 2: bytes: is missing"),
        ({"gpus": "eight", "bytes": 8}, "row 2: gpus: is 'eight'"),
        ({"gpus": 0, "bytes": 8}, "row 2: gpus: is 0"),
        ({"gpus": 10**9, "bytes": 8}, "row 2: gpus: is 1000000000"),
        ({"gpus": 8, "bytes": -8}, "row 2: bytes: is -8"),
        ({"gpus": 8, "bytes": "1.5"}, "row 2: bytes: is '1.5'"),
    ],
)
def test_wrong_rows_are_named(row: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        predict_nccl([{"gpus": 8, "bytes": 8}, row])
