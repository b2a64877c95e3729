"""A job's losses at two paddings of the same rows: of the student's, and of the teachers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raybrew as rb
import raybrew.teachers.teacher
import raybrew.training.batches
from raybrew.data.split import collate
from raybrew.matches.match_losses import BUILT_IN_MATCH_LOSSES, match_loss
from tests.made import make_data, make_model
from tests.tasks.made_models import make_rows, make_task_model, names_of
from tests.training.in_process import Recorder, build

SHORT, LONG = 16, 56
SIZE = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BETA = {"temperature_scheduler_options": {"beta": 1.0}}
SAME_SIZE = {"hidden_mse", "cos", "pkd", "fsp", "gram", "emd"}


def matches() -> list[dict[str, Any]]:
    """One of each built-in loss."""
    found = []
    for name in sorted(BUILT_IN_MATCH_LOSSES):
        options = {"num_relation_heads": 2} if name == "minilmv2_relation" else {}
        loss = match_loss(name, options)
        layer: Any = 1 if loss.num_layers == 1 else [1, 2]
        feature = loss.features[0]
        last = 0 if feature != "hidden" else layer
        match = {"layer_T": last, "layer_S": last, "feature": feature, "loss": name}
        proj = {"proj": ["linear", 16, 32]} if name in SAME_SIZE else {}
        found.append({**match, **proj, "options": options, "weight": 0.1})
    return found


def run_padded(
    monkeypatch: pytest.MonkeyPatch,
    task: rb.Task,
    teachers: dict[str, str],
    folder: Path,
    lengths: tuple[int, int],
    **objective: Any,
) -> tuple[dict[str, list[float]], torch.Tensor, list[Any]]:
    """Take two steps; return the losses, the student's weights, and the labels.

    Args:
        monkeypatch: pads each batch.
        task: the only one.
        teachers: of it.
        folder: for store and data.
        lengths: that batches of teachers and of the student are padded to.
        objective: settings of it.
    """
    modules = (raybrew.teachers.teacher, raybrew.training.batches)
    for module, length in zip(modules, lengths, strict=True):

        def padded(view, rows, pad_token_id, pad_to=None, length=length):
            return collate(view, rows, pad_token_id, length)

        monkeypatch.setattr(module, "collate", padded)
    dropout = {} if task.kind == "causal-lm" else NO_DROPOUT
    job = rb.DistillJob(
        tasks=[task],
        teachers=[
            rb.Teacher(name=name, task="t", model=model, batch_tokens=64)
            for name, model in teachers.items()
        ],
        student=rb.Student(config={**SIZE, **dropout}),
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5, **objective),
        training=rb.TrainingConfig(
            num_steps=2, batch_size=6, learning_rate=1e-3, warmup_ratio=0, num_threads=1
        ),
        labels=rb.LabelConfig(store=str(folder / "store"), window=2),
        tracking=rb.TrackingConfig(log_every=1, progress=False),
    )
    training, pool = build(job, folder / "data")
    recorder = Recorder()
    training.run(recorder)
    terms = {
        name: [values[name] for values in recorder.values]
        for name in recorder.values[0]
        if name.startswith("train/t/")
    }
    assert training.labels is not None
    pool.flush()
    payloads_of_runs = []
    for source in training.labels.teachers:
        for store in source.stores.values():
            store.refresh(now=True)
            found, payload = store.read(source.view.keys)
            assert payload is not None
            payloads_of_runs.append((found, payload))
    weights = [parameter.detach().flatten() for parameter in training.module.parameters()]
    return terms, torch.cat(weights), payloads_of_runs


def same_at_two_paddings(
    monkeypatch: pytest.MonkeyPatch,
    task: rb.Task,
    teachers: dict[str, str],
    folder: Path,
    **objective: Any,
) -> None:
    short, long = (
        run_padded(monkeypatch, task, teachers, folder / str(length), (length, length), **objective)
        for length in (SHORT, LONG)
    )
    for (found, one), (same_found, other) in zip(short[2], long[2], strict=True):
        assert np.array_equal(found, same_found)
        np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-5)
        if one.offsets is not None:
            assert np.array_equal(one.offsets, other.offsets)
    for name, values in short[0].items():
        np.testing.assert_allclose(long[0][name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert all(np.isfinite(values).all() for values in short[0].values())
    # Adam turns a gradient's rounding near 0 into a step of either sign.
    torch.testing.assert_close(long[1], short[1], rtol=0, atol=2.1e-3)
    assert (long[1] - short[1]).abs().mean() < 1e-5


def test_every_match_loss(monkeypatch, tmp_path):
    task = rb.Task(name="t", train=make_data(12), max_length=SHORT)
    model = make_model(tmp_path / "teacher", 0)
    same_at_two_paddings(monkeypatch, task, {"a": model}, tmp_path, matches=matches())


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("token-classification", {"kd_loss": "dist"}),
        ("question-answering", {"temperature_scheduler": "cwsm", **BETA}),
        ("question-answering", {"mixture": "softmax_neg_entropy", "kd_loss": "jsd"}),
        ("causal-lm", {"kd_loss": "skew_kl"}),
        ("multi-label", {}),
        ("regression", {}),
    ],
)
def test_every_kind_of_task(monkeypatch, tmp_path, kind, objective):
    names = names_of(kind) if kind in ("token-classification", "multi-label") else None
    task = rb.Task(
        name="t",
        kind=kind,
        train=make_rows(kind, 12),
        max_length=40 if kind == "question-answering" else SHORT,
        stride=4,
        label_names=list(names) if names else None,
    )
    teachers = {n: make_task_model(tmp_path / n, kind, seed) for seed, n in enumerate("ab")}
    same_at_two_paddings(monkeypatch, task, teachers, tmp_path, **objective)
