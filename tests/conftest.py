"""Settings for every test: hypothesis without deadlines (the machine may be busy), one thread for arithmetic."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from stanza_sim.network_profile import Estimate, Machine, NetworkProfile, PairTimes, write_network

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

settings.register_profile("default", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def network_profile(tmp_path: Path) -> Path:
    """A network profile of NICs of 200 Mbps, measured on a busy machine."""

    def about(value: float) -> Estimate:
        return Estimate(value=value, low=0.9 * value, high=1.1 * value)

    pair = PairTimes(
        sender_Bps=25e6, receiver_Bps=25e6, source=0, destination=1, messages=3, latency_s=about(8e-5),
        overhead_s=about(3e-5), posting_s=about(3e-4), goodput_Bps=about(2.4e7), burst_bytes=about(0.0),
    )  # fmt: skip
    profile = NetworkProfile(
        cluster="t", date="2026-01-01T00:00:00Z", testbed=False, ranks=4, pairs=(pair,), hop_s=about(9e-5),
        machine=Machine(device="cpu X", cores=2, kernel="6.1", load=9.0), reduce_Bps=about(8e9), update_Bps=about(2e9),
    )  # fmt: skip
    path = tmp_path / "network.json"
    write_network(profile, path)
    return path
