"""Results as a page and as pictures, from the folder or the file that they were written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stanza_sim.api._arguments import placed


def write_report(folder: str | Path) -> Path:
    """Write `report.html`, one self-contained page, into the folder of a saved result, and return its path.

    The folder is one that `ExperimentResult.save`, or `-o` of the commands run and plan, wrote. Raises `InputError`.

    >>> import stanza_sim as ss, tempfile
    >>> result = ss.load_experiment("traffic", set={"models": ["alexnet"], "strategies": ["all_reduce"]}).run()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     ss.write_report(folder).name
    'report.html'
    """
    from stanza_sim.report.page import write_page

    with placed("write_report"):
        return write_page(Path(folder))


def draw_pictures(source: str | Path, *, over: str | None = None, where: Sequence[str] = ()) -> list[Path]:
    """Draw a saved result (a folder) into its `pictures/`, or a sweep (a CSV file) beside it; return the files.

    Each picture is a PNG and an SVG. Of a sweep `over` is the key on the axis, and `where` has texts `KEY=VALUE` that
    keep some of its lines. Raises `InputError`, also without matplotlib (`pip install 'stanza-sim[plot]'`).

    >>> import stanza_sim as ss, tempfile
    >>> result = ss.load_experiment("traffic", set={"models": ["alexnet"], "strategies": ["all_reduce"]}).run()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     sorted({path.stem for path in ss.draw_pictures(folder)})
    ['breakdown', 'roofline-alexnet', 'speed-ups', 'timeline-alexnet']
    """
    from stanza_sim.base.errors import InputError
    from stanza_sim.report.pictures import draw_folder
    from stanza_sim.studies.sweep.pictures import draw_sweep

    path = Path(source)
    with placed("draw_pictures"):
        if path.is_file() or path.suffix == ".csv":
            return draw_sweep(path, over=over, where=where)
        if over is not None or where:
            raise InputError("is for the file of a sweep", where="over" if over else "where", hint="leave it out")
        return draw_folder(path)
