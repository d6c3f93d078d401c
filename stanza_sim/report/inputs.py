"""What the rows of a run were predicted from that no file of the user's says: `inputs.json` in the folder of `-o`.

A network that was calibrated, messages within a host, and the block times of each row, in their order; null where there
are none. `experiment` and `overrides` are what the command was told to run. `run --from` reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stanza_sim.base.config import Source, validate
from stanza_sim.base.files import read_json
from stanza_sim.profiles.blocks import LoopbackTimes, Profile
from stanza_sim.profiles.network import NetworkProfile


class RunInputs(BaseModel):
    """The inputs of a run; `profiles` has one entry for each row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["stanza_sim inputs"] = "stanza_sim inputs"
    experiment: str | None = None
    overrides: tuple[str, ...] = ()
    network: NetworkProfile | None = None
    loopback: LoopbackTimes | None = None
    profiles: tuple[Profile | None, ...] = ()


def inputs_json(inputs: RunInputs) -> str:
    """The inputs as one JSON object."""
    return json.dumps(inputs.model_dump(mode="json"), allow_nan=False) + "\n"


def read_inputs(path: Path) -> RunInputs:
    """What `inputs_json` wrote. Raises `InputError`."""
    return validate(read_json(path, expected="the inputs of a run"), RunInputs, Source(file=str(path), lines={}))
