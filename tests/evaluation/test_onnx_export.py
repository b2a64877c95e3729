"""`raybrew export`: the same logits in onnxruntime as in PyTorch, for batches of any size."""

import json
from pathlib import Path

import numpy as np
import pytest

import raybrew as rb
from raybrew.evaluation.onnx_export import export_onnx
from raybrew.evaluation.saved_models import save_task
from tests.commands import raybrew
from tests.made import logits_of, make_model, make_tokenizer
from tests.tasks.made_models import make_task_model

onnxruntime = pytest.importorskip("onnxruntime")


def test_a_student_answers_in_onnx_as_in_pytorch(tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    folder = make_model(tmp_path / "model", 0)
    assert raybrew("export", folder, "--onnx", "--int8") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("pytorch", "onnx", "int8", "ms, batch 32"))
    session = onnxruntime.InferenceSession(str(Path(folder, "onnx", "model.onnx")))
    texts = ["w1 w2 w3 w4 w5", "w7", "w30 w31", "w9"]
    batch = make_tokenizer()(texts, padding=True, return_tensors="np")
    found = session.run(["logits"], dict(batch))[0]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    np.testing.assert_allclose(found, logits_of(model, make_tokenizer(), texts), atol=1e-4)
    rows = json.loads(Path(folder, "onnx", "export.json").read_text())["rows"]
    assert rows["onnx"]["agreement"] == 1
    assert rows["int8"]["megabytes"] < rows["onnx"]["megabytes"]
    assert raybrew("export", folder) == 2
    assert "expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["token-classification", "question-answering", "causal-lm"])
def test_other_heads_are_exported(kind, tmp_path):
    make_task_model(tmp_path / "model", kind, 0)
    task = rb.Task(name="t", kind=kind, train="x", max_length=16, stride=4)
    save_task(tmp_path / "model", task)
    result = export_onnx(str(tmp_path / "model"))
    assert result.rows["onnx"]["max_difference"] < 1e-3


def test_a_missing_package_and_a_wrong_export_are_refused(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "model", 0)
    monkeypatch.setattr("raybrew.evaluation.onnx_export.TOLERANCE", 0.0)
    with pytest.raises(rb.ConfigError, match="nothing is written"):
        export_onnx(folder, tmp_path / "out")
    assert {each.name for each in tmp_path.iterdir()} == {"model"}
    monkeypatch.setattr("raybrew.evaluation.onnx_export.find_spec", lambda _: None)
    with pytest.raises(rb.ConfigError, match=r"pip install 'raybrew\[onnx\]'"):
        export_onnx(folder)
