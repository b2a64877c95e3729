"""Who answers what: each key once, wherever it is asked, and whatever is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.teachers.router import Router, home_of
from raybrew.teachers.tickets import Ticket

KEYS = np.random.default_rng(0).integers(0, 2**63, (400, 2)).astype(np.uint64)


def ones(rows) -> np.ndarray:
    return np.ones(len(rows), np.int64)


def assign(router: Router, rows, most_tokens=1000, **options) -> list[Ticket]:
    rows = np.asarray(rows)
    tickets = router.assign(KEYS[rows], ones(rows), most_tokens=most_tokens, **options)
    assert tickets is not None
    return tickets


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
                router.finished(ticket, np.ones(1, bool))
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
    router.finished(ticket, np.ones(5, bool))
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
    router.finished(done, np.ones(len(done.rows), bool))
    assert router.lost(done.replica, 0)
    assert not router.lost(done.replica, 0)
    assert not router.lost(done.replica, router.epoch(done.replica))
    assert not router.is_up(done.replica)
    # What it had answered is asked of its sister, and counted as computed twice.
    (second,) = assign(router, rows[done.rows])
    assert second.replica == under_way.replica
    router.finished(second, np.ones(len(second.rows), bool))
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
    router.finished(ticket, np.array([True, False]))
    assert router.counts.forwards == 1
    assert router.queued_tokens(0) == 0


@pytest.mark.parametrize("late", [True, False])
def test_what_is_reported_after_its_replica_was_lost_counts_as_recomputed(late):
    router = Router(2, slack_tokens=0)
    rows = np.flatnonzero(home_of(KEYS, 2) == 0)[:4]
    (ticket,) = assign(router, rows)
    router.lost(0, 0)  # after it had answered, and before its asker could say so
    if not late:
        router.finished(ticket, np.array([True, True, True, False]))
    (again,) = assign(router, rows)
    router.finished(again, np.ones(4, bool))
    if late:
        router.finished(ticket, np.array([True, True, True, False]))
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
    router.finished(left, np.ones(5, bool))  # late, and counted
    router.finished(new, np.ones(3, bool))
    assert router.counts.forwards == 8


@settings(deadline=None, max_examples=60)
@given(st.permutations([(n, who) for n in range(6) for who in ("asker", "replica")]), st.data())
def test_an_answer_counts_once_whoever_reports_it_and_in_whatever_order(reports, data):
    router = Router(2, slack_tokens=1000)
    tickets = [assign(router, np.arange(10 * n, 10 * n + 3))[0] for n in range(6)]
    silent = data.draw(st.sets(st.sampled_from([(n, "asker") for n in range(6)])))
    for number, who in reports:
        ticket, computed = tickets[number], np.ones(len(tickets[number].rows), bool)
        if who == "replica":
            router.heard(ticket.replica, ticket.number, computed)
        elif (number, who) not in silent:
            router.finished(ticket, computed)
    assert router.counts.forwards == sum(len(ticket.rows) for ticket in tickets)


def test_what_a_replica_reported_and_lost_is_counted_as_recomputed():
    router = Router(1, slack_tokens=0)
    (ticket,) = assign(router, [1, 2])
    router.heard(0, ticket.number, np.ones(2, bool))
    router.lost(0, 0)  # before its asker had the answer
    router.back(0)
    (again,) = assign(router, [1, 2], again=True)
    router.finished(again, np.ones(2, bool))
    assert (router.counts.forwards, router.counts.recomputed) == (4, 2)


def test_nobody_holds_what_was_refused():
    router = Router(2, slack_tokens=0)
    (ticket,) = assign(router, [7])
    other = np.setdiff1d(np.flatnonzero(home_of(KEYS, 2) == ticket.replica), [7])[:9]
    router.refused(ticket)
    assert router.queued_tokens(ticket.replica) == 0
    assign(router, other)
    assert assign(router, [7])[0].replica != ticket.replica


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("askdlwb"), st.integers(0, 2**16)), max_size=60))
def test_no_label_is_computed_twice_unless_its_replica_was_lost(actions):
    """Against replicas that answer from what they know, written or not."""
    router = Router(3, slack_tokens=4)
    disk: set[int] = set()
    memory: list[set[int]] = [set(), set(), set()]
    open_: list[tuple[Ticket, np.ndarray]] = []
    computed = np.zeros(400, int)
    for kind, seed in actions:
        draw = np.random.default_rng(seed)
        replica = seed % 3
        if kind in "ask":
            rows = draw.choice(400, draw.integers(1, 30), replace=False)
            tickets = router.assign(KEYS[rows], ones(rows), most_tokens=5)
            open_ += [(ticket, rows[ticket.rows]) for ticket in tickets or []]
        elif kind == "d" and open_:
            ticket, rows = open_.pop(seed % len(open_))
            if ticket.epoch != router.epoch(ticket.replica):
                continue
            new = np.array([r not in disk and r not in memory[ticket.replica] for r in rows])
            computed[rows[new]] += 1
            memory[ticket.replica].update(rows[new].tolist())
            router.finished(ticket, new)
        elif kind == "w" and router.is_up(replica):
            mark = router.mark()
            disk |= memory[replica]
            router.written(replica, router.epoch(replica), mark)
        elif kind == "l" and router.is_up(replica):
            router.lost(replica, router.epoch(replica))
            memory[replica] = set()
        elif kind == "b":
            router.back(replica)
    assert router.counts.forwards == computed.sum()
    assert router.counts.recomputed == np.maximum(computed - 1, 0).sum()
    if not router.counts.losses:
        assert computed.max(initial=0) <= 1


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
    new.finished(before, ones(range(3)))
    new.heard(0, before.number + 1, ones(range(2)))
    assert new.queued_tokens(0) > 0
    new.finished(now, ones(range(5)))
    assert new.queued_tokens(0) == 0
