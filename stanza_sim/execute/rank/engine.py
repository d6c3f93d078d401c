"""One rank's run of its program: lanes, posting of messages, receivers, waiters. Knows neither torch nor sizes.

What may start, and which send is posted next, is decided by `schedule.progress.Progress`, as in the simulator. Threads
carry it out: one for each lane and each group of collectives; one for each (source, channel) that receives; one that
waits for sends; and where messages are issued in order, one for each channel. Sends have no thread: whoever brings
about that one may be posted posts it; but a lane goes on to its next unit once it has posted what was ready when it
came, and leaves the rest to the thread that waits for sends. One lock guards the rules; nothing else is done meanwhile.
Where messages are announced (NCCL), one thread for each source posts a receive when its message has been announced.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from stanza_sim.base.errors import RunError
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.inbox import POST, Inbox, Stopped
from stanza_sim.execute.rank.interfaces import AnnouncedTransport, Beat, Handle, TaggedTransport, Transport, Work
from stanza_sim.execute.rank.job import Message
from stanza_sim.execute.rank.tables import Endpoint, RankTables, Worker
from stanza_sim.schedule import Collective, Compute, RankProgram, UnitKind
from stanza_sim.schedule.progress import NOTHING, Instructions, Issue, Key, Progress

Payload = TypeVar("Payload")
_Posted = tuple[int, int, int, float]
"""A message: unit, iteration, the other rank, when it was posted at this end."""
_Received = tuple[_Posted, float]
"""A message and when it had arrived."""
_Issued = tuple[int, tuple[int, ...]]
"""An iteration and the units of one op that are issued together."""


class Engine(Generic[Payload]):
    """Runs `program` for `iterations` iterations. `start` is called in every thread first (device, thread count).
    `tagged` is needed where a channel has credit and messages are issued eagerly, and `announced` in place of both
    where every message is announced.

    After `run`, `spans` has (unit, iteration, start, end) of computations and collectives, `sends` and `receives`
    the messages, `iteration_end_s[i]` the last completion of iteration i at this rank. What is done for each message
    is kept short, in tables and tuples: where one machine carries the messages of many ranks, its cores are the limit.
    """

    def __init__(
        self,
        program: RankProgram,
        iterations: int,
        work: Work[Payload],
        transport: Transport[Payload],
        *,
        tagged: TaggedTransport[Payload] | None = None,
        announced: AnnouncedTransport[Payload] | None = None,
        issue: Issue = Issue.EAGER,
        start: Callable[[], None] = lambda: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.program, self.iterations = program, iterations
        self._work, self._transport, self._tagged_transport, self._start = work, transport, tagged, start
        self._announced, self._prepare = announced, prepare
        tables = self._tables = RankTables.of(program, work.nbytes)
        messages = {unit: len(peers) for unit, peers in tables.peers.items()}
        self._rules = Progress(program, messages, iterations=iterations, issue=issue)
        self._in_order = in_order = issue is Issue.IN_ORDER
        self._inboxes: dict[Worker, Inbox[Key]] = {worker: Inbox() for worker in tables.worker_of.values()}
        self._arrivals = tables.arrivals if announced is None else tables.by_source()
        self._receivers: dict[Endpoint, Inbox[int]] = {e: Inbox() for e in (() if in_order else self._arrivals)}
        self._issuers: dict[str, Inbox[_Issued]] = {c: Inbox() for c in (tables.channels if in_order else ())}
        self._waiters: dict[Endpoint | None, SimpleQueue[tuple[Handle, Key] | None]] = {}
        self._lock, self._posting = threading.Lock(), threading.Lock()
        self._unsent: dict[Key, int] = {}  # messages of each send that are under way
        self._done, self._ready = threading.Event(), threading.Barrier(1)
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
        nbytes = self._tables.nbytes[unit, peer]
        return Message(unit=unit, iteration=iteration, peer=peer, nbytes=nbytes, posted_s=posted_s)

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self, *, timeout_s: float, beat: Beat = lambda ended=0, score=None: None) -> None:
        """Carry out all iterations; raises what a thread raised, and `RunError` if nothing completes for `timeout_s`.

        `beat` is called about twice a second while there is progress, with the iterations that have ended. After an
        error threads may be left that wait for other ranks for ever: the process must end.
        """
        if self._rules.finished:
            return
        threads = self._threads()
        self._ready = threading.Barrier(len(threads) + 1)
        for t in threads:
            t.start()
        with suppress(threading.BrokenBarrierError):  # by a thread that failed; `_watch` then ends
            self._ready.wait()  # what threads need before they compute is there before anything moves
            with self._lock:
                self._dispatch(self._rules.begin(now()))
            self._post()
        self._watch(timeout_s, beat)
        self._stop()
        if self._error is not None:
            raise self._error
        for t in threads:
            t.join()

    def _watch(self, timeout_s: float, beat: Beat) -> None:
        """Return when all is done or a thread has failed; raises `RunError` if nothing completes for `timeout_s`."""
        seen, self.last_progress_s = -1, now()
        while not self._done.wait(0.5):
            with self._lock:
                completed = self._rules.completed
            if completed != seen:
                seen, self.last_progress_s = completed, now()
                beat(sum(end_s > 0 for end_s in self.iteration_end_s))
            elif now() - self.last_progress_s > timeout_s:
                with self._lock:
                    story = self._rules.story()
                raise RunError(f"nothing completed for {timeout_s:g} s; {story}")

    def _threads(self) -> list[threading.Thread]:
        """The threads of this rank, not yet started."""
        tables = self._tables
        threads = [self._thread(self._work_serially, inbox, at=worker) for worker, inbox in self._inboxes.items()]
        if self._in_order:
            return threads + [self._thread(self._issue, *channel) for channel in self._issuers.items()]
        for source, units in self._arrivals.items():
            receive = self._receive_any if tables.transfers[units[0]].credit else self._receive
            threads.append(self._thread(receive if self._announced is None else self._receive_announced, *source))
        rest: list[Endpoint | None] = [None] if tables.sends_any else []
        for endpoint in [*rest, *tables.awaited_from]:
            self._waiters[endpoint] = SimpleQueue()
            threads.append(self._thread(self._wait_for_sends, self._waiters[endpoint]))
        return threads

    def _thread(self, body: Callable[..., None], *args: object, at: object = None) -> threading.Thread:
        def guarded() -> None:
            try:
                self._start()
                if body == self._work_serially:
                    self._prepare()
                self._ready.wait()
                body(*args)
            except (Stopped, threading.BrokenBarrierError):
                pass
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self._error = self._error or error
                self._done.set()
                self._ready.abort()

        name = body.__name__.strip("_")
        return threading.Thread(target=guarded, daemon=True, name=name if at is None else f"{name} {at}")

    def _stop(self) -> None:
        """Let every thread end once it has done what it was told."""
        inboxes: list[Inbox[Any]] = [*self._inboxes.values(), *self._receivers.values(), *self._issuers.values()]
        for inbox in inboxes:
            inbox.put(None)
        for queue in self._waiters.values():
            queue.put(None)

    def _dispatch(self, out: Instructions) -> None:
        """Hand out what is to be done. The lock is held."""
        tables = self._tables
        for key in out.start:
            self._inboxes[tables.worker_of[key[1]]].put(key)
        for iteration, units in out.issue:
            self._issuers[tables.transfers[units[0]].channel].put((iteration, units))
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

    def _landed(self, posted: _Posted) -> None:
        """A message has come."""
        unit, iteration, src, _ = posted
        self._work.landed(self._tables.transfers[unit], iteration, src)
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
                            self._unsent[key] = len(self._tables.peers[key[1]])
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
        tables = self._tables
        op, awaited = tables.transfers[unit], unit in tables.awaited_sends
        for dst in tables.peers[unit]:
            payload = self._work.outgoing(op, iteration, dst)
            self._sends.append((unit, iteration, dst, now()))
            if self._announced is not None:
                handle = self._announced.send_tagged(payload, dst, op)
            elif op.credit:
                handle = self._tagged.send_tagged(payload, dst, op)
            else:
                handle = self._transport.send(payload, dst, op.channel)
            self._waiters[(dst, op.channel) if awaited else None].put((handle, key))

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
        inbox, tables = self._receivers[src, channel], self._tables
        ops = [(unit, tables.transfers[unit]) for unit in tables.arrivals[src, channel]]
        keys = ((i, unit, op) for i in range(self.iterations) for unit, op in ops)
        following = next(keys, None)
        ahead: deque[tuple[Handle, _Posted]] = deque()
        while following is not None or ahead:
            while following is not None and following[0] < self._rules.opened:
                iteration, unit, op = following
                target = self._work.incoming(op, iteration, src)
                posted_s = now()
                ahead.append((self._transport.receive(target, src, channel), (unit, iteration, src, posted_s)))
                following = next(keys, None)
            if not ahead:
                inbox.get()  # an iteration opens
                continue
            handle, posted = ahead.popleft()
            handle.wait()
            self._landed(posted)

    def _receive_any(self, src: int, channel: str) -> None:
        """Receive all messages from `src` on `channel`, a channel with credit, in the order in which they are sent.

        They are posted as far ahead as buffers allow, each under its op's tag, and `src` says which of them is next.
        """
        inbox, transfers = self._receivers[src, channel], self._tables.transfers
        units = {transfers[unit].name: unit for unit in self._tables.arrivals[src, channel]}
        posted: dict[str, deque[tuple[Handle, _Posted]]] = {name: deque() for name in units}
        ahead = 0  # iterations that are posted

        def post(upto: int) -> int:
            for iteration in range(ahead, upto):
                for name, unit in units.items():
                    op = transfers[unit]
                    target = self._work.incoming(op, iteration, src)
                    posted_s = now()
                    handle = self._tagged.receive_tagged(target, src, op)
                    posted[name].append((handle, (unit, iteration, src, posted_s)))
            return max(ahead, upto)

        for _ in range(self.iterations * len(units)):
            ahead = post(self._rules.opened)
            name = self._tagged.next_tag(src, channel)
            while not posted[name]:  # of an iteration that has not been opened when last we looked
                if ahead == self._rules.opened:
                    inbox.get()
                ahead = post(self._rules.opened)
            handle, message = posted[name].popleft()
            handle.wait()
            self._landed(message)

    def _receive_announced(self, src: int, channel: str) -> None:
        """Receive all messages from `src`, of all channels: each is posted once it has been announced, and awaited.

        It waits for its iteration to open at this rank, which no message behind it is needed for.
        """
        inbox, transfers, transport = self._receivers[src, channel], self._tables.transfers, self._announced
        if transport is None:
            raise RuntimeError("messages are not announced")
        units = {transfers[unit].name: unit for unit in self._arrivals[src, channel]}
        seen = dict.fromkeys(units, 0)
        for _ in range(self.iterations * len(units)):
            name = transport.next_announced(src)
            unit, iteration = units[name], seen[name]
            seen[name] += 1
            while iteration >= self._rules.opened:
                inbox.get()
            target = self._work.incoming(transfers[unit], iteration, src)
            posted_s = now()
            transport.receive_tagged(target, src, transfers[unit]).wait()
            self._landed((unit, iteration, src, posted_s))

    def _issue(self, channel: str, inbox: Inbox[_Issued]) -> None:
        """Issue the transfers of `channel` one after the other, each op's sends and receives together."""
        while True:
            iteration, units = inbox.get()
            sends: list[tuple[Payload, int]] = []
            receives: list[tuple[Payload, int]] = []
            posted: list[_Posted] = []
            sent: Key | None = None
            for index in units:
                op = self._tables.transfers[index]
                for p in self._tables.peers[index]:
                    if self.program.units[index].kind is UnitKind.SEND:
                        sent = iteration, index
                        sends.append((self._work.outgoing(op, iteration, p), p))
                        self._sends.append((index, iteration, p, now()))
                    else:
                        receives.append((self._work.incoming(op, iteration, p), p))
                        posted.append((index, iteration, p, now()))
            for handle in self._transport.together(sends, receives, channel):
                handle.wait()
            for message in posted:
                self._landed(message)
            if sent is not None:
                self._complete(sent, now())

    @property
    def _tagged(self) -> TaggedTransport[Payload]:
        if self._tagged_transport is None:
            raise RuntimeError("a channel with credit needs a transport that tags messages")
        return self._tagged_transport
