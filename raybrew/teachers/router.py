"""Which replica of a teacher answers which key: decisions without Ray, clock or threads.

    keys ──► a replica has them, or computes them ──► that replica
         └─► new ──► whole forwards, or keys of the same home
                       └─► the home replica, unless another has much less to do ──► remembered

A key is remembered from the moment that it is handed out until its label is on disk, where every
client finds it. So a label that several clients want at once costs one forward, however their
requests are spread. The keys of a replica that fails are forgotten, and computed again when a
client asks for them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from raybrew.teachers.failure import ReplicaFailure


@dataclass(frozen=True)
class Request:
    """A part of a client's question, for one replica.

    Args:
        number: of the request.
        replica: which replica answers it.
        epoch: the replica's epoch, which rises with each of its failures.
        rows: positions in the question, int64 (n,).
    """

    number: int
    replica: int
    epoch: int
    rows: np.ndarray


class Router(Protocol):
    """What a client asks before and after it calls a replica."""

    async def assign(
        self,
        teacher: str,
        keys: np.ndarray,
        tokens: np.ndarray,
        *,
        most_tokens: int | None,
        avoid: Sequence[int] = (),
    ) -> list[Request]:
        """Split a question into requests, when there is a replica; see `RoutingTable.assign`."""
        ...

    async def finished(self, teacher: str, request: Request, computed: int) -> None:
        """Note an answer, and how many of its rows cost a forward."""
        ...

    async def refused(self, teacher: str, request: Request) -> None:
        """Note that a request ended in an error."""
        ...

    async def failed(
        self, teacher: str, replica: int, epoch: int, failure: ReplicaFailure | None
    ) -> None:
        """Note that a replica failed in this epoch; None if its process died."""
        ...

    async def epochs(self, teacher: str) -> list[int]:
        """Return the epoch of each replica; none if the teacher has left.

        An answer can only come while its replica is in the epoch of the request.
        """
        ...


def home_of(keys: np.ndarray, num_replicas: int) -> np.ndarray:
    """Return the home replica, int64 (n,), of each key, uint64 (n, 2)."""
    return (keys[:, 1] % np.uint64(num_replicas)).astype(np.int64)


@dataclass
class _Assigned:
    keys: list[int]
    tokens: int
    since_s: float
    finished_s: float | None = None


@dataclass
class _Replica:
    up: bool = True
    epoch: int = 0
    queued_tokens: int = 0
    # By number: requests whose answers are awaited, or perhaps not on disk.
    requests: dict[int, _Assigned] = field(default_factory=dict)

    def finish(self, number: int, now_s: float) -> None:
        request = self.requests.get(number)
        if request is not None and request.finished_s is None:
            request.finished_s = now_s
            self.queued_tokens -= request.tokens


class RoutingTable:
    """Hands the keys of one teacher to its replicas. Times are seconds of any one clock.

    Args:
        num_replicas: how many there are.
        slack_tokens: a new key leaves its home when the home has so many queued tokens more than
            the replica with the fewest.
        least_tokens: new keys of neighbouring homes go together until they have so many tokens.
            With many replicas a question would fall into as many requests of a few examples, and
            the router's one thread would be the first bottleneck.
        first_number: of its requests, higher than those of a table before it, some of which may
            still be under way.

    Attributes:
        retried: examples that a replica had when it failed, so that their clients ask again.
        failures: of replicas.
    """

    def __init__(
        self, num_replicas: int, slack_tokens: int, least_tokens: int = 0, first_number: int = 0
    ):
        self._replicas = [_Replica() for _ in range(num_replicas)]
        self._slack, self._least = slack_tokens, least_tokens
        self._holder: dict[int, int] = {}
        self._last_number = first_number
        self.retried = self.failures = 0

    def assign(
        self,
        keys: np.ndarray,
        tokens: np.ndarray,
        *,
        most_tokens: int | None,
        avoid: Sequence[int] = (),
        now_s: float = 0.0,
    ) -> list[Request] | None:
        """Split a question into requests.

        Args:
            keys: uint64 (n, 2), all different.
            tokens: length of each example, (n,).
            most_tokens: new keys are handed out in parts of at most so many tokens; None if they
                are one part, as they were put together to be one forward.
            avoid: replicas that get new keys only where no other one is up.
            now_s: the time.

        Returns:
            Requests that hold each row once; None if no replica is up.
        """
        if not any(replica.up for replica in self._replicas):
            return None
        names = keys[:, 1].tolist()
        holder = np.array([self._holder.get(name, -1) for name in names], np.int64)
        parts = [(int(n), np.flatnonzero(holder == n)) for n in np.unique(holder[holder >= 0])]
        new = np.flatnonzero(holder < 0)
        home = home_of(keys, len(self._replicas))
        if most_tokens is None:
            wholes = [(int(home[new[0]]), new)] if len(new) else []
        elif tokens[new].sum() >= most_tokens:
            wholes = self._full_forwards(new, home, tokens, most_tokens)
        else:
            wholes = self._by_home(new, home, tokens)

        def hand_out(number: int, rows: np.ndarray) -> Request:
            return self._hand_out(number, rows, names, tokens, now_s)

        requests = [hand_out(number, rows) for number, rows in parts]
        # One after another: what is handed out changes which replica has the fewest tokens.
        return requests + [hand_out(self._choose(number, avoid), rows) for number, rows in wholes]

    def finished(self, replica: int, number: int, now_s: float = 0.0) -> None:
        """Note that a client has the answer to a request; one of another table is ignored."""
        self._replicas[replica].finish(number, now_s)

    def refused(self, replica: int, number: int) -> None:
        """Note that a request was answered with an error; no replica has its labels."""
        self.finished(replica, number)
        if (request := self._replicas[replica].requests.pop(number, None)) is not None:
            self._forget(request)

    def abandoned(self, replica: int, before_s: float, now_s: float) -> None:
        """Note that no client waits for what an idle replica was handed before a time.

        Its client died, say. The labels may have been computed, so the keys stay where they are.
        """
        state = self._replicas[replica]
        for number, request in state.requests.items():
            if request.since_s < before_s:
                state.finish(number, now_s)

    def written(self, replica: int, before_s: float) -> None:
        """Note that the labels of all answers that were finished before a time are on disk."""
        requests = self._replicas[replica].requests
        for number, request in list(requests.items()):
            if request.finished_s is not None and request.finished_s < before_s:
                self._forget(requests.pop(number))

    def failed(self, replica: int, epoch: int) -> bool:
        """Note that a replica lost all labels that were not on disk.

        Args:
            replica: which.
            epoch: in which it failed.

        Returns:
            Whether this is news: not for an earlier epoch, nor for a replica that is down.
        """
        state = self._replicas[replica]
        if epoch != state.epoch or not state.up:
            return False
        for request in state.requests.values():
            self._forget(request)
            self.retried += len(request.keys) if request.finished_s is None else 0
        self._replicas[replica] = _Replica(up=False, epoch=epoch + 1)
        self.failures += 1
        return True

    def recovered(self, replica: int) -> None:
        """Note that a replica answers again."""
        self._replicas[replica].up = True

    def is_up(self, replica: int) -> bool:
        """Return whether a replica takes requests."""
        return self._replicas[replica].up

    def epoch(self, replica: int) -> int:
        """Return the epoch of a replica."""
        return self._replicas[replica].epoch

    def is_idle(self) -> bool:
        """Return whether every request was answered."""
        requests = [r for replica in self._replicas for r in replica.requests.values()]
        return all(request.finished_s is not None for request in requests)

    def queued_tokens(self, replica: int) -> int:
        """Return the tokens that a replica was handed and has not answered."""
        return self._replicas[replica].queued_tokens

    def _full_forwards(
        self, new: np.ndarray, home: np.ndarray, tokens: np.ndarray, most_tokens: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield homes and parts that fill a forward each, but for the last: neighbouring homes.

        Cut by the home of each key they would fill none, and every replica's last forward would
        be half empty.
        """
        # Cut where the running sum enters the next multiple; a part is at most one row beyond it.
        part = (np.cumsum(tokens[new]) - tokens[new]) // max(1, most_tokens)
        first = int(home[new[0]])
        for number, rows in enumerate(np.split(new, np.flatnonzero(np.diff(part)) + 1)):
            yield (first + number) % len(self._replicas), rows

    def _by_home(
        self, new: np.ndarray, home: np.ndarray, tokens: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield homes and their new keys, several homes' together where each has few."""
        homes: list[int] = []
        parts: list[np.ndarray] = []
        numbers = np.unique(home[new]).tolist()
        for number in numbers:
            homes.append(number)
            parts.append(new[home[new] == number])
            if (
                number == numbers[-1]
                or sum(int(tokens[part].sum()) for part in parts) >= self._least
            ):
                yield min(homes, key=self.queued_tokens), np.concatenate(parts)
                homes, parts = [], []

    def _choose(self, home: int, avoid: Sequence[int]) -> int:
        up = [number for number, replica in enumerate(self._replicas) if replica.up]
        up = [number for number in up if number not in avoid] or up
        least = min(up, key=self.queued_tokens)
        near = self.queued_tokens(home) <= self.queued_tokens(least) + self._slack
        return home if home in up and near else least

    def _hand_out(
        self, replica: int, rows: np.ndarray, names: list[int], tokens: np.ndarray, now_s: float
    ) -> Request:
        state, number = self._replicas[replica], self._last_number + 1
        request = _Assigned([names[row] for row in rows], int(tokens[rows].sum()), now_s)
        state.requests[number], self._last_number = request, number
        state.queued_tokens += request.tokens
        self._holder.update(dict.fromkeys(request.keys, replica))
        return Request(number, replica, state.epoch, rows)

    def _forget(self, request: _Assigned) -> None:
        for name in request.keys:
            self._holder.pop(name, None)
