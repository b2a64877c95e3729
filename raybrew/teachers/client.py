"""How a rank or the driver gets labels of a pool.

The router says from which replica, the replica gives them.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from raybrew.data.encoding import EncodedView, distinct_keys
from raybrew.data.payload import Payload, Signal
from raybrew.errors import RaybrewError, TeacherError
from raybrew.teachers.failure import MAX_FAILURES_OF_REQUEST, ReplicaFailure
from raybrew.teachers.replica import Answer
from raybrew.teachers.router import Ticket

# Where a pool's actors are.


@dataclass(frozen=True)
class PoolAddress:
    """How to reach a pool; can be sent to any process of the cluster.

    Args:
        desk: the desk's actor.
        replicas: by teacher, the handles of its replicas.
        batch_tokens: by teacher, most tokens of a forward.
    """

    desk: ActorHandle
    replicas: Mapping[str, Sequence[ActorHandle]]
    batch_tokens: Mapping[str, int]


# An event loop on a thread: what waits for many answers at once beside plain, blocking code.


class EventLoopThread:
    """Runs coroutines; its thread starts with the first of them and doesn't keep a process."""

    def __init__(self, name: str):
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, work: Coroutine[Any, Any, Any]) -> Future:
        """Run a coroutine beside the caller.

        Raises:
            CancelledError: it was closed, perhaps by another thread.
        """
        if self._closed:
            work.close()
            raise CancelledError
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name=self._name, daemon=True
            )
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what runs and end the thread; nothing can be started afterwards."""
        self._closed = True
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def all_of(work: Iterable[Any]) -> list[Any]:
    """Wait for all of them; if one fails, end the others first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # Those that are over don't notice.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# How much one asker may have under way with one replica: so many requests, so many bytes.


@dataclass
class Credits:
    """What is left of an asker's share of a replica.

    Args:
        max_requests: requests under way.
        max_bytes: bytes of the answers that are expected of them; a single request may be larger
            when nothing else is under way.
    """

    max_requests: int
    max_bytes: int
    requests: int = 0
    nbytes: int = 0

    def take(self, nbytes: int) -> bool:
        """Take a request's credit, if it is there."""
        full = self.requests >= self.max_requests
        large = self.requests > 0 and self.nbytes + nbytes > self.max_bytes
        if full or large:
            return False
        self.requests += 1
        self.nbytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Give a request's credit back."""
        self.requests -= 1
        self.nbytes -= nbytes


# How an asker (a rank, the driver) gets labels: the desk says from whom, replicas give them.
#
#     question ──► desk: tickets ──► credits ──► replica ──► answers put back in order
#                       ▲                          │ lost, or its device failed
#                       └──────────────────────────┘
#
# What a replica failed with is asked of another one, and shares no forward there: where two of them
# fail on it alone, the request is at fault.
#
# The asker owns the answers: they don't pass the driver and outlive the teacher. All waiting
# happens on an event loop beside the asker's thread.

MAX_REQUESTS = 8
MAX_BYTES = 256 << 20
"""An asker's credit with one replica."""
LOOK_S = 1.0
"""How often the desk is asked after a replica that takes its time."""
DESK_ATTEMPTS = 20

Send = Callable[[ActorHandle, np.ndarray, int, bool], Any]
"""Sends the question about some rows to a replica, with the number of its ticket, and whether it
must share no forward."""


def raised(teacher: str, error: Exception) -> Exception:
    """Return what a failed call is to the caller: ours as it was raised, else a TeacherError."""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, RaybrewError):
            return error.cause
        if isinstance(error.cause, ReplicaFailure):
            return TeacherError(
                f"teacher {teacher!r} can't be loaded: {error.cause}; expected the memory that its "
                "weights need, on a device that works: give its replicas other or larger "
                "resources, or take a smaller dtype"
            )
        return TeacherError(f"teacher {teacher!r} failed: {error.cause!r}")
    return TeacherError(f"teacher {teacher!r}: a replica died and can't be restarted: {error}")


@dataclass(frozen=True)
class _Attempts:
    """What became of a request so far.

    Args:
        losses: of replicas that had it, but for those that memory was too small in for a batch.
        failures: of devices and memory, with the replica of each.
    """

    losses: int = 0
    failures: tuple[tuple[int, ReplicaFailure], ...] = ()

    def after(self, replica: int, failure: ReplicaFailure | None) -> "_Attempts":
        """Return it with a loss of the replica that had it."""
        if failure is None:
            return replace(self, losses=self.losses + 1)
        losses = self.losses + (failure.smaller is None)
        return _Attempts(losses, (*self.failures, (replica, failure)))

    @property
    def blamed(self) -> ReplicaFailure | None:
        """The last failure, if it shows that no replica can answer this request."""
        alone = [(replica, each) for replica, each in self.failures if each.blames]
        replicas = {replica for replica, _ in alone}
        too_large = sum(each.fault == "memory" for _, each in alone) > 1
        return alone[-1][1] if too_large or len(replicas) > 1 else None

    @property
    def again(self) -> bool:
        return self.losses > 0 or bool(self.failures)

    @property
    def avoid(self) -> tuple[int, ...]:
        return tuple({replica for replica, _ in self.failures})


@dataclass(frozen=True)
class _Waiting:
    future: Future

    def result(self) -> dict[str, Payload]:
        return self.future.result()


_FIRST = _Attempts()


class PoolClient:
    """Asks a pool; an `Asker`.

    Args:
        address: of the pool.
    """

    def __init__(self, address: PoolAddress):
        self._address = address
        self._background = EventLoopThread("raybrew-client")
        self._credits: dict[tuple[str, int], Credits] = {}
        self._bytes_per_token: dict[str, float] = {}
        self._returned = asyncio.Condition()

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> _Waiting:
        """Start computing labels; see `raybrew.labels.source.Asker`."""
        return _Waiting(self._background.start(self._ask(teacher, view, signals)))

    def fill(
        self,
        teacher: str,
        folder: str,
        view_name: str,
        view: EncodedView,
        rows: np.ndarray,
        *,
        patient: bool,
    ) -> Future:
        """Start computing labels of rows of an encoded split into the store.

        Args:
            teacher: whose labels.
            folder: the encoded split, where the replicas can read it.
            view_name: its view that the teacher reads.
            view: that view.
            rows: int64 (n,), different contents; they are one forward if nobody has any of them.
            patient: wait for labels that other runs are at; else they are left.

        Returns:
            A future of the rows that were left, int64.
        """

        def send(handle: ActorHandle, part: np.ndarray, ticket: int, _: bool) -> Any:
            return handle.fill.remote(folder, view_name, rows[part], patient, ticket)

        async def work() -> np.ndarray:
            keys, lengths = view.keys[rows], view.lengths_of(rows)
            parts = await self._obtain(teacher, keys, lengths, send, together=True)
            return np.concatenate([rows[part][answer.left] for part, answer in parts])

        return self._background.start(work())

    def flush(self) -> None:
        """Have every replica write what it computed; return when it is on disk.

        What a replica had not written when it was lost is missing then; who needs it asks again.
        """
        self._background.start(self._flush()).result()

    def of_desk(self, call: Callable[[ActorHandle], Any]) -> Any:
        """Return what a call of the desk gives; waits for a desk that has to begin anew."""
        return self._background.start(self._of_desk(call)).result()

    def close(self) -> None:
        """Give up what is under way."""
        self._background.close()

    async def _ask(
        self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]
    ) -> dict[str, Payload]:
        # Equal examples are asked for once.
        first, number = distinct_keys(view.keys)
        asked = view.take(first)

        def send(handle: ActorHandle, part: np.ndarray, ticket: int, alone: bool) -> Any:
            return handle.ask.remote(asked.take(part), signals, ticket, alone)

        parts = await self._obtain(teacher, asked.keys, asked.lengths, send)
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))[number]
        return {
            name: Payload.concat([answer.payloads[name] for _, answer in parts]).take(order)
            for name in (signal.name for signal in signals)
        }

    async def _obtain(
        self,
        teacher: str,
        keys: np.ndarray,
        tokens: np.ndarray,
        send: Send,
        together: bool = False,
        attempts: _Attempts = _FIRST,
    ) -> list[tuple[np.ndarray, Answer]]:
        self._check(teacher, keys, tokens, attempts)
        tickets: list[Ticket] = await self._of_desk(
            lambda desk: desk.assign.remote(
                teacher,
                keys,
                tokens,
                self._most_tokens(teacher),
                together,
                attempts.again,
                attempts.avoid,
            )
        )

        async def one(ticket: Ticket) -> list[tuple[np.ndarray, Answer]]:
            rows, alone = ticket.rows, bool(attempts.failures)
            try:
                total = int(tokens[rows].sum())
                return [(rows, await self._request(teacher, ticket, total, send, alone))]
            except _Lost as lost:
                parts = await self._obtain(
                    teacher,
                    keys[rows],
                    tokens[rows],
                    lambda handle, part, number, alone: send(handle, rows[part], number, alone),
                    together,
                    attempts.after(ticket.replica, lost.failure),
                )
            return [(rows[part], again) for part, again in parts]

        return [part for parts in await all_of(map(one, tickets)) for part in parts]

    def _check(
        self, teacher: str, keys: np.ndarray, tokens: np.ndarray, attempts: _Attempts
    ) -> None:
        """Raise an error if this request is at fault, or seems to be."""
        if not attempts.again:
            return
        which = f"the first has key {keys[0, 0]:016x}{keys[0, 1]:016x}"
        if (failure := attempts.blamed) is not None:
            longest = int(tokens.max())
            advice = (
                f"a single example of {longest} tokens needs more memory than a replica has: lower "
                "the task's max_length, take another dtype, or give the replica more"
                if failure.fault == "memory"
                else "expected examples that the model can read: look at the token ids and at its "
                "code"
            )
            raise TeacherError(
                f"teacher {teacher!r}: replicas failed {len(attempts.failures)} times on a request "
                f"of {len(keys)} examples, the longest of {longest} tokens, {which}: {failure}; "
                f"{advice}"
            )
        if attempts.losses > MAX_FAILURES_OF_REQUEST * len(self._address.replicas.get(teacher, ())):
            said = f": {attempts.failures[-1][1]}" if attempts.failures else ""
            raise TeacherError(
                f"teacher {teacher!r}: {attempts.losses} replicas were lost one after another with "
                f"the same {len(keys)} examples, {which}{said}; they may need more memory than a "
                "replica has: lower batch_tokens"
            )

    async def _request(
        self, teacher: str, ticket: Ticket, tokens: int, send: Send, alone: bool
    ) -> Answer:
        """Return a replica's answer.

        Raises:
            _Lost: the replica was lost before it answered.
        """
        nbytes = int(tokens * self._bytes_per_token.get(teacher, 0.0))
        credit = self._credits.setdefault(
            (teacher, ticket.replica), Credits(MAX_REQUESTS, MAX_BYTES)
        )
        async with self._returned:
            await self._returned.wait_for(lambda: credit.take(nbytes))
        try:
            handle = self._address.replicas[teacher][ticket.replica]
            sent = send(handle, ticket.rows, ticket.number, alone)
            answer = await self._answer(teacher, ticket, sent)
        finally:
            async with self._returned:
                credit.give_back(nbytes)
                self._returned.notify_all()
        self._learn(teacher, answer, tokens)
        told = answer.computed, answer.left
        await self._of_desk(lambda desk: desk.finished.remote(teacher, ticket, *told))
        return answer

    async def _answer(self, teacher: str, ticket: Ticket, reference: ray.ObjectRef) -> Answer:
        life = (teacher, ticket.replica, ticket.epoch)
        try:
            return await self._result(life, reference)
        except RayTaskError as error:
            if isinstance(error.cause, ReplicaFailure):
                await self._fail(life, error.cause)
            await self._of_desk(lambda desk: desk.refused.remote(teacher, ticket))
            raise raised(teacher, error) from error

    async def _result(self, life: tuple[str, int, int], reference: ray.ObjectRef) -> Any:
        call = asyncio.ensure_future(_awaited(reference))
        try:
            while not (await asyncio.wait({call}, timeout=LOOK_S))[0]:
                # A call to a node that is gone may never return; the desk knows sooner.
                if not await self._of_desk(lambda desk: desk.holds.remote(*life)):
                    raise _Lost
            return call.result()
        except RayActorError as error:
            await self._of_desk(lambda desk: desk.lost.remote(*life, "died"))
            raise _Lost from error
        except OutOfMemoryError as error:
            # Ray ends a process where a node has too little memory.
            await self._fail(life, ReplicaFailure("memory", str(error)))
        except ObjectLostError as error:
            # The answer was on a node that is gone; whether the replica was, the desk will see.
            raise _Lost from error
        finally:
            call.cancel()

    async def _fail(self, life: tuple[str, int, int], failure: ReplicaFailure) -> NoReturn:
        await self._of_desk(lambda desk: desk.failed.remote(*life, failure))
        raise _Lost(failure) from failure

    def _most_tokens(self, teacher: str) -> int:
        # A question is cut into requests that a replica batches and credits can hold.
        by_bytes = MAX_BYTES / 4 / max(self._bytes_per_token.get(teacher, 0.0), 1e-9)
        return int(max(1, min(self._address.batch_tokens.get(teacher, 1), by_bytes)))

    def _learn(self, teacher: str, answer: Answer, tokens: int) -> None:
        nbytes = sum(payload.nbytes for payload in answer.payloads.values())
        known = self._bytes_per_token.get(teacher, 0.0)
        self._bytes_per_token[teacher] = max(known, nbytes / max(1, tokens))

    async def _flush(self) -> None:
        for teacher in self._address.replicas:
            mark, epochs = await self._of_desk(lambda desk, t=teacher: desk.lives.remote(t))
            await all_of(
                self._flush_one(teacher, number, epoch, mark) for number, epoch in enumerate(epochs)
            )

    async def _flush_one(self, teacher: str, number: int, epoch: int, mark: int) -> None:
        reference = self._address.replicas[teacher][number].flush.remote()
        try:
            await self._result((teacher, number, epoch), reference)
        except _Lost:
            return
        except RayTaskError as error:
            raise raised(teacher, error) from error
        await self._of_desk(lambda desk: desk.written.remote(teacher, number, epoch, mark))

    async def _of_desk(self, call: Callable[[ActorHandle], Any]) -> Any:
        for attempt in range(DESK_ATTEMPTS):
            try:
                return await call(self._address.desk)
            except RayTaskError as error:
                if isinstance(error.cause, RaybrewError):
                    raise error.cause from None
                raise
            except RayActorError as error:
                if attempt == DESK_ATTEMPTS - 1:
                    raise TeacherError(f"the teachers' desk can't be reached: {error}") from error
                await asyncio.sleep(LOOK_S)


class _Lost(Exception):
    """A replica was lost before it answered, with the failure of its device or memory if known."""

    def __init__(self, failure: ReplicaFailure | None = None):
        super().__init__(failure)
        self.failure = failure


async def _awaited(reference: Any) -> Any:
    return await reference
