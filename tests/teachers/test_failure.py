"""What is decided about replicas that are late, and teachers without a replica."""

from raybrew.teachers.failure import FailureDecision, FailurePolicy


def test_what_is_decided_about_a_teacher_without_replicas():
    fail, wait = FailurePolicy("fail", 5, 60), FailurePolicy("wait", 5, 60)
    drop = FailurePolicy("drop", 5, 60)
    assert {p.decide(59, all_given_up=False) for p in (fail, wait, drop)} == {FailureDecision.WAIT}
    late = [p.decide(61, all_given_up=False) for p in (fail, wait, drop)]
    assert late == [FailureDecision.FAIL, FailureDecision.WAIT, FailureDecision.DROP]
    given_up = [p.decide(0, all_given_up=True) for p in (fail, wait, drop)]
    assert given_up == [FailureDecision.FAIL, FailureDecision.FAIL, FailureDecision.DROP]
    assert fail.hangs(5.1)
    assert not fail.hangs(4.9)
    assert fail.is_unresponsive(36)
    assert not fail.is_unresponsive(34)
    assert [fail.gives_up(failures) for failures in (3, 4)] == [False, True]
    assert not wait.gives_up(1000)
