"""All pictures of a result's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Tell
from stanza_sim.report.folder import PICTURES, slug
from stanza_sim.report.pictures.roofline_picture import roofline
from stanza_sim.report.pictures.row_pictures import breakdown, predicted_measured, speed_ups
from stanza_sim.report.pictures.style import Drawing, save
from stanza_sim.report.pictures.timeline_picture import timelines
from stanza_sim.report.saved import Saved, read_folder


def draw_folder(folder: Path, tell: Tell = lambda what, done, total: None) -> list[Path]:
    """Draw the result in `folder` into `pictures/` there, and return the files, PNG and SVG of each.

    Raises `InputError` for a folder that holds no result, where matplotlib is missing, and for what cannot be written.
    """
    saved = read_folder(folder)
    target = folder / PICTURES
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(target)) from None
    return save(list(_drawings(saved)), target, tell)


def _drawings(saved: Saved) -> Iterator[Drawing]:
    models = saved.by_model()
    yield speed_ups(models)
    if any(row.details.predicted for row in saved.rows):
        yield breakdown(models)
    if any(row.run.measured for row in saved.rows):
        yield predicted_measured(saved.rows)
    for model, rows in models.items():
        of_model = f"-{slug(model)}"
        for which in ("predicted", "measured"):
            name = f"timeline{of_model}" + ("-measured" if which == "measured" else "")
            if (found := timelines(name, rows, which)) is not None:
                yield found
        if (found := roofline(f"roofline{of_model}", rows)) is not None:
            yield found
