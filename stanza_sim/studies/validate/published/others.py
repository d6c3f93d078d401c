"""Published rows of nccl-tests and of single GPUs, read and predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate.published.names import device_of, precision_of
from stanza_sim.studies.validate.published.nccl import MOST_GPUS, TOPOLOGY, gpus_by_host, predict_nccl
from stanza_sim.studies.validate.published.scores import Outcome, RowKind
from stanza_sim.studies.validate.published.single import predict_single
from stanza_sim.studies.validate.published.tables import Cells, read_cells

NCCL_COLUMNS = ("gpus", "bytes", "time_us_out_of_place")
SINGLE_COLUMNS = ("gpu", "framework", "precision", "model", "factory", "batch", "image", "samples_per_s")
SCORED_FROM = 256 * 1024
"""Smaller all-reduces are listed: what a call costs decides there, and no training waits for it."""
LARGE = 64 * 1024 * 1024
"""From here on bandwidth decides."""


def nccl_words(path: Path) -> dict[str, str]:
    """What each row of nccl-tests is predicted with. Raises `InputError` with file and line."""
    sizes = _sizes(read_cells(path, NCCL_COLUMNS))
    return {name: f"{nbytes:,} bytes over {gpus_by_host(gpus)} GPUs of {TOPOLOGY}" for name, gpus, nbytes in sizes}


def single_words(path: Path) -> dict[str, str]:
    """What each row of one GPU is predicted with. Raises `InputError` for a file that is wrong."""
    rows = read_cells(path, SINGLE_COLUMNS)
    return {cells.text("id", str(cells.number)): _single_words(cells) for cells in rows}


def _single_words(cells: Cells) -> str:
    try:
        device = device_of(cells.needed("gpu"))
        precision = precision_of(cells.text("precision"), device)
    except InputError as error:
        return f"not predicted: {error.message}"
    model = f"{cells.needed('model')} of {cells.text('factory')}, {cells.text('image')} pixels"
    return f"{model}, batch {cells.text('batch')}, on {device.name} in {precision}"


def _sizes(rows: list[Cells]) -> list[tuple[str, int, int]]:
    """Id, GPUs and bytes of each row."""
    found = [
        (cells.text("id", str(cells.number)), cells.count("gpus"), cells.count("bytes", least=0)) for cells in rows
    ]
    for cells, (_, gpus, _) in zip(rows, found, strict=True):
        if gpus > MOST_GPUS:
            raise cells.wrong("gpus", f"is {gpus:,}", f"a row is of 1 to {MOST_GPUS:,} GPUs")
    return found


def nccl_outcomes(path: Path) -> list[Outcome]:
    """Read and predict rows of nccl-tests. Raises `InputError` with file and line."""
    rows = read_cells(path, NCCL_COLUMNS)
    sizes = _sizes(rows)
    try:
        predicted = predict_nccl([{"gpus": gpus, "bytes": nbytes} for _, gpus, nbytes in sizes])
    except InputError as error:
        raise InputError(f"{error.where}: {error.message}", where=str(path), hint=error.hint) from None
    return [
        Outcome(
            id=name,
            kind=RowKind.NCCL,
            label=f"{nbytes:,} bytes on {gpus} GPUs",
            predicted=microseconds,
            measured=(measured := cells.number_of("time_us_out_of_place", least=0.0) or None),
            scored=nbytes >= SCORED_FROM and measured is not None,
            groups=(("GPUs", str(gpus)), ("bytes", "64 MiB and more" if nbytes >= LARGE else "below 64 MiB")),
        )
        for cells, (name, gpus, nbytes), microseconds in zip(rows, sizes, predicted, strict=True)
    ]


def single_outcomes(path: Path, tell: Callable[[str, int, int], None] = lambda *_: None) -> list[Outcome]:
    """Read and predict rows of one GPU. Raises `InputError` for a file that is wrong."""
    rows = read_cells(path, SINGLE_COLUMNS)
    found = []
    for done, cells in enumerate(rows, 1):
        found.append(_single(cells))
        tell(cells.text("model"), done, len(rows))
    return found


def _single(cells: Cells) -> Outcome:
    measured, predicted, reason = cells.number_of("samples_per_s"), None, ""
    try:
        predicted = predict_single(cells.cells)
    except InputError as error:
        reason = error.message
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        reason = "recording a model needs torch"
    gpu, precision = cells.needed("gpu"), cells.text("precision")
    return Outcome(
        id=cells.text("id", str(cells.number)),
        kind=RowKind.SINGLE,
        label=f"{cells.needed('model')} {cells.text('batch')} on {gpu}, {precision}",
        predicted=predicted,
        measured=measured,
        scored=predicted is not None and measured is not None,
        reason=reason,
        groups=(("GPU", gpu),),
    )
