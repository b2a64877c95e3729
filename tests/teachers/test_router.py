"""Which replica answers what: each key once, wherever it is asked, and whatever fails."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.teachers.router import Request, RoutingTable, home_of

KEYS = np.random.default_rng(0).integers(0, 2**63, (400, 2)).astype(np.uint64)


def ones(rows) -> np.ndarray:
    return np.ones(len(rows), np.int64)


def assign(table: RoutingTable, rows, most_tokens=1000, **options) -> list[Request]:
    rows = np.asarray(rows)
    requests = table.assign(KEYS[rows], ones(rows), most_tokens=most_tokens, **options)
    assert requests is not None
    return requests


def finished(table: RoutingTable, request: Request, now_s: float = 0.0) -> None:
    table.finished(request.replica, request.number, now_s)


def holder(requests, num_rows) -> np.ndarray:
    who = np.full(num_rows, -1)
    for request in requests:
        assert (who[request.rows] == -1).all()
        who[request.rows] = request.replica
    assert (who >= 0).all()
    return who


def at_home(replica: int, num_replicas: int = 2) -> np.ndarray:
    return np.flatnonzero(home_of(KEYS, num_replicas) == replica)


def test_a_key_has_one_home_and_homes_share_the_keys():
    home = home_of(KEYS, 4)
    assert (home == home_of(KEYS[::-1], 4)[::-1]).all()
    assert np.bincount(home, minlength=4).min() > 80


def test_new_keys_go_home_while_homes_are_about_equally_busy():
    table = RoutingTable(4, slack_tokens=1000)
    who = holder(assign(table, np.arange(400)), 400)
    assert (who == home_of(KEYS, 4)).all()


def test_a_slow_home_loses_new_keys_to_the_replica_with_the_fewest_queued_tokens():
    table = RoutingTable(2, slack_tokens=10)
    for row in at_home(0)[:40]:
        for request in assign(table, [row]):
            if request.replica == 1:  # the fast one answers at once, replica 0 never does
                finished(table, request)
    assert table.queued_tokens(0) == 11
    assert table.queued_tokens(1) == 0


def test_a_key_that_is_asked_for_twice_stays_where_it_is():
    table = RoutingTable(3, slack_tokens=0)
    first = holder(assign(table, np.arange(100), most_tokens=7), 100)
    again = holder(assign(table, np.arange(50, 100)), 50)
    assert (first[50:] == again).all()


def test_what_is_on_disk_may_go_anywhere_and_what_is_not_may_not():
    table = RoutingTable(2, slack_tokens=0)
    rows = at_home(0)[:5]
    (request,) = assign(table, rows)
    finished(table, request, now_s=2.0)
    finished(table, request, now_s=1.0)  # again: what was noted first counts
    assign(table, at_home(0)[5:50])  # replica 0 is busy now
    table.written(0, before_s=2.0)
    assert {each.replica for each in assign(table, rows)} == {0}  # finished at that time
    table.written(0, before_s=2.1)
    assert {each.replica for each in assign(table, rows)} == {1}


def test_parts_are_not_much_larger_than_asked_for():
    table = RoutingTable(2, slack_tokens=1000)
    tokens = np.random.default_rng(1).integers(1, 20, 400)
    requests = table.assign(KEYS, tokens, most_tokens=64)
    assert requests is not None
    assert max(tokens[each.rows].sum() for each in requests) < 64 + 20
    together = table.assign(KEYS[:9] + np.uint64(1), tokens[:9], most_tokens=None)
    assert together is not None
    assert len(together) == 1


def test_a_question_of_several_forwards_falls_into_full_ones_of_neighbouring_homes():
    table = RoutingTable(3, slack_tokens=1000)
    requests = assign(table, np.arange(100), most_tokens=16)
    sizes = [len(each.rows) for each in requests]
    assert sizes == [16] * 6 + [4]
    first = requests[0].replica
    assert first == home_of(KEYS[:1], 3)[0]
    assert [each.replica for each in requests] == [(first + n) % 3 for n in range(7)]
    assert (holder(assign(table, np.arange(100)), 100) == holder(requests, 100)).all()


def test_a_failed_replica_is_forgotten_with_all_it_had():
    table = RoutingTable(2, slack_tokens=0)
    rows = np.arange(60)
    done, under_way = assign(table, rows)
    finished(table, done)
    assert table.failed(done.replica, 0)
    assert not table.failed(done.replica, 0)
    assert not table.failed(done.replica, table.epoch(done.replica))
    assert not table.is_up(done.replica)
    # What it had answered, and not written, is asked of the other one.
    (second,) = assign(table, rows[done.rows])
    assert second.replica == under_way.replica
    finished(table, second)
    assert table.failed(under_way.replica, 0)
    assert table.assign(KEYS[rows], ones(rows), most_tokens=9) is None
    table.recovered(0)
    requests = assign(table, rows[under_way.rows])
    assert {each.replica for each in requests} == {0}
    assert {each.epoch for each in requests} == {1}
    assert table.retried == len(under_way.rows)
    assert table.failures == 2


def test_an_answer_of_a_replica_that_was_thought_lost_changes_nothing():
    table = RoutingTable(1, slack_tokens=0)
    (request,) = assign(table, [1, 2])
    table.failed(0, 0)
    table.recovered(0)
    finished(table, request)
    table.refused(request.replica, request.number)
    assert table.queued_tokens(0) == 0
    assert table.is_idle()


def test_what_a_dead_client_left_behind_is_no_work_but_stays_where_it_is():
    table = RoutingTable(2, slack_tokens=0)
    rows = at_home(0)[:8]
    (left,) = assign(table, rows[:5], now_s=1.0)
    (new,) = assign(table, at_home(1)[:3], now_s=2.0)
    table.abandoned(0, before_s=2.0, now_s=3.0)
    table.abandoned(1, before_s=2.0, now_s=3.0)
    assert (table.queued_tokens(0), table.queued_tokens(1)) == (0, 3)
    assert not table.is_idle()
    assert {each.replica for each in assign(table, rows[:5])} == {0}
    finished(table, left)
    finished(table, new)
    assert table.queued_tokens(1) == 0


def test_an_answer_that_is_noted_twice_is_work_that_is_done_once():
    table = RoutingTable(2, slack_tokens=1000)
    requests = assign(table, np.arange(30))
    for request in [*requests, *requests[::-1]]:
        finished(table, request)
    assert table.queued_tokens(0) == table.queued_tokens(1) == 0
    assert table.is_idle()


def test_no_replica_holds_what_was_refused():
    table = RoutingTable(2, slack_tokens=0)
    (request,) = assign(table, [7])
    other = np.setdiff1d(at_home(request.replica), [7])[:9]
    table.refused(request.replica, request.number)
    assert table.queued_tokens(request.replica) == 0
    assign(table, other)
    assert assign(table, [7])[0].replica != request.replica


class World:
    """Replicas that answer from what they know and die, clients that give up: what is true of them.

    Leases, which keep two replicas from computing one label, are left out.
    """

    def __init__(self, num_replicas: int):
        self.table = RoutingTable(num_replicas, slack_tokens=4)
        self.clock = itertools.count(1)
        self.disk: set[int] = set()
        self.memory: list[set[int]] = [set() for _ in range(num_replicas)]
        # When the first label that is not on disk was begun; infinite if all of them are.
        self.unwritten_s = [np.inf] * num_replicas
        self.alive = [True] * num_replicas
        # Asked while no replica was up; under way; answered, to be noted by the client.
        self.waiting: list[np.ndarray] = []
        self.sent: list[tuple[Request, np.ndarray]] = []
        self.had: list[Request] = []
        self.computed = np.zeros(len(KEYS), int)
        self.asked: set[int] = set()
        self.answered: set[int] = set()

    def ask(self, rows: np.ndarray) -> None:
        now_s = next(self.clock)
        requests = self.table.assign(KEYS[rows], ones(rows), most_tokens=5, now_s=now_s)
        self.asked.update(rows.tolist())
        if requests is None:
            self.waiting.append(rows)
        else:
            self.sent += [(request, rows[request.rows]) for request in requests]

    def answer(self, number: int, *, client_lives: bool) -> None:
        request, rows = self.sent[number]
        replica = request.replica
        if self.alive[replica]:  # be it in another life than that of the request
            del self.sent[number]
            self.unwritten_s[replica] = min(self.unwritten_s[replica], next(self.clock))
            known = self.disk | self.memory[replica]
            new = np.array([row for row in rows.tolist() if row not in known], int)
            self.computed[new] += 1
            self.memory[replica].update(rows.tolist())
            if client_lives:
                self.had.append(request)
                self.answered.update(rows.tolist())

    def give_up(self) -> None:
        """Clients ask again what a replica had in an earlier life, and what none was up for."""
        waiting, self.waiting = self.waiting, []
        for rows in waiting:
            self.ask(rows)
        over = [each for each in self.sent if each[0].epoch != self.table.epoch(each[0].replica)]
        self.sent = [each for each in self.sent if each not in over]
        for _, rows in over:
            self.ask(rows)

    def note(self, number: int) -> None:
        finished(self.table, self.had.pop(number), next(self.clock))

    def write(self, replica: int) -> None:
        if self.alive[replica]:
            self.disk |= self.memory[replica]
            self.unwritten_s[replica] = np.inf

    def check_health(self, replica: int) -> None:
        sent_s = next(self.clock)
        if self.alive[replica]:
            self.table.recovered(replica)
            self.table.written(replica, min(sent_s, self.unwritten_s[replica]))
            if not any(each.replica == replica for each, _ in self.sent):
                self.table.abandoned(replica, sent_s, next(self.clock))

    def die(self, replica: int) -> None:
        self.alive[replica] = False
        self.memory[replica], self.unwritten_s[replica] = set(), np.inf

    def notice(self, replica: int) -> None:
        if not self.alive[replica]:
            self.table.failed(replica, self.table.epoch(replica))

    def think_lost(self, replica: int) -> None:
        """It couldn't be reached for a moment."""
        self.table.failed(replica, self.table.epoch(replica))

    def restart(self, replica: int) -> None:
        self.notice(replica)
        self.alive[replica] = True
        self.table.recovered(replica)

    def end(self) -> None:
        """Every client gets an answer, and every replica writes."""
        for replica in range(len(self.alive)):
            self.restart(replica)
        self.give_up()
        while self.sent:
            self.answer(0, client_lives=True)
        while self.had:
            self.note(0)
        for _ in range(
            2
        ):  # a request of a dead client is over with the first, written with the next
            for replica in range(len(self.alive)):
                self.write(replica)
                self.check_health(replica)


EVENTS = ["ask", "answer", "answer", "give up", "note", "write", "check health"]
FAULTS = ["die", "notice", "restart", "think lost"]
DEAD = "answer, client dead"


def live(world: World, what: str, seed: int) -> None:
    replica = seed % len(world.alive)
    if what == "ask":
        draw = np.random.default_rng(seed)
        world.ask(draw.choice(40, draw.integers(1, 20), replace=False))
    elif what.startswith("answer") and world.sent:
        world.answer(seed % len(world.sent), client_lives=not what.endswith("dead"))
    elif what == "give up":
        world.give_up()
    elif what == "note" and world.had:
        world.note(seed % len(world.had))
    elif what in ("write", "check health", *FAULTS):
        getattr(world, what.replace(" ", "_"))(replica)


def story(*events: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(events), st.integers(0, 2**16)), max_size=60)


def lived(actions: list[tuple[str, int]]) -> World:
    world = World(3)
    for what, seed in actions:
        live(world, what, seed)
    world.end()
    # Nothing is remembered of labels that are on disk, nothing is queued.
    assert world.table.is_idle()
    assert world.table._holder == {}
    assert [world.table.queued_tokens(number) for number in range(3)] == [0, 0, 0]
    return world


@settings(deadline=None, max_examples=300)
@given(story(*EVENTS, *FAULTS))
def test_however_replicas_die_every_client_gets_its_labels_and_failures_bound_the_forwards(actions):
    world = lived(actions)
    assert world.answered == world.asked
    assert world.computed.max() <= 1 + world.table.failures


@settings(deadline=None, max_examples=300)
@given(story(*EVENTS, DEAD))
def test_no_label_is_computed_twice_unless_its_replica_failed(actions):
    world = lived(actions)
    assert world.computed.max() <= 1
    assert world.computed.sum() == len(world.asked)


def test_few_new_keys_of_many_homes_go_together_and_replicas_share_them():
    table = RoutingTable(50, slack_tokens=1000, least_tokens=40)
    requests = assign(table, np.arange(400))
    sizes = [len(each.rows) for each in requests]
    assert min(sizes[:-1]) >= 40
    assert len(requests) <= 10
    home = home_of(KEYS, 50)
    for request in requests:
        assert request.replica in home[request.rows]
    # Keys that a replica has stay where they are, however few of them are asked for.
    who = holder(requests, 400)
    for row in (3, 399):
        assert assign(table, [row])[0].replica == who[row]
    for number in range(4):  # the next questions go to those who have less to do
        more = KEYS + np.uint64(number + 1)
        assert table.assign(more, ones(more), most_tokens=1000) is not None
    queued = [table.queued_tokens(number) for number in range(50)]
    assert max(queued) < 3 * 2000 / 50


def test_requests_of_a_router_that_died_are_ignored():
    old = RoutingTable(1, slack_tokens=10)
    new = RoutingTable(1, slack_tokens=10, first_number=10**9)
    (before,) = assign(old, range(3))
    (now,) = assign(new, range(5))
    finished(new, before)
    new.refused(before.replica, before.number)
    assert new.queued_tokens(0) == 5
    finished(new, now)
    assert new.queued_tokens(0) == 0


def test_a_replica_that_failed_with_a_question_gets_it_only_where_no_other_is_up():
    table = RoutingTable(3, slack_tokens=1000)
    who = holder(assign(table, np.arange(60), avoid=(1,)), 60)
    assert set(who) == {0, 2}
    table.failed(0, 0)
    table.failed(2, 0)
    assert set(holder(assign(table, np.arange(60, 90), avoid=(1,)), 30)) == {1}
