"""One rank's run of its program: lanes, posting of messages, receivers, waiters. Knows neither torch nor sizes.

What may start, and which send is posted next, is decided by `schedule.progress.Progress`, as in the simulator. Threads
carry it out: one for each lane and each group of collectives; one for each (source, channel) that receives; one that
waits for sends; and where messages are issued in order, one for each channel. Sends have no thread: whoever brings
about that one may be posted posts it; but a lane goes on to its next unit once it has posted what was ready when it
came, and leaves the rest to the thread that waits for sends. One lock guards the rules; nothing else is done meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from stanza_sim.base.errors import RunError
from stanza_sim.execute.rank.job import Message
from stanza_sim.schedule import Collective, Compute, RankProgram, Transfer, UnitKind
from stanza_sim.schedule.progress import NOTHING, Instructions, Issue, Key, Progress

Payload = TypeVar("Payload")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
Told = TypeVar("Told")
now = time.perf_counter
"""The clock of every time in this package: monotonic, and one clock for all processes of a Linux host."""


class Handle(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Return when it has been sent, or received."""
        ...


class Mover(Protocol[In]):
    """Moves payloads between ranks."""

    def send(self, tensor: In, dst: int, channel: str) -> Handle:
        """Post a message to `dst`."""
        ...

    def receive(self, tensor: In, src: int, channel: str) -> Handle:
        """Post the receipt of a message from `src`."""
        ...

    def together(
        self, sends: Sequence[tuple[In, int]], receives: Sequence[tuple[In, int]], channel: str
    ) -> list[Handle]:
        """Post several messages as one group."""
        ...


class NamingMover(Protocol[In]):
    """Moves the messages of channels with credit, whose order is known to the sender only."""

    def send_named(self, tensor: In, dst: int, op: Transfer) -> Handle:
        """Post the message of `op` to `dst`, and before it one that says which it is."""
        ...

    def receive_named(self, tensor: In, src: int, op: Transfer) -> Handle:
        """Post the receipt of the message of `op` from `src`, which may be sent before or after others."""
        ...

    def next_name(self, src: int, channel: str) -> str:
        """Wait until `src` says which op's message it sends next on `channel`, and return the op's name."""
        ...


class Work(Protocol[Out]):
    """What a rank's units do."""

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Carry out a computation that could start at `ready_s`; when it began and when it ended."""
        ...

    def collective(self, op: Collective, iteration: int) -> None:
        """Carry out a collective."""
        ...

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Out:
        """What is sent to `dst`."""
        ...

    def incoming(self, op: Transfer, iteration: int, src: int) -> Out:
        """Where the message from `src` goes."""
        ...

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """Size of a message; one of 0 bytes is not sent at all."""
        ...


_Posted = tuple[int, int, int, float]
"""A message: unit, iteration, the other rank, when it was posted at this end."""
_Received = tuple[_Posted, float]
"""A message and when it had arrived."""


class _Nothing:
    """The handle of no message."""

    def wait(self) -> None:
        """Return."""


POST: tuple[Handle, Key] = (_Nothing(), (0, -1))
"""In place of a message that was posted: there are others to post."""


class _Stopped(Exception):
    """The run was given up: leave the thread."""


class Inbox(Generic[Told]):
    """What a thread is told, in order. `None` ends the thread."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Told | None] = SimpleQueue()

    def put(self, told: Told | None) -> None:
        """Tell the thread."""
        self._queue.put(told)

    def get(self) -> Told:
        """Wait for what comes next; raises `_Stopped`."""
        told = self._queue.get()
        if told is None:
            raise _Stopped
        return told


class Engine(Generic[Payload]):
    """Runs `program` for `iterations` iterations. `start` is called in every thread first (device, thread count).
    `naming` is needed where a channel has credit and messages are issued eagerly.

    After `run`, `spans` has (unit, iteration, start, end) of computations and collectives, `sends` and `receives`
    the messages, `iteration_end_s[i]` the last completion of iteration i at this rank. What is done for each message
    is kept short, in tables and tuples: where one machine carries the messages of many ranks, its cores are the limit.
    """

    def __init__(
        self,
        program: RankProgram,
        iterations: int,
        work: Work[Payload],
        mover: Mover[Payload],
        *,
        naming: NamingMover[Payload] | None = None,
        issue: Issue = Issue.EAGER,
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self.program, self.iterations = program, iterations
        self._work, self._mover, self._start = work, mover, start
        self._naming_mover = naming
        self._in_order = issue is Issue.IN_ORDER
        units, rank = program.units, program.rank
        self._peers: dict[int, list[int]] = {}
        self._nbytes: dict[tuple[int, int], int] = {}  # (unit, peer) -> bytes of their message
        self._transfers = {u.index: u.op for u in units if isinstance(u.op, Transfer)}
        self._sources: dict[tuple[int, str], list[int]] = {}  # (source, channel) -> units
        self._receivers: dict[tuple[int, str], Inbox[int]] = {}  # the same -> iterations that opened
        self._inbox_of: dict[int, Inbox[Key]] = {}  # of computations and collectives
        inboxes: dict[object, Inbox[Key]] = {}  # of each lane and group
        self._issuers: dict[str, Inbox[tuple[int, tuple[int, ...]]]] = {}  # of each channel that is issued in order
        pairs: dict[int, list[tuple[int, str]]] = {}  # unit -> (destination, channel) of what it sends
        for u in units:
            op = u.op
            if not isinstance(op, Transfer):
                name = op.lane if isinstance(op, Compute) else u.peers
                self._inbox_of[u.index] = inboxes.setdefault(name, Inbox())
                continue
            out = u.kind is UnitKind.SEND
            sizes = {p: work.nbytes(op, *((rank, p) if out else (p, rank))) for p in u.peers}
            peers = self._peers[u.index] = [p for p in u.peers if sizes[p]]
            self._nbytes |= {(u.index, p): sizes[p] for p in peers}
            if out:
                pairs[u.index] = [(p, op.channel) for p in peers]
            for p in () if out else peers:
                self._sources.setdefault((p, op.channel), []).append(u.index)
                self._receivers.setdefault((p, op.channel), Inbox())
            if peers and self._in_order:
                self._issuers.setdefault(op.channel, Inbox())
        self._inboxes = list(inboxes.values())
        self._rules = Progress(program, {i: len(p) for i, p in self._peers.items()}, iterations=iterations, issue=issue)
        needed = {j for u in units for j in (*u.needs, *u.needs_previous)}
        self._awaited_sends = {
            u.index for u in units if u.kind is UnitKind.SEND and (u.index in needed or self._transfers[u.index].credit)
        }
        self._waited_for = {pair for index in self._awaited_sends for pair in pairs[index]}
        self._sends_any = any(pairs.values())
        self._lock, self._posting = threading.Lock(), threading.Lock()
        self._unsent: dict[Key, int] = {}
        self._waiters: dict[tuple[int, str] | None, SimpleQueue[tuple[Handle, Key] | None]] = {}
        self._done = threading.Event()
        self._error: BaseException | None = None
        self.last_progress_s = now()
        self.spans: list[tuple[int, int, float, float]] = []
        self._sends: list[_Posted] = []
        self._receives: list[_Received] = []
        self.iteration_end_s = [0.0] * iterations

    @property
    def sends(self) -> list[Message]:
        """Messages sent, in the order in which they were posted."""
        return [self._message(sent) for sent in self._sends]

    @property
    def receives(self) -> list[Message]:
        """Messages received, in the order in which they arrived."""
        return [replace(self._message(posted), arrived_s=arrived_s) for posted, arrived_s in self._receives]

    def _message(self, posted: _Posted) -> Message:
        unit, iteration, peer, posted_s = posted
        nbytes = self._nbytes[unit, peer]
        return Message(unit=unit, iteration=iteration, peer=peer, nbytes=nbytes, posted_s=posted_s)

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self, *, timeout_s: float, beat: Callable[[], None] = lambda: None) -> None:
        """Carry out all iterations; raises what a thread raised, and `RunError` if nothing completes for `timeout_s`.

        `beat` is called about twice a second while there is progress. After an error threads may be left that
        wait for other ranks for ever: the process must end.
        """
        if self._rules.finished:
            return
        threads = [self._thread(self._work_serially, inbox) for inbox in self._inboxes]
        if self._in_order:
            threads += [self._thread(self._issue, *channel) for channel in self._issuers.items()]
        else:
            for source, indices in self._sources.items():
                any_order = self._transfers[indices[0]].credit > 0
                threads.append(self._thread(self._receive_any if any_order else self._receive, *source))
            waiters: list[tuple[int, str] | None] = [None] if self._sends_any else []
            for pair in [*waiters, *self._waited_for]:
                self._waiters[pair] = SimpleQueue()
                threads.append(self._thread(self._wait_for_sends, self._waiters[pair]))
        with self._lock:
            self._dispatch(self._rules.begin(now()))
        for t in threads:
            t.start()
        self._post()
        seen, self.last_progress_s = -1, now()
        while not self._done.wait(0.5):
            with self._lock:
                completed = self._rules.completed
            if completed != seen:
                seen, self.last_progress_s = completed, now()
                beat()
            elif now() - self.last_progress_s > timeout_s:
                with self._lock:
                    story = self._rules.story()
                raise RunError(f"nothing completed for {timeout_s:g} s; {story}")
        self._stop()
        if self._error is not None:
            raise self._error
        for t in threads:
            t.join()

    def _thread(self, body: Callable[..., None], *args: object) -> threading.Thread:
        def guarded() -> None:
            try:
                self._start()
                body(*args)
            except _Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self._error = self._error or error
                self._done.set()

        return threading.Thread(target=guarded, daemon=True, name=body.__name__.strip("_"))

    def _stop(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for receiver in self._receivers.values():
            receiver.put(None)
        for issuer in self._issuers.values():
            issuer.put(None)
        for queue in self._waiters.values():
            queue.put(None)

    def _dispatch(self, out: Instructions) -> None:
        """Hand out what is to be done. The lock is held."""
        for key in out.start:
            self._inbox_of[key[1]].put(key)
        for iteration, units in out.issue:
            self._issuers[self._transfers[units[0]].channel].put((iteration, units))
        for i in out.opened:
            for receiver in self._receivers.values():
                receiver.put(i)
        for i in out.ended:
            self.iteration_end_s[i] = now()
            if self._rules.finished:
                self._done.set()

    def _complete(self, key: Key, at_s: float) -> None:
        with self._lock:
            self._dispatch(self._rules.complete(key, at_s))
            most = len(self._rules)
        self._post(most)

    def _arrived(self, posted: _Posted) -> None:
        at_s = now()
        self._receives.append((posted, at_s))
        with self._lock:
            out = self._rules.arrived((posted[1], posted[0]), at_s)
            if out is NOTHING:
                return
            self._dispatch(out)
        self._post()

    # ---- threads -------------------------------------------------------------------------------------------------

    def _work_serially(self, inbox: Inbox[Key]) -> None:
        """Carry out the units of one lane or group, in the order in which they are told."""
        while True:
            key = inbox.get()
            iteration, unit = key[0], self.program.units[key[1]]
            begin = end = now()
            if isinstance(unit.op, Compute):
                begin, end = self._work.compute(unit.op, iteration, self._rules.met_s(key))
            elif isinstance(unit.op, Collective):
                self._work.collective(unit.op, iteration)
                end = now()
            self.spans.append((unit.index, iteration, begin, end))
            self._complete(key, end)

    def _post(self, most: int | None = None) -> None:
        """Post what may be posted. If another thread is posting, it will see to it.

        A thread that has computations to do posts `most` messages; what has become ready meanwhile is left to another.
        """
        posted = 0
        while self._rules and self._posting.acquire(blocking=False):
            try:
                while most is None or posted < most:
                    with self._lock:
                        key = self._rules.next_post()
                        if key is not None:
                            self._unsent[key] = len(self._peers[key[1]])
                    if key is None:
                        break
                    self._send(key)
                    posted += 1
            finally:
                self._posting.release()
            if most is not None and posted >= most:
                if self._rules:
                    self._waiters[None].put(POST)
                return

    def _send(self, key: Key) -> None:
        """Post all messages of a send."""
        iteration, unit = key
        op = self._transfers[unit]
        for dst in self._peers[unit]:
            payload = self._work.outgoing(op, iteration, dst)
            self._sends.append((unit, iteration, dst, now()))
            if op.credit:
                handle = self._naming.send_named(payload, dst, op)
            else:
                handle = self._mover.send(payload, dst, op.channel)
            self._waiters[(dst, op.channel) if unit in self._awaited_sends else None].put((handle, key))

    def _wait_for_sends(self, queue: SimpleQueue[tuple[Handle, Key] | None]) -> None:
        """Wait for sends; of those known for the one posted last first, so that few others are left to wake up for.

        One thread waits for all sends on which nothing depends; they only delay the reuse of buffers. A send
        that something depends on is waited for by the thread of its own (destination, channel), in their order.
        """
        in_order = queue is not self._waiters[None]
        known: deque[tuple[Handle, Key]] = deque()
        while True:
            while not known or not queue.empty():
                item = queue.get()
                if item is None:
                    return
                if item is POST:
                    self._post()
                else:
                    known.append(item)
            handle, key = known.popleft() if in_order else known.pop()
            handle.wait()
            with self._lock:
                self._unsent[key] -= 1
                last = not self._unsent[key]
                if last:
                    del self._unsent[key]
                    self._dispatch(self._rules.complete(key, now()))
            if last:
                self._post()

    def _receive(self, src: int, channel: str) -> None:
        """Receive all messages from `src` on `channel`, posted as far ahead as buffers allow."""
        inbox, ops = self._receivers[src, channel], [(i, self._transfers[i]) for i in self._sources[src, channel]]
        keys = ((i, unit, op) for i in range(self.iterations) for unit, op in ops)
        following = next(keys, None)
        ahead: deque[tuple[Handle, _Posted]] = deque()
        while following is not None or ahead:
            while following is not None and following[0] < self._rules.opened:
                iteration, unit, op = following
                target = self._work.incoming(op, iteration, src)
                posted_s = now()
                ahead.append((self._mover.receive(target, src, channel), (unit, iteration, src, posted_s)))
                following = next(keys, None)
            if not ahead:
                inbox.get()  # an iteration opens
                continue
            handle, posted = ahead.popleft()
            handle.wait()
            self._arrived(posted)

    def _receive_any(self, src: int, channel: str) -> None:
        """Receive all messages from `src` on `channel`, a channel with credit, in the order in which they are sent.

        They are posted as far ahead as buffers allow, each under its op's name, and `src` says which of them is next.
        """
        inbox = self._receivers[src, channel]
        units = {self._transfers[i].name: i for i in self._sources[src, channel]}
        posted: dict[str, deque[tuple[Handle, _Posted]]] = {name: deque() for name in units}
        ahead = 0  # iterations that are posted

        def post(upto: int) -> int:
            for iteration in range(ahead, upto):
                for name, unit in units.items():
                    op = self._transfers[unit]
                    target = self._work.incoming(op, iteration, src)
                    posted_s = now()
                    handle = self._naming.receive_named(target, src, op)
                    posted[name].append((handle, (unit, iteration, src, posted_s)))
            return max(ahead, upto)

        for _ in range(self.iterations * len(units)):
            ahead = post(self._rules.opened)
            name = self._naming.next_name(src, channel)
            while not posted[name]:  # of an iteration that has not been opened when last we looked
                if ahead == self._rules.opened:
                    inbox.get()
                ahead = post(self._rules.opened)
            handle, message = posted[name].popleft()
            handle.wait()
            self._arrived(message)

    def _issue(self, channel: str, inbox: Inbox[tuple[int, tuple[int, ...]]]) -> None:
        """Issue the transfers of `channel` one after the other, each op's sends and receives together."""
        while True:
            iteration, units = inbox.get()
            sends: list[tuple[Payload, int]] = []
            receives: list[tuple[Payload, int]] = []
            posted: list[_Posted] = []
            sent: Key | None = None
            for index in units:
                op = self._transfers[index]
                for p in self._peers[index]:
                    if self.program.units[index].kind is UnitKind.SEND:
                        sent = iteration, index
                        sends.append((self._work.outgoing(op, iteration, p), p))
                        self._sends.append((index, iteration, p, now()))
                    else:
                        receives.append((self._work.incoming(op, iteration, p), p))
                        posted.append((index, iteration, p, now()))
            for handle in self._mover.together(sends, receives, channel):
                handle.wait()
            for message in posted:
                self._arrived(message)
            if sent is not None:
                self._complete(sent, now())

    @property
    def _naming(self) -> NamingMover[Payload]:
        if self._naming_mover is None:
            raise RuntimeError("channels with credit need what names messages")
        return self._naming_mover
