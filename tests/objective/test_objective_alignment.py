"""Teachers with tokens of their own: which of their rows each row of the student learns from."""

import pytest
import torch

import raybrew as rb
from raybrew.data.payload import Signal
from raybrew.data.split import IGNORED
from raybrew.errors import ConfigError
from raybrew.losses.match_loss import Ragged
from raybrew.objective import Objective, TrainProgress
from raybrew.objective.rows import ExampleInputs
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import View

KIND = TASK_TYPES["token-classification"]
# Two examples; the first has three tokens of the task, the second two.
LABELS = torch.tensor([[0, 1, 0], [1, 0, IGNORED]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 1]])
STUDENT = torch.zeros(2, 3, 2)
# Each teacher's own tokens: three and two. The values tell them apart.
A = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0], [5.0, 5.0]])
B = 10 * A
# Which of them answers for each of the student's tokens; -1: none.
TO_A = torch.tensor([[0, -1, 2], [0, -1, -1]])
TO_B = torch.tensor([[2, -1, 1], [-1, 1, -1]])
OFFSETS = torch.tensor([0, 3 * 2, 5 * 2])


def kd(mixture: str, alignment: dict[str, torch.Tensor], **more) -> float:
    config = rb.DistillationConfig(kd_loss="mse", mixture=mixture, scale_t2=False)
    objective = Objective(config, dict.fromkeys(alignment, 1.0), kind=KIND)
    values = {"a": A, "b": B}
    soft = {n: {Signal().name: Ragged(values[n].reshape(-1), OFFSETS)} for n in alignment}
    view = View(logits=(STUDENT,), labels=(LABELS,), logits_mask=(None,), inputs_mask=MASK)
    temperature = config.temperature
    examples = ExampleInputs(alignment=alignment, **more)
    sums = objective.numerators(view, soft, TrainProgress(), examples)
    return float(sums["kd"]) * temperature**2


def test_a_row_learns_from_the_token_that_answers_for_it_the_first_one_too():
    # Rows (0, 0) from token 0, (0, 2) from token 2, (1, 0) from the second example's token 0; the
    # two others have no answer. The student's logits are 0: the losses are 1², 3², 4².
    assert kd("mean_logits", {"a": TO_A}) == pytest.approx(1 + 9 + 16)


def test_where_one_teacher_has_no_answer_the_other_one_teaches():
    # (0, 0): (1 + 30) / 2; (0, 2): (3 + 20) / 2; (1, 0): a alone, 4; (1, 1): b alone, 50.
    expected = 15.5**2 + 11.5**2 + 4**2 + 50**2
    assert kd("mean_logits", {"a": TO_A, "b": TO_B}) == pytest.approx(expected)


def test_routes_go_with_their_rows_where_rows_are_left_out():
    # Neither has an answer for (0, 1). The first example is b's, the second one a's.
    to_a = torch.tensor([[0, -1, 2], [0, 1, -1]])
    route = torch.tensor([1, 0])
    got = kd("route", {"a": to_a, "b": TO_B}, route=route)
    assert got == pytest.approx(30**2 + 20**2 + 4**2 + 5**2)


def test_random_picks_go_with_their_rows_where_rows_are_left_out():
    to_a = torch.tensor([[0, -1, 2], [0, 1, -1]])
    to_b = torch.tensor([[2, -1, 1], [1, 1, -1]])
    # All rows of an example have one key, so one teacher: these are the sums that can be.
    first, second = {1**2 + 3**2, 30**2 + 20**2}, {4**2 + 5**2, 2 * 50**2}
    found = set()
    for keys in ([1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14], [15, 16]):
        row_keys = torch.tensor(keys)
        got = kd("random", {"a": to_a, "b": to_b}, row_keys=row_keys)
        found.add(round(got))
        # An example's pick depends on its own key alone.
        swapped = kd("random", {"a": to_a, "b": to_b}, row_keys=torch.tensor([keys[0], 99]))
        other = kd("random", {"a": to_a, "b": to_b}, row_keys=torch.tensor([99, keys[1]]))
        neither = kd("random", {"a": to_a, "b": to_b}, row_keys=torch.tensor([99, 99]))
        assert got - other == pytest.approx(swapped - neither)
    assert len(found) > 1
    assert found <= {one + other for one in first for other in second}


@pytest.mark.parametrize("left_out", [True, False])
def test_a_logits_mask_that_leaves_out_a_token_with_a_label_is_refused(left_out):
    mask = MASK.clone()
    # The last token of the second example has no label: leaving it out is right.
    mask[(0, 1) if left_out else (1, 2)] = 0
    objective = Objective(rb.DistillationConfig(kd_loss="mse"), {"a": 1.0}, kind=KIND)
    shipped = Ragged(torch.cat([A, A[:1]]).reshape(-1), torch.tensor([0, 3 * 2, 6 * 2]))
    soft = {"a": {Signal().name: shipped}}
    view = View(logits=(STUDENT,), labels=(LABELS,), logits_mask=(mask,), inputs_mask=MASK)
    if left_out:
        with pytest.raises(ConfigError, match="a logits_mask that keeps every token with a label"):
            objective.numerators(view, soft, TrainProgress())
    else:
        assert float(objective.numerators(view, soft, TrainProgress())["kd"]) > 0
