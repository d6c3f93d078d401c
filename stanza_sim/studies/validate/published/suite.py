"""What a suite of published measurements says: files, bounds, and the causes of lost time that predictions know.

`experiments/validation/published.yaml` is the one that is shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stanza_sim.base import config
from stanza_sim.base.config import Kind, Loaded, Section
from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Rate, Seconds
from stanza_sim.experiment.file import Name

_DATA = Path(__file__).parents[3] / "data"
OWN = {
    "rows": _DATA / "published" / "rows.csv",
    "nccl": _DATA / "published" / "nccl.csv",
    "single": _DATA / "single_timings.csv",
}
"""The project's own copies of the files."""

Percent = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(strict=True, ge=0, le=0.5)]


class KindBounds(Section):
    """What absolute errors of one kind of rows must not exceed, in percent; what is left out is not judged."""

    median: Percent | None = None
    p90: Percent | None = None


class TrainingBounds(KindBounds):
    """Those of training rows; hard ones have a measured efficiency below 0.9."""

    hard_median: Percent | None = None
    several_hosts_median: Percent | None = None


class PublishedBounds(Section):
    """The bounds on the project's own rows; files of others are not judged."""

    training: TrainingBounds = TrainingBounds()
    nccl: KindBounds = KindBounds()
    single: KindBounds = KindBounds()


class Causes(Section):
    """Which causes of lost time predictions know; each can be switched off, to see what it explains."""

    transports: bool = Field(True, description="What TCP flows, gRPC and MPI processes move; off: the line rate.")
    pcie_tree: bool = Field(True, description="PCIe switches, root complexes and host memory; off: nothing between.")
    cpu_servers: bool = Field(True, description="Servers on hosts' CPUs where a source has them there; off: on GPUs.")
    nccl: bool = Field(True, description="NCCL's tuning model prices its collectives; off: rings at the links' rates.")
    spread: bool = Field(True, description="The slowest device sets the pace; off: all are equally fast.")
    framework: bool = Field(True, description="A barrier and an overhead per iteration; off: neither.")


class Losses(Section):
    """What training on several GPUs costs beside messages."""

    device_spread: Spread = Field(0.0, description="Standard deviation of the speed of GPUs of one kind.")
    collective_share: Spread = Field(0.0, description="Share of a GPU that a collective of NCCL takes while it runs.")
    overhead_per_device: Seconds = Field(0.0, description="Launch and synchronisation of each further GPU of a host.")
    cpu_reduce_rate: Rate = Field(5e9, description="What a server on a host's CPU sums up.")


class PublishedSuite(Section):
    """One suite of published measurements. Files are relative to the suite's; left out, the project's own are taken."""

    name: Name
    kind: Literal["published"]
    description: str = ""
    rows: str | None = Field(None, description="CSV file of training rows.")
    nccl: str | None = Field(None, description="CSV file of nccl-tests rows.")
    single: str | None = Field(None, description="CSV file of rows of one GPU.")
    bounds: PublishedBounds = PublishedBounds()
    causes: Causes = Causes()
    losses: Losses = Losses()


def is_published(name_or_path: str) -> bool:
    """Whether a suite is one of published measurements. Raises `InputError` if there is no such suite."""
    data, _ = config.read_yaml(config.find(Kind.SUITES, name_or_path))
    return data.get("kind") == "published"


def load_published(name_or_path: str, overrides: Sequence[str] = ()) -> Loaded[PublishedSuite]:
    """Read a suite of published measurements; `overrides` are `key=value` texts. Raises `InputError`."""
    return config.load_located(config.find(Kind.SUITES, name_or_path), PublishedSuite, overrides=overrides)


def file_of(loaded: Loaded[PublishedSuite], what: Literal["rows", "nccl", "single"], given: Path | None) -> Path:
    """The file of one kind of rows: as `given`, as the suite says, or the project's own copy.

    Raises `InputError` if it does not exist.
    """
    stated: str | None = getattr(loaded.value, what)
    path = given or (loaded.path.parent / stated if stated is not None else OWN[what])
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "no such file"
        raise InputError(wrong, where=str(path), hint="name a CSV file, see stanza_sim/data/published/README.md")
    return path
