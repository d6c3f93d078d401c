"""`python -m stanza_sim.simulate.fit` rewrites the shipped files of every device with published timings.

With `--record` the work of the models in `single_timings.csv` is recorded afresh before (needs torch, torchvision and
timm).
"""

from __future__ import annotations

import argparse
import sys

from stanza_sim.cluster.device import DeviceSpec, load_device
from stanza_sim.model.module_work import write_works
from stanza_sim.model.published_names import source_of
from stanza_sim.model.recorded import recorded
from stanza_sim.simulate.fit.rows import DATA, WORKS, read_rows
from stanza_sim.simulate.fit.write import fit_all, refit


def shipped_devices() -> dict[str, DeviceSpec]:
    """Return the shipped devices with published timings by the path of their files."""
    paths = sorted((DATA / "devices").glob("*.yaml"))
    return {str(path): device for path in paths if (device := load_device(str(path))).published}


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the files; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stanza_sim.simulate.fit", description=__doc__)
    parser.add_argument("--record", action="store_true", help="record the work of the measured models afresh")
    rows = read_rows()
    if parser.parse_args(arguments).record:
        known = {row.key: source_of(row.model, row.factory, row.image) for row in rows if row.factory}
        write_works({key: recorded(source) for key, source in known.items()}, WORKS)
    devices = shipped_devices()
    fitted = fit_all(rows, list(devices.values()))
    for path, device in devices.items():
        with open(path, encoding="utf-8") as file:
            text = refit(file.read(), device, fitted)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
