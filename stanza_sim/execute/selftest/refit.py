"""The check that makes rows for the device file of the profiles, and fits how fast CONV and FC blocks compute."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from statistics import median

import numpy as np

from stanza_sim.base.files import read_json, write_whole
from stanza_sim.execute.selftest.outcome import Here, Skipped
from stanza_sim.model.zoo import get
from stanza_sim.profiles.blocks import Profile, read_profile

COLUMNS = ("gpu", "framework", "precision", "model", "factory", "batch", "image", "samples_per_s", "address")
"""Those of `stanza_sim/data/single_timings.csv`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Time of a block forward and backward = `launch_s` + FLOPs / `flops`, of `blocks` timings.

    The errors' squares are least relative to the times. `off` is the median of the relative errors.
    """

    part: str
    precision: str
    blocks: int
    launch_s: float
    flops: float
    off: float


def refit(here: Here) -> None:
    """Rows of all profiles go to `rows.csv`, the fits to `fit.json`."""
    with here.check("gpu:fit") as said:
        profiles = [read_profile(path) for path in sorted((here.folder / "profiles").glob("*.json"))]
        if not profiles:
            raise Skipped("there are no profiles: gpu:blocks made none")
        known = read_json(here.folder / "machine.json", expected="what the session wrote")
        date = profiles[0].date.partition("T")[0]
        write_whole(rows(profiles, f"stanza-sim selftest, {date}"), here.folder / "rows.csv")
        found = fits(profiles)
        about = known.get("gpu") if isinstance(known, dict) else None
        text = {"device": profiles[0].device, "gpu": about, "fits": [asdict(fit) for fit in found]}
        write_whole(json.dumps(text, indent=1) + "\n", here.folder / "fit.json")
        said.detail = "; ".join(
            f"{f.part} {f.precision} {f.flops / 1e12:.1f} TFLOP/s, off by {100 * f.off:.0f}%" for f in found
        )


def rows(profiles: Iterable[Profile], address: str) -> str:
    """A row for each profile, in the columns of the published timings of single GPUs; updates are in."""
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for profile in profiles:
        model, batch = get(profile.model.name), profile.blocks[0].samples
        image = model.input_shape[-1]
        row = {
            "gpu": profile.device.removeprefix("cuda "),
            "framework": f"PyTorch {profile.versions.get('torch', '')}, eager",
            "precision": profile.precision,
            "model": profile.model.name,
            "factory": "torchvision",
            "batch": batch,
            "image": image,
            "samples_per_s": f"{batch / step_s(profile):.1f}",
            "address": address,
        }
        table.writerow([row[name] for name in COLUMNS])
    return text.getvalue()


def step_s(profile: Profile) -> float:
    """Seconds of a training step: forward, loss, backward and update of all blocks."""
    passes = sum(b.forward_s + b.backward_s + (b.loss_s or 0.0) for b in profile.blocks)
    return passes + get(profile.model.name).nbytes / profile.update_Bps


def fits(profiles: Iterable[Profile]) -> list[Fit]:
    """A fit for each part of models and each precision that has timings enough."""
    timings: Mapping[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for profile in profiles:
        model = get(profile.model.name)
        first_fc = model.boundary
        flops = {b.name: b.forward_flops + b.backward_input_flops + b.backward_weight_flops for b in model.blocks}
        part = {b.name: "FC" if n >= first_fc else "CONV" for n, b in enumerate(model.blocks)}
        for row in profile.blocks:
            if flops[row.block]:
                entry = row.samples * flops[row.block], row.forward_s + row.backward_s
                timings[part[row.block], profile.precision].append(entry)
    return [fit_of(part, precision, found) for (part, precision), found in sorted(timings.items()) if len(found) > 2]


def fit_of(part: str, precision: str, timings: Sequence[tuple[float, float]]) -> Fit:
    """The fit of (FLOPs, seconds). Neither constant is negative: without a positive launch it goes through 0."""
    flops, seconds = np.array([f for f, _ in timings]), np.array([s for _, s in timings])
    both = np.stack([1 / seconds, flops / seconds], axis=1)
    scale = np.abs(both).max(axis=0)
    solved, *_ = np.linalg.lstsq(both / scale, np.ones(len(seconds)), rcond=None)
    launch_s, per_flop = (float(v) for v in solved / scale)
    if launch_s < 0 or per_flop <= 0:
        x = flops / seconds
        launch_s, per_flop = 0.0, float(x.sum() / (x @ x))
    off = [abs((launch_s + per_flop * f) / s - 1) for f, s in timings]
    return Fit(
        part=part,
        precision=precision,
        blocks=len(timings),
        launch_s=launch_s,
        flops=1 / per_flop,
        off=median(off),
    )
