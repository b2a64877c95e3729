"""How a rank or the driver gets labels of a pool: the router says from which replica.

    question ──► router: requests ──► credits ──► replica ──► answers, put back in order
                      ▲                              │ died, or its device or memory failed
                      └──────────────────────────────┘

A request whose replica failed goes to another one, and shares no forward there: where two replicas
fail on it alone, the request is at fault.

The client owns the answers: they don't pass the driver and outlive the teacher. All waiting happens
on an event loop, on a thread of its own.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
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
from raybrew.teachers.router import Request, Router
from raybrew.teachers.router_actor import PoolAddress, remote_router

MAX_REQUESTS = 8
MAX_BYTES = 256 << 20
"""The credit of a client with one replica."""
LOOK_S = 1.0
"""How often the router is asked about a replica that has not answered yet."""


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


async def _all_of(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Wait for all of them; if one fails, end the others first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()  # no effect on those that have ended
        await asyncio.gather(*tasks, return_exceptions=True)


class Credits:
    """What is left of a client's share of a replica.

    Args:
        max_requests: requests under way.
        max_bytes: bytes of the answers that are expected of them; a single request may be larger
            when nothing else is under way.
    """

    def __init__(self, max_requests: int, max_bytes: int):
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests = self.nbytes = 0

    def take(self, nbytes: int) -> bool:
        """Take a request's credit, if it is there."""
        full = self.requests >= self._max_requests
        large = self.requests > 0 and self.nbytes + nbytes > self._max_bytes
        if full or large:
            return False
        self.requests += 1
        self.nbytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Give a request's credit back."""
        self.requests -= 1
        self.nbytes -= nbytes


@dataclass(frozen=True)
class PrecomputeRequest:
    """Labels to compute into the store before a client asks for them.

    Args:
        teacher: whose labels.
        folder: the encoded split that holds the rows, where the replicas can read it.
        view_name: its view that the teacher reads.
        view: that view.
        rows: rows to label, int64 (n,), of different content.
        on_done: called with the number of rows of each request that is done.
    """

    teacher: str
    folder: str
    view_name: str
    view: EncodedView
    rows: np.ndarray
    on_done: Callable[[int], None]


@dataclass(frozen=True)
class _Question:
    """Examples whose labels are wanted of a teacher, and what happened to them so far.

    Args:
        teacher: of whom.
        keys: of the examples, uint64 (n, 2), all different.
        tokens: of each example, (n,).
        rows: their positions in what the caller asked for, int64 (n,).
        send: calls a replica with some of these positions, and whether it must share no forward.
        together: whether they were put together to be one forward.
        deaths: failures of replicas that had it, but for memory too small for a whole batch.
        failures: of devices and memory, with the replica of each.
    """

    teacher: str
    keys: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray
    send: Callable[[ActorHandle, np.ndarray, bool], Any]
    together: bool = False
    deaths: int = 0
    failures: tuple[tuple[int, ReplicaFailure], ...] = ()

    def take(self, rows: np.ndarray) -> "_Question":
        """Return a part of it."""
        return replace(self, keys=self.keys[rows], tokens=self.tokens[rows], rows=self.rows[rows])

    def failed(self, replica: int, failure: ReplicaFailure | None) -> "_Question":
        """Return it after a failure of the replica that had it; None if that died."""
        if failure is None:
            return replace(self, deaths=self.deaths + 1)
        deaths = self.deaths + (failure.smaller is None)
        return replace(self, deaths=deaths, failures=(*self.failures, (replica, failure)))

    @property
    def blamed(self) -> ReplicaFailure | None:
        """The last failure, if it shows that no replica can answer this question."""
        alone = [(replica, each) for replica, each in self.failures if each.blames]
        replicas = {replica for replica, _ in alone}
        too_large = sum(each.fault == "memory" for _, each in alone) > 1
        return alone[-1][1] if too_large or len(replicas) > 1 else None

    def check(self, num_replicas: int) -> None:
        """Raise a `TeacherError` if the question is at fault, or seems to be."""
        if not (self.deaths or self.failures):
            return
        which = f"the first has key {self.keys[0, 0]:016x}{self.keys[0, 1]:016x}"
        if (failure := self.blamed) is not None:
            longest = int(self.tokens.max())
            advice = (
                f"a single example of {longest} tokens needs more memory than a replica has: lower "
                "the task's max_length, take another dtype, or give the replica more"
                if failure.fault == "memory"
                else "expected examples that the model can read: look at the token ids and at its "
                "code"
            )
            raise TeacherError(
                f"teacher {self.teacher!r}: replicas failed {len(self.failures)} times on a "
                f"request of {len(self.keys)} examples, the longest of {longest} tokens, {which}: "
                f"{failure}; {advice}"
            )
        if self.deaths > MAX_FAILURES_OF_REQUEST * num_replicas:
            last = f": {self.failures[-1][1]}" if self.failures else ""
            raise TeacherError(
                f"teacher {self.teacher!r}: {self.deaths} replicas failed one after another with "
                f"the same {len(self.keys)} examples, {which}{last}; they may need more memory "
                "than a replica has: lower batch_tokens"
            )


class PoolClient:
    """Asks a pool; a `TeacherClient`.

    Args:
        address: of the pool.
    """

    def __init__(self, address: PoolAddress):
        self._teachers = address.teachers
        self._router: Router = remote_router(address.router)
        self._thread = EventLoopThread("raybrew-client")
        self._credits: dict[tuple[str, int], Credits] = {}
        self._bytes_per_token: dict[str, float] = {}
        self._returned = asyncio.Condition()

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Future:
        """Start computing labels; see `raybrew.labels.source.TeacherClient`."""
        return self._thread.start(self._ask(teacher, view, signals))

    def fill(self, request: PrecomputeRequest, *, patient: bool) -> Future:
        """Start computing labels into the store; they are one forward if no replica has any.

        Args:
            request: what to compute; its `on_done` isn't called.
            patient: wait for labels that other runs compute; else they are left.

        Returns:
            A future of the rows that were left, int64.
        """
        return self._thread.start(self._fill(request, patient))

    def flush(self) -> None:
        """Have every replica write what it computed; return when it is on disk.

        What a replica had not written when it failed is missing then; who needs it asks again.
        """
        self._thread.start(self._flush()).result()

    def wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the client's event loop, and return its result."""
        return self._thread.start(work).result()

    def close(self) -> None:
        """Give up what is under way."""
        self._thread.close()

    async def _ask(
        self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]
    ) -> dict[str, Payload]:
        # Equal examples are asked for once.
        first, number = distinct_keys(view.keys)
        asked = view.take(first)

        def send(handle: ActorHandle, rows: np.ndarray, alone: bool) -> Any:
            return handle.ask.remote(asked.take(rows), signals, alone)

        question = _Question(teacher, asked.keys, asked.lengths, np.arange(len(first)), send)
        parts = await self._obtain(question)
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))[number]
        return {
            name: Payload.concat([answer.payloads[name] for _, answer in parts]).take(order)
            for name in (signal.name for signal in signals)
        }

    async def _fill(self, request: PrecomputeRequest, patient: bool) -> np.ndarray:
        def send(handle: ActorHandle, rows: np.ndarray, _: bool) -> Any:
            return handle.fill.remote(request.folder, request.view_name, rows, patient)

        keys, tokens = request.view.keys[request.rows], request.view.lengths_of(request.rows)
        question = _Question(request.teacher, keys, tokens, request.rows, send, together=True)
        parts = await self._obtain(question)
        return np.concatenate([rows[answer.left] for rows, answer in parts])

    async def _obtain(self, question: _Question) -> list[tuple[np.ndarray, Answer]]:
        """Return the answers, each with the positions that it is for."""
        teacher = question.teacher
        question.check(len(self._teachers[teacher].replicas) if teacher in self._teachers else 0)
        requests = await self._router.assign(
            teacher,
            question.keys,
            question.tokens,
            most_tokens=None if question.together else self._most_tokens(teacher),
            avoid=tuple({replica for replica, _ in question.failures}),
        )

        async def one(request: Request) -> list[tuple[np.ndarray, Answer]]:
            part = question.take(request.rows)
            try:
                return [(part.rows, await self._request(part, request))]
            except _ReplicaLost as lost:
                return await self._obtain(part.failed(request.replica, lost.failure))

        return [part for parts in await _all_of(map(one, requests)) for part in parts]

    async def _request(self, part: _Question, request: Request) -> Answer:
        """Return a replica's answer.

        Raises:
            _ReplicaLost: the replica failed before it answered.
        """
        teacher, tokens = part.teacher, int(part.tokens.sum())
        nbytes = int(tokens * self._bytes_per_token.get(teacher, 0.0))
        credit = self._credits.setdefault(
            (teacher, request.replica), Credits(MAX_REQUESTS, MAX_BYTES)
        )
        async with self._returned:
            await self._returned.wait_for(lambda: credit.take(nbytes))
        try:
            handle = self._teachers[teacher].replicas[request.replica]
            reference = part.send(handle, part.rows, bool(part.failures))
            answer: Answer = await self._result(teacher, request.replica, request.epoch, reference)
        except RayTaskError as error:
            await self._router.refused(teacher, request)
            raise as_raised(teacher, error) from error
        finally:
            async with self._returned:
                credit.give_back(nbytes)
                self._returned.notify_all()
        sent = sum(payload.nbytes for payload in answer.payloads.values()) / max(1, tokens)
        self._bytes_per_token[teacher] = max(self._bytes_per_token.get(teacher, 0.0), sent)
        await self._router.finished(teacher, request, int(answer.computed.sum()))
        return answer

    async def _result(self, teacher: str, replica: int, epoch: int, reference: Any) -> Any:
        """Return what a call of a replica gives.

        Raises:
            _ReplicaLost: the replica failed before it answered.
            RayTaskError: it answered with an error.
        """

        async def fail(failure: ReplicaFailure | None, error: Exception) -> NoReturn:
            await self._router.failed(teacher, replica, epoch, failure)
            raise _ReplicaLost(failure) from error

        call = asyncio.ensure_future(_awaited(reference))
        try:
            while not (await asyncio.wait({call}, timeout=LOOK_S))[0]:
                # A call to a node that is lost may never return; the router knows sooner.
                epochs = await self._router.epochs(teacher)
                if not epochs or epochs[replica] != epoch:
                    raise _ReplicaLost
            return call.result()
        except RayActorError as error:
            await fail(None, error)
        except OutOfMemoryError as error:
            # Ray ends a process where a node has too little memory.
            await fail(ReplicaFailure("memory", str(error)), error)
        except ObjectLostError as error:
            # The answer was on a node that is lost; the router notices if the replica is, too.
            raise _ReplicaLost from error
        except RayTaskError as error:
            if isinstance(error.cause, ReplicaFailure):
                await fail(error.cause, error)
            raise
        finally:
            call.cancel()

    def _most_tokens(self, teacher: str) -> int:
        # A question is cut into requests that a replica batches and credits can hold.
        by_bytes = MAX_BYTES / 4 / max(self._bytes_per_token.get(teacher, 0.0), 1e-9)
        hosted = self._teachers.get(teacher)
        return int(max(1, min(hosted.batch_tokens if hosted else 1, by_bytes)))

    async def _flush(self) -> None:
        for teacher in self._teachers:
            epochs = await self._router.epochs(teacher)
            await _all_of(self._flush_one(teacher, *each) for each in enumerate(epochs))

    async def _flush_one(self, teacher: str, replica: int, epoch: int) -> None:
        reference = self._teachers[teacher].replicas[replica].flush.remote()
        try:
            await self._result(teacher, replica, epoch, reference)
        except _ReplicaLost:
            return
        except RayTaskError as error:
            raise as_raised(teacher, error) from error


class _ReplicaLost(Exception):
    """A replica failed before it answered; how, if its device or memory did."""

    def __init__(self, failure: ReplicaFailure | None = None):
        super().__init__(failure)
        self.failure = failure


async def _awaited(reference: ray.ObjectRef) -> Any:
    return await reference


def as_raised(teacher: str, error: Exception) -> Exception:
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
