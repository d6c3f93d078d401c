"""The check that times every block of the shipped models on the GPU, and keeps a profile of each.

Cheapest first, so that what a short budget leaves out is what takes longest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from stanza_sim.base.errors import StanzaError
from stanza_sim.base.precision import Precision
from stanza_sim.execute.calibrate.calibration import time_model
from stanza_sim.execute.selftest.outcome import Here, require, words_of
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.zoo import get, names
from stanza_sim.profiles.blocks import write_profile

BATCHES = (8, 32, 128)
RELATIVE = {Precision.FP32: 1.0, Precision.TF32: 0.5, Precision.BF16: 0.5}
"""About how long a precision takes, as the order needs it: memory holds the faster ones up."""
SPARE_S = 20.0
"""What is kept of the limit, so that the check ends by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A profile: a model at a batch in a precision."""

    model: str
    batch: int
    precision: Precision

    def __str__(self) -> str:
        return f"{self.model}-{self.batch}-{self.precision}"


def cases() -> list[Case]:
    """All, those that compute least first."""
    found = [Case(model=m, batch=b, precision=p) for m in (*names(), "gpt2") for b in BATCHES for p in RELATIVE]
    return sorted(found, key=lambda case: (work(case), str(case)))


def work(case: Case) -> float:
    """FLOPs of a step, times how long the precision takes."""
    blocks = get(case.model).blocks
    flops = sum(b.forward_flops + b.backward_input_flops + b.backward_weight_flops for b in blocks)
    return RELATIVE[case.precision] * case.batch * flops


def blocks(here: Here) -> None:
    """Profiles of shipped models, three batches and three precisions go to `profiles/`; those missing are named."""
    with here.check("gpu:blocks") as said:
        folder = here.folder / "profiles"
        folder.mkdir(exist_ok=True)
        begin_s = time.monotonic()
        made: list[Case] = []
        missing: dict[Case, str] = {}
        with Pool(1, timeout_s=here.limit_s / 2, kind="cuda") as pool:
            for case in cases():
                if time.monotonic() - begin_s > here.limit_s - SPARE_S:
                    missing[case] = "no time was left"
                    continue
                here.note(f"{case}, {len(made)} profiles are made")
                try:
                    model = get(case.model)
                    samples = {b.name: (case.batch,) for b in model.blocks}
                    profile = time_model(pool, model, samples, precision=case.precision)
                    write_profile(profile, folder / f"{case}.json")
                    made.append(case)
                except StanzaError as error:  # such as too little memory
                    missing[case] = words_of(error)
        require(bool(made), f"no profile could be made: {next(iter(missing.values()), 'nothing was tried')}")
        said.detail = summary(made, missing)


def summary(made: list[Case], missing: Mapping[Case, str]) -> str:
    """How many there are, and which are missing for which reason."""
    reasons: dict[str, list[str]] = {}
    for case, why in missing.items():
        reasons.setdefault(why, []).append(str(case))
    lost = [f"; missing ({why[:120]}): {', '.join(them)}" for why, them in reasons.items()]
    return f"{len(made)} of {len(made) + len(missing)} profiles{''.join(lost)}"
