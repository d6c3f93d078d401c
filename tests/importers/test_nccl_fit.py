"""Fitting a platform: constants that made the times are found again, and held-in logs are predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from stanza_sim.base.config import find
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.cluster.nccl import NcclPlatform, load_nccl
from stanza_sim.importers.nccl_fit import Fitted, fit, platform_like, residuals, write_platform
from stanza_sim.importers.nccl_tests import NcclLog, Timed, read_logs
from stanza_sim.schedule import CollectiveKind
from stanza_sim.simulate.lowering.nccl import Layout, price
from tests.importers.logs import log

PUBLISHED = Path(__file__).parents[2] / "stanza_sim/data/published/nccl.csv"
ALL_REDUCE = CollectiveKind.ALL_REDUCE
SIZES = [1 << k for k in range(8, 31)]
TRUE = replace(
    load_nccl("a100-nvlink"),
    inside_share=1.0,
    across_share=1.0,
    inside_Bps=180e9,
    across_Bps=75e9,
    memory_Bps=600e9,
    overhead_s=25e-6,
    launch_s=3e-6,
)


def made(
    platform: NcclPlatform, hosts: int, per_host: int, kind: CollectiveKind = CollectiveKind.ALL_REDUCE
) -> NcclLog:
    """A log that the model itself would write."""
    layout = Layout(
        ranks=hosts * per_host,
        hosts=hosts,
        inside_Bps=inf,
        across_Bps=inf,
        memory_Bps=inf,
        gpus_per_process=per_host,
    )
    rows = tuple(Timed(kind=kind, nbytes=n, seconds=price(platform, layout, kind, n).seconds) for n in SIZES)
    return NcclLog(path="made", by_host=(per_host,) * hosts, gpus_per_process=per_host, device="", rows=rows)


def test_the_constants_that_made_the_times_are_found() -> None:
    logs = [made(TRUE, 1, 2), made(TRUE, 1, 8), made(TRUE, 2, 8), made(TRUE, 8, 8)]
    found = fit(logs, base="a100-nvlink", name="mine")
    assert found.fitted == ("inside_Bps", "across_Bps", "memory_Bps", "overhead_s", "launch_s")
    for key in ("inside_Bps", "across_Bps", "memory_Bps", "overhead_s"):
        assert getattr(found.platform, key) == pytest.approx(getattr(TRUE, key), rel=0.02), key
    # The least time is that of what takes longest: launching, from 8 GPUs a process on; 2 GPUs take 8.6 us anyway.
    assert found.platform.launch_s == pytest.approx(3e-6, rel=0.15)
    assert all(r.p90_pct < 1 for r in found.residuals)
    assert [r.gpus for r in found.residuals] == [2, 8, 16, 64]


@pytest.mark.parametrize("kind", list(CollectiveKind))
def test_other_collectives_tell_as_much(kind: CollectiveKind) -> None:
    logs = [made(TRUE, 1, 4, kind), made(TRUE, 1, 8, kind), made(TRUE, 4, 8, kind)]
    found = fit(logs, base="a100-nvlink", name="mine")
    assert all(r.p90_pct < 2 for r in found.residuals)


def test_what_logs_do_not_tell_is_that_of_the_base() -> None:
    one_host = fit([made(TRUE, 1, 8)], base="a100-nvlink", name="mine")
    assert one_host.fitted == ("inside_Bps", "overhead_s", "launch_s")
    assert one_host.platform.across_Bps is None
    assert one_host.platform.memory_Bps == pytest.approx(725e9)
    several = fit([made(TRUE, 2, 8)], base="a100-nvlink", name="mine")
    assert several.fitted == ("across_Bps", "overhead_s")
    assert several.platform.inside_Bps is None


def test_too_little_to_fit() -> None:
    few = replace(made(TRUE, 1, 8), rows=made(TRUE, 1, 8).rows[:11])
    with pytest.raises(InputError, match="1 times of 256 KiB and more"):
        fit([few], base="a100-nvlink", name="mine")
    with pytest.raises(InputError, match="too few to fit"):
        fit([replace(made(TRUE, 1, 8), by_host=(1,))], base="a100-nvlink", name="mine")


def test_a_log_that_does_not_fit_its_cluster() -> None:
    with pytest.raises(InputError, match=r"made: has 16 GPUs on its hosts, which dgx-a100-16 has not"):
        fit([made(TRUE, 1, 16)], base="a100-nvlink", name="mine", cluster=load_cluster("dgx-a100-16"))
    with pytest.raises(InputError, match="does not say what joins the devices"):
        cluster = load_cluster("dgx-a100-16")
        bare = replace(cluster, hosts=tuple(replace(h, intra=None) for h in cluster.hosts))
        fit([made(TRUE, 2, 8)], base="a100-nvlink", name="mine", cluster=bare)


def test_the_base_follows_from_what_the_driver_calls_the_gpus(tmp_path: Path) -> None:
    names = {
        "NVIDIA A100-SXM4-40GB": "a100-nvlink",
        "NVIDIA H100 80GB HBM3": "pcie",
        "Tesla V100-SXM2-16GB": "nvlink",
        "NVIDIA A100-PCIE-40GB": "pcie",
        "": "nvlink",
    }
    for device, base in names.items():
        assert platform_like([replace(made(TRUE, 1, 2), device=device)]) == base
    path = tmp_path / "a.log"
    path.write_text(log([(1024, 9.5)]))
    assert platform_like(read_logs([path])) == "a100-nvlink"


def test_a_platform_is_written_and_read(tmp_path: Path) -> None:
    found = fit([made(TRUE, 1, 2), made(TRUE, 1, 8), made(TRUE, 2, 8)], base="a100-nvlink", name="mine")
    path = tmp_path / "mine.json"
    write_platform(replace(found.platform, channels=24), path)
    read = load_nccl(path)
    assert json.loads(path.read_text())["name"] == read.name == "mine"
    assert read.channels == 24
    for key in ("inside_Bps", "across_Bps", "memory_Bps", "overhead_s", "launch_s", "ramp_bytes"):
        assert getattr(read, key) == pytest.approx(getattr(found.platform, key), rel=1e-4), key
    assert (read.base_s, read.inside_s, read.across_s, read.ll128) == (
        TRUE.base_s,
        TRUE.inside_s,
        TRUE.across_s,
        "everywhere",
    )


# ---- the published logs --------------------------------------------------------------------------------------------


def published() -> tuple[NcclLog, ...]:
    return read_logs([PUBLISHED], gpus_per_host=8)


def fitted_to(logs: list[NcclLog]) -> Fitted:
    return fit(logs, base="a100-nvlink", name="x", cluster=load_cluster("dgx-a100-16"))


def test_the_shipped_platform_is_what_the_fit_finds() -> None:
    found = fitted_to([*published()]).platform
    shipped = load_nccl("a100-nvlink")
    assert found.across_Bps is not None and found.memory_Bps is not None
    assert found.across_Bps == pytest.approx(shipped.across_share * 8 * 25e9 * 0.97, rel=0.02)
    assert found.memory_Bps == pytest.approx(shipped.memory_share * 1555e9, rel=0.02)
    assert found.overhead_s == pytest.approx(shipped.overhead_s, rel=0.04)
    assert found.launch_s == pytest.approx(shipped.launch_s, rel=0.04)


@pytest.mark.parametrize("left_out", [2, 4, 8, 16, 64])
def test_numbers_of_gpus_that_were_not_fitted_are_predicted(left_out: int) -> None:
    """As it must be of logs that nobody has seen: median within 8%, 90% within 20%."""
    logs = published()
    rest = fitted_to([log for log in logs if log.gpus != left_out]).platform
    (unseen,) = (log for log in logs if log.gpus == left_out)
    (found,) = residuals(rest, [unseen], cluster=load_cluster("dgx-a100-16"))
    assert found.median_pct <= 8
    assert found.p90_pct <= 20


def test_links_that_bound_the_rate_tell_the_pass_through_memory(tmp_path: Path) -> None:
    """Where a topology states what NCCL reaches as its links' efficiency, the pass through memory is in that."""
    text = find("topologies", "dgx-a100-16").read_text()
    assert "efficiency: 0.94" in text
    (tmp_path / "slow.yaml").write_text(text.replace("efficiency: 0.94", "efficiency: 0.78"))
    slow = load_cluster(tmp_path / "slow.yaml")
    logs = [log for log in published() if log.gpus == 8]
    found = fit(logs, base="a100-nvlink", name="mine", cluster=slow)
    assert "memory_Bps" in found.fitted
    assert found.residuals[0].median_pct < 5
    kept = fit(logs, base="a100-nvlink", name="mine", cluster=load_cluster("dgx-a100-16"))
    assert "memory_Bps" not in kept.fitted
