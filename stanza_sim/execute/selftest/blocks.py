"""The check that times every block of the shipped models on the GPU, and keeps a profile of each.

Cheapest first, so that what a short budget leaves out is what takes longest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from stanza_sim.base.errors import StanzaError
from stanza_sim.execute.calibrate.answers import Wanted
from stanza_sim.execute.calibrate.calibration import time_model
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.selftest.optional import optional
from stanza_sim.execute.selftest.outcome import Here, require, words_of
from stanza_sim.execute.start.launch import Pool
from stanza_sim.model.zoo import get, names
from stanza_sim.profiles.blocks import write_profile

BATCHES = (8, 32, 128)
RELATIVE = {"fp32": 1.0, "tf32": 0.5, "bf16": 0.5}
"""About how long a precision takes, as the order needs it: memory holds the faster ones up."""
SPARE_S = 20.0
"""What is kept of the limit, so that the check ends by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A profile: a model at a batch in a precision."""

    model: str
    batch: int
    precision: str

    def __str__(self) -> str:
        return f"{self.model}-{self.batch}-{self.precision}"


def cases() -> list[Case]:
    """All, those that compute least first."""
    found = [Case(model=m, batch=b, precision=p) for m in names() for b in BATCHES for p in RELATIVE]
    return sorted(found, key=lambda case: (work(case), str(case)))


def work(case: Case) -> float:
    """FLOPs of a step, times how long the precision takes."""
    blocks = get(case.model).blocks
    flops = sum(b.forward_flops + b.backward_input_flops + b.backward_weight_flops for b in blocks)
    return RELATIVE[case.precision] * case.batch * flops


@dataclass(frozen=True, slots=True)
class Fp32Task:
    """Let the ranks compute fp32 as `ieee` or `tf32` from now on."""

    precision: str

    def __call__(self, context: Context, beat: Beat) -> None:
        """Sets torch's switches."""
        from stanza_sim.execute.selftest.on_gpu import set_fp32

        set_fp32(self.precision)


def asked() -> Mapping[str, bool]:
    """Precisions that can be timed, and whether the timing sets them by itself."""
    itself = any(f.name == "precision" for f in fields(Wanted))
    return dict.fromkeys(RELATIVE, itself) if itself else {"fp32": False, "tf32": False}


def blocks(here: Here) -> None:
    """Profiles of seven models, three batches and three precisions go to `profiles/`; it is said which are missing."""
    with here.check("gpu:blocks") as said:
        folder = here.folder / "profiles"
        folder.mkdir(exist_ok=True)
        begin_s, known = time.monotonic(), asked()
        made: list[Case] = []
        missing: dict[Case, str] = {}
        with Pool(1, timeout_s=here.limit_s / 2, kind="cuda") as pool:
            for case in cases():
                if case.precision not in known:
                    missing[case] = f"{case.precision} cannot be timed in this version"
                    continue
                if time.monotonic() - begin_s > here.limit_s - SPARE_S:
                    missing[case] = "no time was left"
                    continue
                here.note(f"{case}, {len(made)} profiles are made")
                try:
                    if not known[case.precision]:
                        pool.run(Fp32Task("ieee" if case.precision == "fp32" else "tf32"))
                    model, options = get(case.model), precision_options(case.precision)
                    profile = time_model(pool, model, {b.name: (case.batch,) for b in model.blocks}, **options)
                    write_profile(profile, folder / f"{case}.json")
                    made.append(case)
                except StanzaError as error:  # such as too little memory
                    missing[case] = words_of(error)
        require(bool(made), f"no profile could be made: {next(iter(missing.values()), 'nothing was tried')}")
        said.detail = summary(made, missing)


def precision_options(precision: str) -> dict[str, Any]:
    """How `time_model` is told of a precision."""
    known = optional("stanza_sim.base.precision")
    return {"precision": precision if known is None else known.Precision(precision)}


def summary(made: list[Case], missing: Mapping[Case, str]) -> str:
    """How many there are, and which are missing for which reason."""
    reasons: dict[str, list[str]] = {}
    for case, why in missing.items():
        reasons.setdefault(why, []).append(str(case))
    lost = [f"; missing ({why[:120]}): {', '.join(them)}" for why, them in reasons.items()]
    return f"{len(made)} of {len(made) + len(missing)} profiles{''.join(lost)}"
