"""Who answers what: each key once, wherever it is asked, and whatever is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.teachers import router as tally_module
from raybrew.teachers.router import Router, Ticket, home_of

NONE = np.empty(0, np.int64)
KEYS = np.random.default_rng(0).integers(0, 2**63, (400, 2)).astype(np.uint64)


def ones(rows) -> np.ndarray:
    return np.ones(len(rows), np.int64)


def assign(router: Router, rows, most_tokens=1000, **options) -> list[Ticket]:
    rows = np.asarray(rows)
    tickets = router.assign(KEYS[rows], ones(rows), most_tokens=most_tokens, **options)
    assert tickets is not None
    return tickets


def answered(router: Router, ticket: Ticket, computed, left=NONE) -> None:
    router.answered(ticket.replica, ticket.number, np.asarray(computed), left)


def holder(tickets, num_rows) -> np.ndarray:
    who = np.full(num_rows, -1)
    for ticket in tickets:
        assert (who[ticket.rows] == -1).all()
        who[ticket.rows] = ticket.replica
    assert (who >= 0).all()
    return who


def test_a_key_has_one_home_and_homes_share_the_keys():
    home = home_of(KEYS, 4)
    assert (home == home_of(KEYS[::-1], 4)[::-1]).all()
    assert np.bincount(home, minlength=4).min() > 80


def test_new_keys_go_home_while_homes_are_about_equally_busy():
    router = Router(4, slack_tokens=1000)
    who = holder(assign(router, np.arange(400)), 400)
    assert (who == home_of(KEYS, 4)).all()


def test_a_slow_home_loses_new_keys_to_the_replica_with_the_fewest_queued_tokens():
    router = Router(2, slack_tokens=10)
    mine = np.flatnonzero(home_of(KEYS, 2) == 0)
    for row in mine[:40]:
        for ticket in assign(router, [row]):
            if ticket.replica == 1:  # the fast one answers at once, replica 0 never does
                answered(router, ticket, np.ones(1, bool))
    assert router.queued_tokens(0) == 11
    assert router.queued_tokens(1) == 0


def test_a_key_that_is_asked_for_twice_stays_where_it_is():
    router = Router(3, slack_tokens=0)
    first = holder(assign(router, np.arange(100), most_tokens=7), 100)
    again = holder(assign(router, np.arange(50, 100)), 50)
    assert (first[50:] == again).all()


def test_what_is_on_disk_may_go_anywhere_and_what_is_not_may_not():
    router = Router(2, slack_tokens=0)
    ticket = assign(router, np.flatnonzero(home_of(KEYS, 2) == 0)[:5])[0]
    rows = np.flatnonzero(home_of(KEYS, 2) == 0)[:5]
    mark = router.mark()
    answered(router, ticket, np.ones(5, bool))
    assign(router, np.flatnonzero(home_of(KEYS, 2) == 0)[5:50])  # replica 0 is busy now
    router.written(0, ticket.epoch, mark)
    assert {t.replica for t in assign(router, rows)} == {0}  # answered after the mark
    router.written(0, ticket.epoch, router.mark())
    assert {t.replica for t in assign(router, rows)} == {1}


def test_parts_are_not_much_larger_than_asked_for():
    router = Router(2, slack_tokens=1000)
    tokens = np.random.default_rng(1).integers(1, 20, 400)
    tickets = router.assign(KEYS, tokens, most_tokens=64)
    assert tickets is not None
    assert max(tokens[t.rows].sum() for t in tickets) < 64 + 20
    together = router.assign(KEYS[:9] + np.uint64(1), tokens[:9], most_tokens=1, together=True)
    assert together is not None
    assert len(together) == 1


def test_a_question_of_several_forwards_falls_into_full_ones_of_neighbouring_homes():
    router = Router(3, slack_tokens=1000)
    tickets = assign(router, np.arange(100), most_tokens=16)
    sizes = [len(ticket.rows) for ticket in tickets]
    assert sizes == [16] * 6 + [4]
    first = tickets[0].replica
    assert first == home_of(KEYS[:1], 3)[0]
    assert [ticket.replica for ticket in tickets] == [(first + n) % 3 for n in range(7)]
    assert (holder(assign(router, np.arange(100)), 100) == holder(tickets, 100)).all()


def test_a_lost_replica_is_forgotten_with_all_it_had():
    router = Router(2, slack_tokens=0)
    rows = np.arange(60)
    tickets = assign(router, rows)
    done, under_way = tickets
    answered(router, done, np.ones(len(done.rows), bool))
    assert router.lost(done.replica, 0)
    assert not router.lost(done.replica, 0)
    assert not router.lost(done.replica, router.epoch(done.replica))
    assert not router.is_up(done.replica)
    # What it had answered is asked of its sister, and counted as computed twice.
    (second,) = assign(router, rows[done.rows])
    assert second.replica == under_way.replica
    answered(router, second, np.ones(len(second.rows), bool))
    assert router.counts.recomputed == len(done.rows)
    assert router.lost(under_way.replica, 0)
    assert router.assign(KEYS[rows], ones(rows), most_tokens=9) is None
    router.back(0)
    tickets = assign(router, rows[under_way.rows], again=True)
    assert {t.replica for t in tickets} == {0}
    assert {t.epoch for t in tickets} == {1}
    assert router.counts.retried == len(under_way.rows)
    assert router.counts.losses == 2


def test_an_answer_of_a_replica_that_was_thought_lost_counts_as_a_forward():
    router = Router(1, slack_tokens=0)
    (ticket,) = assign(router, [1, 2])
    router.lost(0, 0)
    answered(router, ticket, np.array([True, False]))
    assert router.counts.forwards == 1
    assert router.queued_tokens(0) == 0


@pytest.mark.parametrize("late", [True, False])
def test_what_is_reported_after_its_replica_was_lost_counts_as_recomputed(late):
    router = Router(2, slack_tokens=0)
    rows = np.flatnonzero(home_of(KEYS, 2) == 0)[:4]
    (ticket,) = assign(router, rows)
    router.lost(0, 0)  # after it had answered, and before its asker could say so
    if not late:
        answered(router, ticket, np.array([True, True, True, False]))
    (again,) = assign(router, rows)
    answered(router, again, np.ones(4, bool))
    if late:
        answered(router, ticket, np.array([True, True, True, False]))
    assert (router.counts.forwards, router.counts.recomputed) == (7, 3)


def test_what_a_dead_asker_left_behind_is_no_work_but_stays_where_it_is():
    router = Router(2, slack_tokens=0)
    rows = np.flatnonzero(home_of(KEYS, 2) == 0)[:8]
    (left,) = assign(router, rows[:5])
    mark = router.mark()
    (new,) = assign(router, np.flatnonzero(home_of(KEYS, 2) == 1)[:3])
    router.abandon(0, mark)
    router.abandon(1, mark)
    assert (router.queued_tokens(0), router.queued_tokens(1)) == (0, 3)
    assert {t.replica for t in assign(router, rows[:5])} == {0}
    answered(router, left, np.ones(5, bool))  # late, and counted
    answered(router, new, np.ones(3, bool))
    assert router.counts.forwards == 8


@pytest.mark.parametrize("lost", [False, True])
def test_an_answer_counts_once_however_often_it_is_told(lost):
    router = Router(2, slack_tokens=1000)
    tickets = assign(router, np.arange(30))
    if lost:  # and a question to the life that ended can reach the next one, which tells of it
        assert router.lost(0, 0)
        router.back(0)
    for ticket in [*tickets, *tickets[::-1]]:
        answered(router, ticket, np.ones(len(ticket.rows), bool))
    assert router.counts.forwards == 30
    assert router.queued_tokens(0) == router.queued_tokens(1) == 0


def test_a_label_that_is_found_was_computed_by_the_replica_that_died_before_it_could_say_so():
    router = Router(1, slack_tokens=0)
    (ticket,) = assign(router, [1, 2, 3, 4])
    router.lost(0, 0)
    router.back(0)
    (again,) = assign(router, [1, 2, 3, 4], again=True)
    answered(router, again, np.array([False, False, True, False]), left=np.array([3]))
    assert (router.counts.forwards, router.counts.recomputed) == (3, 0)
    # Its asker was only late.
    answered(router, ticket, np.array([True, True, False, False]))
    assert (router.counts.forwards, router.counts.recomputed) == (3, 0)


def test_what_a_replica_reported_and_lost_is_counted_as_recomputed():
    router = Router(1, slack_tokens=0)
    (ticket,) = assign(router, [1, 2])
    answered(router, ticket, np.ones(2, bool))
    router.lost(0, 0)  # before its asker had the answer
    router.back(0)
    (again,) = assign(router, [1, 2], again=True)
    answered(router, again, np.ones(2, bool))
    assert (router.counts.forwards, router.counts.recomputed) == (4, 2)


def test_nobody_holds_what_was_refused():
    router = Router(2, slack_tokens=0)
    (ticket,) = assign(router, [7])
    other = np.setdiff1d(np.flatnonzero(home_of(KEYS, 2) == ticket.replica), [7])[:9]
    router.refused(ticket)
    assert router.queued_tokens(ticket.replica) == 0
    assign(router, other)
    assert assign(router, [7])[0].replica != ticket.replica


class World:
    """Replicas that answer from what they know and die, askers that give up: what is true of them.

    Claims, which keep two replicas from computing one label, are left out.
    """

    def __init__(self, num_replicas: int):
        self.router = Router(num_replicas, slack_tokens=4)
        self.disk: set[int] = set()
        self.memory: list[set[int]] = [set() for _ in range(num_replicas)]
        self.alive = [True] * num_replicas
        # Asked while no replica was up; under way; answered, to be told by the asker; answered,
        # to be told by the replica.
        self.waiting: list[np.ndarray] = []
        self.sent: list[tuple[Ticket, np.ndarray]] = []
        self.had: list[tuple[Ticket, np.ndarray]] = []
        self.ledgers: list[list[tuple[Ticket, np.ndarray]]] = [[] for _ in range(num_replicas)]
        self.computed = np.zeros(len(KEYS), int)
        self.asked: set[int] = set()

    def ask(self, rows: np.ndarray, *, again: bool = False) -> None:
        tickets = self.router.assign(KEYS[rows], ones(rows), most_tokens=5, again=again)
        self.asked.update(rows.tolist())
        if tickets is None:
            self.waiting.append(rows)
        else:
            self.sent += [(ticket, rows[ticket.rows]) for ticket in tickets]

    def answer(self, number: int, *, asker_lives: bool) -> None:
        ticket, rows = self.sent[number]
        memory = self.memory[ticket.replica]
        if self.alive[ticket.replica]:  # be it in another life than that of the ticket
            del self.sent[number]
            new = np.array([row not in self.disk and row not in memory for row in rows.tolist()])
            self.computed[rows[new]] += 1
            memory.update(rows.tolist())
            self.ledgers[ticket.replica].append((ticket, new))
            self.had += [(ticket, new)] if asker_lives else []

    def give_up(self) -> None:
        """Askers of lives that ended ask again, and those of nobody."""
        waiting, self.waiting = self.waiting, []
        for rows in waiting:
            self.ask(rows)
        over = [each for each in self.sent if each[0].epoch != self.router.epoch(each[0].replica)]
        self.sent = [each for each in self.sent if each not in over]
        for _, rows in over:
            self.ask(rows, again=True)

    def tell(self, number: int) -> None:
        ticket, new = self.had.pop(number)
        answered(self.router, ticket, new)

    def hear(self, replica: int) -> None:
        for ticket, new in self.ledgers[replica]:
            answered(self.router, ticket, new)
        self.ledgers[replica] = []

    def write(self, replica: int, *, noted: bool) -> None:
        mark = self.router.mark()
        if self.alive[replica]:
            self.disk |= self.memory[replica]
            if noted and self.router.is_up(replica):
                self.router.written(replica, self.router.epoch(replica), mark)

    def write_and_tell(self, replica: int) -> None:
        """As a replica does of itself, and tells with what it has answered."""
        if self.alive[replica]:
            self.disk |= self.memory[replica]
            tickets = [ticket.number for ticket, _ in self.ledgers[replica]]
            self.hear(replica)
            self.router.on_disk(replica, tickets)

    def die(self, replica: int) -> None:
        self.alive[replica] = False
        self.memory[replica], self.ledgers[replica] = set(), []

    def notice(self, replica: int) -> None:
        if not self.alive[replica]:
            self.router.lost(replica, self.router.epoch(replica))

    def think_lost(self, replica: int) -> None:
        """It couldn't be reached for a moment."""
        self.router.lost(replica, self.router.epoch(replica))

    def restart(self, replica: int) -> None:
        self.notice(replica)
        self.alive[replica] = True
        self.router.back(replica)

    def end(self, *, ask_again: bool) -> None:
        """Everybody gets an answer, and says so."""
        for replica in range(len(self.alive)):
            self.restart(replica)
        self.give_up()
        if ask_again:
            self.ask(np.array(sorted(self.asked), int))
        while self.sent:
            self.answer(0, asker_lives=True)
        while self.had:
            self.tell(0)
        for replica in range(len(self.alive)):
            self.hear(replica)


EVENTS = ["ask", "answer", "answer", "give up", "tell", "hear", "write", "write and tell"]
FAULTS = ["write, unnoted", "die", "notice", "restart", "think lost"]
DEAD = "answer, asker dead"


def live(world: World, what: str, seed: int) -> None:
    replica = seed % len(world.alive)
    if what == "ask":
        draw = np.random.default_rng(seed)
        world.ask(draw.choice(40, draw.integers(1, 20), replace=False))
    elif what.startswith("answer") and world.sent:
        world.answer(seed % len(world.sent), asker_lives=not what.endswith("dead"))
    elif what == "give up":
        world.give_up()
    elif what == "tell" and world.had:
        world.tell(seed % len(world.had))
    elif what in ("write", "write, unnoted"):
        world.write(replica, noted=what == "write")
    elif what in ("hear", "write and tell", "die", "notice", "restart", "think lost"):
        getattr(world, what.replace(" ", "_"))(replica)


def story(*events: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(events), st.integers(0, 2**16)), max_size=60)


def lived(actions: list[tuple[str, int]], *, ask_again: bool) -> World:
    world = World(3)
    for what, seed in actions:
        live(world, what, seed)
    world.end(ask_again=ask_again)
    return world


def assert_counted(world: World) -> None:
    """Each label once, and once more for each time that it was lost; none that nobody computed."""
    counts = world.router.counts
    assert counts.forwards - counts.recomputed == len(world.asked)
    assert counts.forwards <= world.computed.sum()


@settings(deadline=None, max_examples=300)
@given(story(*EVENTS, *FAULTS))
def test_however_replicas_die_every_label_counts_once_and_once_more_if_again(actions):
    assert_counted(lived(actions, ask_again=False))


@settings(deadline=None, max_examples=300)
@given(story(*EVENTS, *FAULTS, DEAD))
def test_a_label_whose_asker_died_with_its_replica_counts_when_it_is_asked_for_again(actions):
    assert_counted(lived(actions, ask_again=True))


@settings(deadline=None, max_examples=100)
@given(story(*EVENTS, DEAD))
def test_no_label_is_computed_twice_unless_its_replica_was_lost(actions):
    world = lived(actions, ask_again=False)
    assert world.computed.max(initial=0) <= 1
    assert world.router.counts.forwards == world.computed.sum() == len(world.asked)
    assert world.router.counts.recomputed == 0


def test_what_is_remembered_of_labels_on_disk_has_an_end(monkeypatch):
    monkeypatch.setattr(tally_module, "REMEMBERED", 10)
    tally = tally_module.Tally()
    for start in range(0, 100, 5):
        keys = list(range(start, start + 5))
        tally.answered(keys, np.ones(5, bool), NONE, set)
        tally.on_disk(keys)
    assert tally.counts.forwards == 100
    assert len(tally._counted) == 10


def test_few_new_keys_of_many_homes_go_together_and_replicas_share_them():
    router = Router(50, slack_tokens=1000, least_tokens=40)
    tickets = assign(router, np.arange(400))
    sizes = [len(ticket.rows) for ticket in tickets]
    assert min(sizes[:-1]) >= 40
    assert len(tickets) <= 10
    home = home_of(KEYS, 50)
    for ticket in tickets:
        assert ticket.replica in home[ticket.rows]
    # Keys that somebody has stay where they are, however few of them are asked for.
    who = holder(tickets, 400)
    for row in (3, 399):
        assert assign(router, [row])[0].replica == who[row]
    for number in range(4):  # the next questions go to those who have less to do
        more = KEYS + np.uint64(number + 1)
        assert router.assign(more, ones(more), most_tokens=1000) is not None
    queued = [router.queued_tokens(number) for number in range(50)]
    assert max(queued) < 3 * 2000 / 50


def test_tickets_of_a_desk_that_died_are_nobodys():
    old, new = Router(1, slack_tokens=10), Router(1, slack_tokens=10, first_number=10**9)
    (before,) = assign(old, range(3))
    (now,) = assign(new, range(5))
    assert not new.knows(before.number)
    assert new.knows(now.number)
    answered(new, before, np.array([True, True, False]))
    new.answered_before(7)
    assert new.counts.forwards == 9
    assert new.queued_tokens(0) > 0
    answered(new, now, ones(range(5)))
    assert new.queued_tokens(0) == 0


def test_a_replica_that_failed_with_a_question_gets_it_only_where_no_other_is_up():
    router = Router(3, slack_tokens=1000)
    who = holder(assign(router, np.arange(60), avoid=(1,)), 60)
    assert set(who) == {0, 2}
    router.lost(0, 0)
    router.lost(2, 0)
    assert set(holder(assign(router, np.arange(60, 90), avoid=(1,)), 30)) == {1}
