"""Steps whose gradient is not finite: left out or the end of the run, as set."""

import math

import pytest

import raybrew as rb
from raybrew.student.checkpoint import Progress
from raybrew.student.nan_policy import MAX_IN_A_ROW, leave_out

LOSSES = {"train/sum/loss": math.nan}


def test_stop_says_the_step_the_loss_and_what_to_do():
    with pytest.raises(rb.TrainingError, match=r"step 7.*train/sum/loss nan.*on_nan: skip"):
        leave_out(Progress(6), 7, "stop", LOSSES)


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    progress, event = leave_out(Progress(0), 1, "skip", LOSSES)
    for step in range(2, MAX_IN_A_ROW + 1):
        progress, event = leave_out(progress, step, "skip", LOSSES)
    assert progress.skipped == progress.skipped_in_a_row == MAX_IN_A_ROW
    assert "left out" in event.what
    with pytest.raises(rb.TrainingError, match="in a row"):
        leave_out(progress, MAX_IN_A_ROW + 1, "skip", LOSSES)
    # A good step in between: the count begins anew.
    progress, _ = leave_out(progress, MAX_IN_A_ROW + 2, "skip", LOSSES)
    assert progress.skipped_in_a_row == 1
    assert progress.skipped == MAX_IN_A_ROW + 1
