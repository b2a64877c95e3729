"""Hard losses: parity with PyTorch, numbers by hand, and rows without a label."""

import math
import pickle

import pytest
import torch
from torch.nn import functional

from raybrew.errors import ConfigError
from raybrew.losses.hard import (
    HARD_LOSSES,
    binary_cross_entropy,
    cross_entropy,
    make_hard_loss,
    squared_error,
)

torch.set_num_threads(1)

INF = math.inf


def logits(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient(loss, leaf):
    (result,) = torch.autograd.grad(loss.sum(), leaf)
    return result


class TestCrossEntropy:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_equals_pytorch_on_labelled_rows(self, smoothing):
        student = logits(2, 3, 5).requires_grad_()
        labels = torch.tensor([[0, 4, -100], [2, -100, 1]])
        ours = cross_entropy(student, labels, label_smoothing=smoothing)
        expected = functional.cross_entropy(
            student.transpose(1, 2), labels, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            gradient(ours, student), gradient(expected, student), rtol=0, atol=1e-10
        )

    def test_by_hand(self):
        student = torch.tensor([[1.0, 1.0, 2.0]], dtype=torch.float64).log()
        assert cross_entropy(student, torch.tensor([2])).item() == pytest.approx(math.log(2))
        smoothed = cross_entropy(student, torch.tensor([2]), label_smoothing=0.3)
        assert smoothed.item() == pytest.approx(0.7 * math.log(2) + 0.3 * 5 / 3 * math.log(2))

    @pytest.mark.parametrize("label", [-1, -100])
    def test_any_negative_label_is_ignored_with_a_graph(self, label):
        student = logits(1, 3).requires_grad_()
        rows = cross_entropy(student, torch.tensor([label]))
        assert rows.tolist() == [0.0]
        assert gradient(rows, student).abs().max() == 0

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_extreme_logits(self, smoothing, dtype):
        student = torch.tensor([[1e4, -1e4, -INF], [-1e4, 1e4, -INF]], dtype=dtype)
        student.requires_grad_()
        rows = cross_entropy(student, torch.tensor([1, 1]), label_smoothing=smoothing)
        assert rows.dtype == torch.float32
        assert rows.isfinite().all()
        assert rows[0] > rows[1]
        assert gradient(rows, student).isfinite().all()


class TestBinaryCrossEntropy:
    @pytest.mark.parametrize("kind", [torch.int64, torch.float64, torch.bool])
    def test_equals_pytorch(self, kind):
        student = logits(3, 4).requires_grad_()
        labels = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).to(kind)
        ours = binary_cross_entropy(student, labels)
        expected = functional.binary_cross_entropy_with_logits(
            student, labels.double(), reduction="none"
        ).mean(-1)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            gradient(ours, student), gradient(expected, student), rtol=0, atol=1e-10
        )

    def test_by_hand_with_an_ignored_label_and_smoothing(self):
        student = torch.tensor([[math.log(3), 7.0]], dtype=torch.float64)
        labels = torch.tensor([[1, -1]])
        rows = binary_cross_entropy(student, labels)
        assert rows.item() == pytest.approx(math.log(4 / 3))
        smoothed = binary_cross_entropy(student, labels, label_smoothing=0.2)
        assert smoothed.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))

    def test_no_label_at_all_is_zero_with_a_graph(self):
        student = logits(1, 2).requires_grad_()
        rows = binary_cross_entropy(student, torch.tensor([[-1, -1]]))
        assert rows.tolist() == [0.0]
        assert gradient(rows, student).abs().max() == 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_extreme_logits(self, dtype):
        student = torch.tensor([[1e4, -1e4, -INF]], dtype=dtype).requires_grad_()
        rows = binary_cross_entropy(student, torch.tensor([[0, 1, 0]]))
        assert rows.item() == pytest.approx(2e4 / 3, rel=1e-2)
        assert gradient(rows, student).isfinite().all()


class TestSquaredError:
    def test_by_hand(self):
        outputs = torch.tensor([[1.0], [2.0], [5.0]], requires_grad=True)
        rows = squared_error(outputs, torch.tensor([-2.0, 4.0, math.nan]))
        assert rows.tolist() == [9.0, 4.0, 0.0]
        assert gradient(rows, outputs).tolist() == [[6.0], [-4.0], [0.0]]

    def test_several_outputs(self):
        rows = squared_error(torch.zeros(1, 3), torch.tensor([[1.0, 3.0, math.nan]]))
        assert rows.tolist() == [5.0]

    @pytest.mark.parametrize(
        ("shape", "labels"), [((3, 2), (3,)), ((3, 1), (3, 2)), ((3, 1), (1,))]
    )
    def test_nothing_is_broadcast(self, shape, labels):
        with pytest.raises(ConfigError, match="one label for each output"):
            squared_error(torch.zeros(shape), torch.zeros(labels))


class TestByName:
    def test_options_and_pickling(self):
        loss = make_hard_loss("cross_entropy", {"label_smoothing": 0.3})
        student, labels = logits(3, 4), torch.tensor([0, 1, 2])
        expected = cross_entropy(student, labels, label_smoothing=0.3)
        assert torch.equal(pickle.loads(pickle.dumps(loss))(student, labels), expected)

    def test_mistakes(self):
        assert list(HARD_LOSSES) == ["cross_entropy", "binary_cross_entropy", "mse"]
        with pytest.raises(ConfigError, match="mean 'cross_entropy'"):
            make_hard_loss("crossentropy")
        with pytest.raises(
            ConfigError, match=r"'label_smoothing': expected a number in \[0.0, 1.0\)"
        ):
            make_hard_loss("cross_entropy", {"label_smoothing": 1.0})
        with pytest.raises(ConfigError, match="option of Hard loss 'mse'"):
            make_hard_loss("mse", {"label_smoothing": 0.1})
