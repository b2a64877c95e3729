"""What is noted is told until it was heard, errors aren't, and nobody is answered before."""

from concurrent.futures import Future

import numpy as np

from raybrew.errors import TeacherError
from raybrew.teachers.host import Ledger
from raybrew.teachers.replica import Answer


def answered(ledger: Ledger, ticket: int, seen: list[int] | None = None) -> None:
    future = ledger.expect(ticket, Future())
    if seen is not None:
        future.add_done_callback(lambda _: seen.append(len(ledger.since(0))))
    future.set_result(Answer({}, np.ones(ticket, bool)))


def test_answers_are_told_until_they_were_heard():
    ledger, seen = Ledger(), []
    for ticket in (3, 1, 2):
        answered(ledger, ticket, seen)
    assert seen == [1, 2, 3]  # noted before whoever waits for it goes on
    told = ledger.since(0)
    assert [(e.place, e.ticket, e.computed.sum()) for e in told] == [
        (1, 3, 3),
        (2, 1, 1),
        (3, 2, 2),
    ]
    assert ledger.since(0) == told
    assert ledger.forgotten() == 0
    assert [entry.ticket for entry in ledger.since(2)] == [2]
    assert ledger.forgotten() == 3 + 1
    assert [entry.ticket for entry in ledger.since(0)] == [2]  # what was heard is forgotten
    answered(ledger, 9)
    assert [entry.place for entry in ledger.since(3)] == [4]


def test_what_was_cancelled_or_failed_is_no_answer():
    ledger = Ledger()
    cancelled, failed = ledger.expect(1, Future()), ledger.expect(2, Future())
    cancelled.cancel()
    failed.set_exception(TeacherError("no"))
    assert ledger.since(0) == []
