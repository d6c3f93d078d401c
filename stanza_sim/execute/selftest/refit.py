"""The check that makes rows for the device file of the profiles, and fits how fast CONV and FC blocks compute."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import combinations

import numpy as np

from stanza_sim.base.files import read_json, write_whole
from stanza_sim.base.units import format_flops
from stanza_sim.execute.selftest.outcome import Here, Skipped
from stanza_sim.model.zoo import get
from stanza_sim.profiles.blocks import Profile, read_profile

COLUMNS = ("gpu", "framework", "precision", "model", "factory", "batch", "image", "samples_per_s", "address")
"""Those of `stanza_sim/data/single_timings.csv`."""

Timing = tuple[float, float, float]
"""FLOPs, bytes of parameters and seconds of a block, forward and backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Time of a block forward and backward = `launch_s` + FLOPs / `flops` + bytes of parameters / `weights_Bps`.

    Fitted to `blocks` timings: the squares of the errors relative to the times are least, and no term is negative. One
    that does not help is left out: 0 seconds, or None. `off` is the median of the relative errors.
    """

    part: str
    precision: str
    blocks: int
    launch_s: float
    flops: float | None
    weights_Bps: float | None
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
            f"{f.part} {f.precision} {'-' if f.flops is None else format_flops(f.flops)}, off by {100 * f.off:.0f}%"
            for f in found
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
    timings: Mapping[tuple[str, str], list[Timing]] = defaultdict(list)
    for profile in profiles:
        model = get(profile.model.name)
        blocks = {b.name: (n >= model.boundary, b) for n, b in enumerate(model.blocks)}
        for row in profile.blocks:
            is_fc, block = blocks[row.block]
            flops = block.forward_flops + block.backward_input_flops + block.backward_weight_flops
            if flops:
                one = row.samples * flops, float(model.itemsize * block.numel), row.forward_s + row.backward_s
                timings["FC" if is_fc else "CONV", profile.precision].append(one)
    return [fit_of(part, precision, found) for (part, precision), found in sorted(timings.items()) if len(found) > 3]


def fit_of(part: str, precision: str, timings: Sequence[Timing]) -> Fit:
    """The fit of (FLOPs, bytes of parameters, seconds): of all choices of terms the best without a negative one."""
    flops, nbytes, seconds = (np.array(column, dtype=float) for column in zip(*timings, strict=True))
    columns = np.stack([1 / seconds, flops / seconds, nbytes / seconds], axis=1)
    scale = np.maximum(np.abs(columns).max(axis=0), np.finfo(float).tiny)
    columns /= scale
    best, error = np.zeros(3), np.inf
    for count in (1, 2, 3):
        for chosen in combinations(range(3), count):
            solved, *_ = np.linalg.lstsq(columns[:, chosen], np.ones(len(seconds)), rcond=None)
            off = float(((columns[:, chosen] @ solved - 1) ** 2).sum())
            if (solved >= 0).all() and off < error:
                best, error = np.zeros(3), off
                best[list(chosen)] = solved
    launch_s, per_flop, per_byte = (float(v) for v in best / scale)
    return Fit(
        part=part,
        precision=precision,
        blocks=len(timings),
        launch_s=launch_s,
        flops=1 / per_flop if per_flop else None,
        weights_Bps=1 / per_byte if per_byte else None,
        off=float(np.median(np.abs(columns @ best - 1))),
    )
