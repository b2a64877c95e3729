"""Metrics are those of scikit-free arithmetic, and predictions those of the bare model."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from raybrew.data.encoding import encode
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.sequence_classification import classification_metrics
from raybrew.tasks.task_type import one_output
from tests.made import make_data, make_model, make_tokenizer

KIND = TASK_TYPES["sequence-classification"]


def asked(model) -> ModelOnDevice:
    return ModelOnDevice(model, one_output, Padding(0), torch.device("cpu"))


def split_of(texts: list[str]) -> EncodedSplit:
    view, _ = encode(make_tokenizer(), texts, None, 32)
    return EncodedSplit({STUDENT_VIEW: view}, np.zeros(len(texts), np.int64))


def test_metrics_by_hand():
    # Predicted 0 0 1 2 1; true 0 1 1 2 2; the last row has no label.
    logits = torch.eye(3)[[0, 0, 1, 2, 1, 0]]
    labels = torch.tensor([0, 1, 1, 2, 2, -1])
    metrics = classification_metrics(logits, labels)
    assert metrics["examples"] == 5
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    # F1 of the classes: 2·1/(2+1), 2·1/(2+2), 2·1/(1+2).
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    # (c·s − Σ p_k t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)), Gorodkin 2004.
    assert metrics["matthews"] == pytest.approx((3 * 5 - 8) / np.sqrt((25 - 9) * (25 - 9)))


def test_without_labels_there_is_no_metric():
    assert classification_metrics(torch.zeros(2, 3), torch.tensor([-1, -1])) == {"examples": 0.0}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_are_those_of_the_model_in_the_order_of_the_rows(tmp_path, batch_size):
    model = AutoModelForSequenceClassification.from_pretrained(make_model(tmp_path, 0))
    tokenizer, texts = make_tokenizer(), make_data(20)["text"][:]
    rows = np.array([5, 3, 19, 0, 3])
    seen: list[tuple[int, int]] = []
    model.train()
    found = predict(
        asked(model),
        KIND,
        split_of(texts),
        rows,
        batch_size=batch_size,
        on_progress=lambda done, total: seen.append((done, total)),
    ).values
    assert model.training
    model.eval()
    for place, row in enumerate(rows):
        alone = model(**tokenizer(texts[row], return_tensors="pt")).logits[0]
        torch.testing.assert_close(
            torch.from_numpy(found[place]), alone.detach(), atol=1e-5, rtol=1e-5
        )
    assert seen[-1] == (5, 5)


def test_no_rows_give_no_predictions(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(make_model(tmp_path, 0))
    found = predict(asked(model), KIND, split_of(["w1"]), np.empty(0, np.int64), batch_size=4)
    assert found.values.shape == (0, 3)
