"""Tasks that go wrong, for the tests of launching; and one that goes right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.context import Context


@dataclass(frozen=True)
class Misbehave:
    rank: int
    how: str

    def __call__(self, context: Context, beat: Callable[[], None]) -> tuple[int, int]:
        beat()
        if context.rank == self.rank:
            match self.how:
                case "exit":
                    os.write(2, b"out of luck\n")
                    os._exit(7)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "sleep":
                    time.sleep(600)
                case "rest":  # while the other ranks get on
                    time.sleep(2)
                case "raise":
                    raise ValueError("seven is not a number")
                case "input":
                    raise InputError("no such data", where="data 'x'", hint="try another")
        elif self.how == "rest":
            for _ in range(10):
                beat()
                time.sleep(0.2)
        return context.rank, os.getpid()
