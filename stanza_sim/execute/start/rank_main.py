"""The process of one local rank: `python -m stanza_sim.execute.start.rank_main`, started by `launch.Pool`.

Reads tasks from an inherited connection and answers each; ends with its parent, whatever becomes of it.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import cast

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.base.processes import end_with_parent
from stanza_sim.execute.rank.job import Score
from stanza_sim.execute.start.protocol import Answer, AnswerKind, Settings, Task

BEAT_S = 0.5


LINGER_S = 2.0
"""Others find out within a second too that nothing moves. Till then connections stay, lest that be all they can say."""


def serve(connection: Connection, settings: Settings) -> None:
    """Join the world and carry out tasks until the connection closes. Any failure is answered and ends the process."""
    lock = threading.Lock()

    def answer(kind: AnswerKind, value: object) -> None:
        with lock:
            connection.send_bytes(pickle.dumps(Answer(kind=kind, value=value)))

    def beat(ended: int = 0, score: Score | None = None) -> None:
        answer(AnswerKind.MOVING, ended) if score is None else answer(AnswerKind.SCORED, score)

    def live() -> None:
        try:
            while True:
                answer(AnswerKind.ALIVE, None)
                time.sleep(BEAT_S)
        except OSError:
            return

    threading.Thread(target=live, daemon=True, name="alive").start()
    try:
        from stanza_sim.execute.start.world import join  # torch is imported here

        context = join(
            rank=settings.rank,
            world_size=settings.world_size,
            local_rank=settings.local_rank,
            local_size=settings.local_size,
            threads=settings.threads,
            kind=settings.kind,
            init_method=settings.init_method,
            host=settings.host,
            backend=settings.backend,
            seats=settings.seats,
        )
        gc.freeze()  # all that torch has made stays: the collector need not look at it again
        answer(AnswerKind.READY, None)
        while True:
            try:
                task = cast(Task[object], pickle.loads(connection.recv_bytes()))
            except EOFError:
                return
            answer(AnswerKind.DONE, task(context, beat))
    except InputError as error:
        answer(AnswerKind.BAD_INPUT, error)
    except RunError as error:
        answer(AnswerKind.FAILED, str(error))
        time.sleep(LINGER_S)
    except BrokenPipeError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told and this process ends
        traceback.print_exc()
        answer(AnswerKind.FAILED, f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        # Threads may wait for other ranks for ever, in torch, where nothing can interrupt them.
        os._exit(0)


def main() -> None:
    """Take settings and connection from the parent."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its ranks
    connection = Connection(fd)
    serve(connection, cast(Settings, pickle.loads(connection.recv_bytes())))


if __name__ == "__main__":
    main()
