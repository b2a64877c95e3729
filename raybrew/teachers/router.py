"""Which replica of a teacher answers which key: decisions without Ray, clock or threads."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# What the router hands out, and what it counts.


@dataclass(frozen=True)
class Ticket:
    """A part of a question, handed to a replica.

    Args:
        number: of the ticket.
        replica: who answers.
        epoch: which life of the replica: it has another one after each loss.
        rows: positions in the question, int64 (n,).
    """

    number: int
    replica: int
    epoch: int
    rows: np.ndarray


@dataclass
class Counters:
    """What became of the questions, in examples.

    Args:
        forwards: computed and reported, by their asker or by the replica itself.
        retried: asked again, because the replica that had them was lost.
        recomputed: of `forwards`, those of labels that had been computed before: their replica was
            lost before they were on disk, or what was on disk is gone.
        losses: replicas lost.
    """

    forwards: int = 0
    retried: int = 0
    recomputed: int = 0
    losses: int = 0


# Which labels of a teacher were computed, each counted once, and once more when computed again.
#
# The word of an answer may be late: its replica was lost, its asker told of it afterwards. It may
# never come: the replica died with its label on disk, before anybody had the answer. Both are told
# apart here by what the answers to other questions say of the same keys.

REMEMBERED = 1 << 18
"""Labels on disk of which is remembered that they were counted, for answers that are told late."""


class Tally:
    """Counts what answers say."""

    def __init__(self):
        self.counts = Counters()
        # Tickets that nobody waits for any longer, whose answer may be told of all the same: their
        # keys, and in how many of them a key is.
        self._late: dict[int, list[int]] = {}
        self._missing: Counter[int] = Counter()
        # Keys that were counted, as long as they are not on disk and some time longer.
        self._counted: set[int] = set()
        self._on_disk: deque[int] = deque()
        # Counted because they were known though nobody had told who computed them: the lost one.
        self._untold: set[int] = set()

    def answered(
        self,
        keys: list[int],
        computed: np.ndarray,
        left: np.ndarray,
        under_way: Callable[[], set[int]],
    ) -> None:
        """Count an answer.

        Args:
            keys: that were asked for, n of them.
            computed: which of them cost a forward, bool (n,).
            left: rows of those that have no label yet, int64; the others were known or computed.
            under_way: gives the keys of all questions that are still to be answered.
        """
        made = {key for key, new in zip(keys, computed.tolist(), strict=True) if new}
        untold = self._made_by_the_lost(set(keys) - made - _of(keys, left), under_way)
        self.counts.forwards += len(made) + len(untold)
        self.counts.recomputed += len(made & self._counted)
        self._untold |= untold
        self._counted |= made | untold

    def given_up(self, number: int, keys: list[int]) -> None:
        """Note that nobody waits for the answer to a ticket any longer."""
        self._late[number] = keys
        self._missing.update(keys)

    def is_late(self, number: int) -> bool:
        """Return whether a ticket was given up, and its answer was not told of yet."""
        return number in self._late

    def answered_late(
        self,
        number: int,
        computed: np.ndarray,
        left: np.ndarray,
        under_way: Callable[[], set[int]],
    ) -> None:
        """Count the answer to a ticket that was given up; the rest as in `answered`."""
        keys = self._late.pop(number)
        self._missing.subtract(keys)
        told = computed & np.array([key in self._untold for key in keys])
        self._untold -= _of(keys, np.flatnonzero(told))
        self.answered(keys, computed & ~told, left, under_way)

    def on_disk(self, keys: list[int]) -> None:
        """Note that labels are where nobody has to compute them again."""
        self._on_disk.extend(keys)
        while len(self._on_disk) > REMEMBERED:
            self._counted.discard(self._on_disk.popleft())

    def _made_by_the_lost(self, known: set[int], under_way: Callable[[], set[int]]) -> set[int]:
        """Return which of these labels nobody computed but a lost replica, whose word is missing.

        Another run's replica may have been before it: then they count in both.
        """
        unsure = {key for key in known if self._missing[key]} - self._counted
        # The answer to a question that is under way may tell who it was.
        return unsure - under_way() if unsure else unsure


def _of(keys: list[int], rows: np.ndarray) -> set[int]:
    return {keys[row] for row in rows.tolist()}


# Which replica of a teacher answers which key: bookkeeping without Ray, clock or threads.
#
#     keys ──► somebody has it, or is at it ──► that replica
#          └─► new ──► whole forwards, or what has the same home
#                        └─► the home replica, unless another has much less to do ──► remembered
#
# A key is remembered from the moment that it is handed out until its label is on disk, where every
# asker finds it. That makes a label asked for twice at once cost one forward, however the requests
# are spread. What a lost replica had is forgotten, and counted when it is computed again.
#
# An answer is told of by its asker and by its replica (see `ledger`), either of which may die
# first: it counts when it is first told, also after its replica was lost (see `tally`).


def home_of(keys: np.ndarray, num_replicas: int) -> np.ndarray:
    """Return the home replica, int64 (n,), of each key, uint64 (n, 2)."""
    return (keys[:, 1] % np.uint64(num_replicas)).astype(np.int64)


@dataclass
class _Open:
    keys: list[int]
    tokens: int


@dataclass
class _Lane:
    up: bool = True
    epoch: int = 0
    queued_tokens: int = 0
    open: dict[int, _Open] = field(default_factory=dict)
    # Answered, but perhaps not on disk: by ticket, a mark at the answer and the keys.
    unwritten: dict[int, tuple[int, list[int]]] = field(default_factory=dict)


class Router:
    """Hands the keys of one teacher to its replicas.

    Args:
        num_replicas: how many there are.
        slack_tokens: a new key leaves its home when the home has so many queued tokens more than
            the replica with the fewest.
        least_tokens: new keys of neighbouring homes go together until they have so many tokens.
            With many replicas a question would fall into as many requests of a few examples, and
            the desk's one thread would be the first to be overrun.
        first_number: of its tickets, higher than those of a router before it, some of which may
            still be under way.
    """

    def __init__(
        self, num_replicas: int, slack_tokens: int, least_tokens: int = 0, first_number: int = 0
    ):
        self._lanes = [_Lane() for _ in range(num_replicas)]
        self._slack, self._least = slack_tokens, least_tokens
        self._holder: dict[int, int] = {}
        self._first_number = self._numbers = first_number
        self._tally = Tally()

    @property
    def counts(self) -> Counters:
        """What became of the questions so far."""
        return self._tally.counts

    def assign(
        self,
        keys: np.ndarray,
        tokens: np.ndarray,
        *,
        most_tokens: int,
        together: bool = False,
        again: bool = False,
        avoid: Sequence[int] = (),
    ) -> list[Ticket] | None:
        """Hand a question out.

        Args:
            keys: uint64 (n, 2), all different.
            tokens: length of each example, (n,).
            most_tokens: new keys are handed out in parts of at most so many tokens.
            together: new keys are one part, as they were put together to be one forward.
            again: the question was handed out before, to a replica that is lost.
            avoid: replicas that get new keys only where no other one is up.

        Returns:
            Tickets that hold each row once; None if no replica is up.
        """
        if not any(lane.up for lane in self._lanes):
            return None
        self.counts.retried += len(keys) if again else 0
        names = keys[:, 1].tolist()
        holder = np.array([self._holder.get(name, -1) for name in names], np.int64)
        fresh = np.flatnonzero(holder < 0)
        parts = [(int(n), np.flatnonzero(holder == n)) for n in np.unique(holder[holder >= 0])]
        tickets = [self._hand_out(n, rows, names, tokens) for n, rows in parts]
        home = home_of(keys, len(self._lanes))
        if together:
            wholes = [(int(home[fresh[0]]), fresh)] if len(fresh) else []
        elif tokens[fresh].sum() >= most_tokens:
            wholes = self._wholes(fresh, home, tokens, most_tokens)
        else:
            wholes = self._groups(fresh, home, tokens)
        for number, rows in wholes:
            tickets.append(self._hand_out(self._choose(number, avoid), rows, names, tokens))
        return tickets

    def answered(self, replica: int, number: int, computed: np.ndarray, left: np.ndarray) -> None:
        """Note an answer, whoever tells of it.

        Args:
            replica: whose.
            number: of the ticket that was answered.
            computed: which of its rows cost a forward, bool (n,).
            left: its rows that have no label yet, int64; the others were known or computed.
        """
        lane = self._lanes[replica]
        part = lane.open.pop(number, None)
        if part is not None:
            lane.queued_tokens -= part.tokens
            lane.unwritten[number] = (self.mark(), part.keys)
            self._tally.answered(part.keys, computed, left, self._under_way)
        elif self._tally.is_late(number):
            self._tally.answered_late(number, computed, left, self._under_way)
        elif not self.knows(number):
            self.answered_before(int(computed.sum()))

    def answered_before(self, computed: int) -> None:
        """Count forwards for tickets of a router before this one: of which keys is not known."""
        self.counts.forwards += computed

    def knows(self, number: int) -> bool:
        """Return whether a ticket is this router's, not of one before it."""
        return number > self._first_number

    def _under_way(self) -> set[int]:
        return {key for lane in self._lanes for part in lane.open.values() for key in part.keys}

    def refused(self, ticket: Ticket) -> None:
        """Note that a part was answered with an error; nobody holds its labels."""
        part = self._lanes[ticket.replica].open.pop(ticket.number, None)
        if part is not None:
            self._lanes[ticket.replica].queued_tokens -= part.tokens
            self._forget(part.keys)

    def abandon(self, replica: int, mark: int) -> None:
        """Note that nobody waits any longer for what a replica was handed before `mark`.

        Its asker died, say. The labels may have been computed, so they stay where they are.
        """
        lane = self._lanes[replica]
        for number in [number for number in lane.open if number < mark]:
            part = lane.open.pop(number)
            lane.queued_tokens -= part.tokens
            lane.unwritten[number] = (self.mark(), part.keys)
            self._tally.given_up(number, part.keys)

    def lost(self, replica: int, epoch: int) -> bool:
        """Note that a replica is gone with all that it had not written.

        Args:
            replica: which.
            epoch: the life that ended; an old one is no news, nor is one that is down.

        Returns:
            Whether it is news.
        """
        lane = self._lanes[replica]
        if epoch != lane.epoch or not lane.up:
            return False
        for number, part in lane.open.items():
            self._forget(part.keys)
            self._tally.given_up(number, part.keys)
        for _, names in lane.unwritten.values():
            self._forget(names)
        self._lanes[replica] = _Lane(up=False, epoch=epoch + 1)
        self.counts.losses += 1
        return True

    def back(self, replica: int) -> None:
        """Note that a replica answers again."""
        self._lanes[replica].up = True

    def mark(self) -> int:
        """Return a number that is higher than those of all answers so far."""
        self._numbers += 1
        return self._numbers

    def written(self, replica: int, epoch: int, mark: int) -> None:
        """Note that what a replica had answered before `mark` is on disk."""
        lane = self._lanes[replica]
        if epoch == lane.epoch:
            answers = lane.unwritten.items()
            self.on_disk(replica, [ticket for ticket, (number, _) in answers if number < mark])

    def on_disk(self, replica: int, tickets: Sequence[int]) -> None:
        """Note that the answers of a replica, in its present life, to these tickets are on disk."""
        unwritten = self._lanes[replica].unwritten
        for ticket in tickets:
            if ticket in unwritten:
                _, names = unwritten.pop(ticket)
                self._forget(names)
                self._tally.on_disk(names)

    def is_up(self, replica: int) -> bool:
        """Return whether a replica takes questions."""
        return self._lanes[replica].up

    def epoch(self, replica: int) -> int:
        """Return which life a replica is in."""
        return self._lanes[replica].epoch

    def is_idle(self) -> bool:
        """Return whether every question was answered."""
        return not any(lane.open for lane in self._lanes)

    def queued_tokens(self, replica: int) -> int:
        """Return the tokens that a replica has been handed and has not answered."""
        return self._lanes[replica].queued_tokens

    def _wholes(
        self, fresh: np.ndarray, home: np.ndarray, tokens: np.ndarray, most_tokens: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield homes and parts that fill a forward each, but for the last: neighbouring homes.

        Cut by the home of each key they would fill none, and every replica's last forward would
        be half empty.
        """
        first = int(home[fresh[0]])
        for number, rows in enumerate(_split(fresh, tokens, most_tokens)):
            yield (first + number) % len(self._lanes), rows

    def _groups(
        self, fresh: np.ndarray, home: np.ndarray, tokens: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield homes and their new keys, several homes' together where each has few."""
        homes: list[int] = []
        parts: list[np.ndarray] = []
        for number in np.unique(home[fresh]).tolist():
            homes.append(number)
            parts.append(fresh[home[fresh] == number])
            if sum(int(tokens[part].sum()) for part in parts) >= self._least:
                yield min(homes, key=self.queued_tokens), np.concatenate(parts)
                homes, parts = [], []
        if parts:
            yield min(homes, key=self.queued_tokens), np.concatenate(parts)

    def _choose(self, home: int, avoid: Sequence[int]) -> int:
        up = [number for number, lane in enumerate(self._lanes) if lane.up]
        up = [number for number in up if number not in avoid] or up
        least = min(up, key=self.queued_tokens)
        near = self.queued_tokens(home) <= self.queued_tokens(least) + self._slack
        return home if home in up and near else least

    def _hand_out(
        self, replica: int, rows: np.ndarray, names: list[int], tokens: np.ndarray
    ) -> Ticket:
        lane = self._lanes[replica]
        mine = [names[row] for row in rows]
        part = _Open(mine, int(tokens[rows].sum()))
        ticket = Ticket(self.mark(), replica, lane.epoch, rows)
        lane.open[ticket.number] = part
        lane.queued_tokens += part.tokens
        self._holder.update(dict.fromkeys(mine, replica))
        return ticket

    def _forget(self, names: list[int]) -> None:
        for name in names:
            self._holder.pop(name, None)


def _split(rows: np.ndarray, tokens: np.ndarray, most_tokens: int) -> list[np.ndarray]:
    if not len(rows):
        return []
    # Cut where the running sum enters the next multiple; a part is at most one row beyond it.
    part = (np.cumsum(tokens[rows]) - tokens[rows]) // max(1, most_tokens)
    return np.split(rows, np.flatnonzero(np.diff(part)) + 1)
