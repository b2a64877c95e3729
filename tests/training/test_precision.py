"""Precision inside a training step: what layers compute in, and how fp16's losses are scaled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import raybrew as rb
from tests.made import STUDENT_CONFIG, make_job, make_model
from tests.training.in_process import Recorder, build

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VALUE = "bert.encoder.layer.0.attention.self.value"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Units in the last place: what one rounding changes at most, relative to the value.
EPS = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"a": make_model(tmp_path_factory.mktemp("teachers") / "a", 0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def training_of(models, store, folder, precision: Any, *, distillation=None, **changes: Any):
    job = make_job(
        models,
        store,
        student=rb.Student(config={**STUDENT_CONFIG, **NO_DROPOUT}),
        distillation=distillation
        or rb.DistillationConfig(temperature=2, hard_label_weight=0.5, scale_t2=False),
        training=rb.TrainingConfig(
            precision=precision,
            **{
                "num_steps": 4,
                "batch_size": 16,
                "learning_rate": 1e-3,
                "lr_scheduler": "constant",
                "warmup_ratio": 0,
                "max_grad_norm": None,
                **changes,
            },
        ),
    )
    return build(job, folder)[0]


class Probe(Recorder):
    """Keeps the dtypes of a layer's activations and of all gradients, while training."""

    def __init__(self, training):
        super().__init__()
        self.activations: set[torch.dtype] = set()
        self.evaluated_in: set[torch.dtype] = set()
        self.gradients: list[Tensor] = []
        model = training.model
        model.get_submodule(VALUE).register_forward_hook(self._activation)
        model.get_parameter(f"{VALUE}.weight").register_hook(
            lambda grad: self.gradients.append(grad.clone())
        )

    def _activation(self, module: nn.Module, _: Any, output: Tensor) -> None:
        (self.activations if module.training else self.evaluated_in).add(output.dtype)


@pytest.mark.parametrize("precision", DTYPES)
def test_layers_compute_in_the_precision_and_weights_stay_in_float32(
    models, store, tmp_path, precision
):
    training = training_of(models, store, tmp_path, precision)
    probe = Probe(training)
    training.run(probe)
    assert probe.activations == {DTYPES[precision]}
    # What is evaluated is the student as it is saved.
    assert probe.evaluated_in == {torch.float32}
    assert {grad.dtype for grad in probe.gradients} == {torch.float32}
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert training.optimization.amp.scaler.is_enabled() is (precision == "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_are_those_of_fp32_but_for_roundings(models, store, tmp_path, precision):
    losses = {}
    for name in ("fp32", precision):
        recorder = Recorder()
        training_of(models, store, tmp_path / name, name).run(recorder)
        losses[name] = recorder.term("sum")
    differences = [abs(a - b) for a, b in zip(losses["fp32"], losses[precision], strict=True)]
    # The first step's: the weights are the same, and the logits of a few layers are rounded.
    assert 0 < differences[0] < EPS[precision]
    assert max(differences) < 8 * EPS[precision]


def first_gradient(models, store, folder, precision: str, monkeypatch, scale: float, **more: Any):
    monkeypatch.setattr("raybrew.training.optimization.FIRST_SCALE", scale)
    training = training_of(models, store, folder, precision, num_steps=1, **more)
    probe = Probe(training)
    training.run(probe)
    (gradient,) = probe.gradients
    return gradient


def test_the_gradient_of_fp16_is_that_of_fp32_times_the_scale(models, store, tmp_path, monkeypatch):
    plain = first_gradient(models, store, tmp_path / "1", "fp32", monkeypatch, 1.0)
    for scale in (2.0**8, 2.0**12):
        scaled = first_gradient(models, store, tmp_path / str(scale), "fp16", monkeypatch, scale)
        ratio = (scaled.norm() / plain.norm()).item()
        assert ratio == pytest.approx(scale, rel=16 * EPS["fp16"])


def test_gradients_too_small_for_fp16_reach_the_weights_by_the_scale(
    models, store, tmp_path, monkeypatch
):
    # A row's gradient is about 1e-8 at the logits, and less below: fp16's smallest number is 6e-8.
    tiny = {
        "distillation": rb.DistillationConfig(
            temperature=2, kd_loss_weight=1e-6, hard_label_weight=0, scale_t2=False
        )
    }
    plain = first_gradient(models, store, tmp_path / "1", "fp32", monkeypatch, 1.0, **tiny)
    unscaled = first_gradient(models, store, tmp_path / "2", "fp16", monkeypatch, 1.0, **tiny)
    scaled = first_gradient(models, store, tmp_path / "3", "fp16", monkeypatch, 2.0**26, **tiny)
    assert plain.abs().max() > 0
    assert not unscaled.any()
    assert (scaled / 2.0**26 - plain).norm() < 0.02 * plain.norm()


class Weights(Recorder):
    """Keeps a copy of the weights, and the learning rate's step, after each step."""

    def __init__(self, training):
        super().__init__()
        self._training = training
        self.weights: list[dict[str, Tensor]] = [self._copy()]

    def _copy(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self._training.model.named_parameters()}

    def progress(self, step: int) -> None:
        self.weights.append(self._copy())

    def moved(self) -> list[bool]:
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairs]


def test_a_step_that_overflows_is_left_out_halves_the_scale_and_shows_in_the_figures(
    models, store, tmp_path, monkeypatch
):
    # Too large for the first steps: fp16 ends at 65,504.
    monkeypatch.setattr("raybrew.training.optimization.FIRST_SCALE", 2.0**32)
    training = training_of(models, store, tmp_path, "fp16", num_steps=14)
    recorder = Weights(training)
    metrics = training.run(recorder)
    moved = recorder.moved()
    overflows = moved.index(True)
    assert 0 < overflows < 14
    assert moved == [False] * overflows + [True] * (14 - overflows)
    scales = [values["train/loss_scale"] for values in recorder.values]
    assert scales == [2.0 ** (32 - n) for n in range(1, overflows + 1)] + [
        2.0 ** (32 - overflows)
    ] * (14 - overflows)
    assert metrics["train/loss_scale"] == scales[-1] == training.optimization.amp.scaler.get_scale()
    # No fault of the run: nothing is reported, and the schedule goes on.
    assert recorder.events == []
    assert "train/skipped_steps" not in metrics
    assert training.optimization.scheduler is not None
    assert training.optimization.scheduler.state_dict()["last_epoch"] == 14


def test_a_scale_is_a_figure_of_fp16_alone(models, store, tmp_path):
    for precision in ("fp32", "bf16"):
        metrics = training_of(models, store, tmp_path / precision, precision).run(Recorder())
        assert "train/loss_scale" not in metrics


def test_clipping_is_of_the_gradient_without_its_scale(models, store, tmp_path):
    steps = {}
    for precision in ("fp32", "fp16"):
        training = training_of(
            models,
            store,
            tmp_path / precision,
            precision,
            num_steps=1,
            optimizer="SGD",
            learning_rate=1.0,
            max_grad_norm=0.01,
        )
        recorder = Weights(training)
        training.run(recorder)
        before, after = recorder.weights
        steps[precision] = torch.cat([(after[n] - before[n]).flatten() for n in before])
        assert steps[precision].norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(steps["fp16"], steps["fp32"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "scale", "first_fault"),
    [
        ("fp32", 1.0, 1),
        ("bf16", 1.0, 1),
        # Halved by each of two steps, after which the scale can't be at fault.
        ("fp16", 4.0, 3),
    ],
)
def test_an_infinite_gradient_of_finite_losses_is_a_fault_where_no_scale_explains_it(
    models, store, tmp_path, monkeypatch, precision, scale, first_fault
):
    monkeypatch.setattr("raybrew.training.optimization.FIRST_SCALE", scale)
    training = training_of(models, store, tmp_path, precision, on_nan="skip")
    training.model.get_parameter(f"{VALUE}.weight").register_hook(lambda grad: grad * torch.inf)
    recorder = Weights(training)
    metrics = training.run(recorder)
    assert recorder.moved() == [False] * 4
    assert [event.who for event in recorder.events] == [
        f"step {step}" for step in range(first_fault, 5)
    ]
    assert metrics["train/skipped_steps"] == len(recorder.events)
    assert np.isfinite(recorder.term("sum")).all()
