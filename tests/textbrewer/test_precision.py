"""The facade's mixed precision: what layers compute in, and how fp16's losses are scaled."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.textbrewer import script
from tests.textbrewer.script import OURS
from tests.textbrewer.test_kept_labels import KEPT, run

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def float16_on_the_cpu(monkeypatch):
    """Float16 is the facade's choice on a GPU alone; the steps are the same on a CPU."""

    def precision(config: Any, device: torch.device) -> str:
        return "fp16" if config.fp16 else "fp32"

    monkeypatch.setattr("raybrew.textbrewer.distiller_train._precision", precision)


def watched(model: nn.Module) -> set[torch.dtype]:
    seen: set[torch.dtype] = set()
    model.get_submodule(QUERY).register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    return seen


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize(
    ("training", "dtype"),
    [
        ({}, torch.float32),
        ({"bf16": True}, torch.bfloat16),
        ({"fp16": True}, torch.bfloat16),
        ({"fp16": True, "fp16_opt_level": "O0"}, torch.float32),
    ],
    ids=["full", "bf16", "fp16 of a CPU", "O0"],
)
def test_student_and_teacher_compute_in_the_precision(tmp_path, training, dtype, caching):
    teacher, student = script.model(0), script.model(9, layers=1)
    seen = watched(teacher), watched(student)
    run(
        tmp_path,
        "GeneralDistiller",
        {**KEPT, "is_caching_logits": caching},
        teacher,
        student=student,
        training=training,
        num_epochs=1,
    )
    assert seen == ({dtype}, {dtype})
    assert {p.dtype for p in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("training", [{}, {"bf16": True}], ids=["full", "bf16"])
def test_a_trainer_without_teacher_computes_in_the_precision(tmp_path, training):
    student = script.model(9, layers=1)
    seen = watched(student)
    trainer = OURS.BasicTrainer(
        script.settings(OURS, tmp_path, **training), student, script.adaptor
    )
    with trainer:
        trainer.train(
            torch.optim.AdamW(student.parameters(), lr=1e-3),
            script.loader(),
            num_epochs=1,
            **script.ARGUMENTS,
        )
    assert seen == {torch.bfloat16 if training else torch.float32}


@pytest.mark.usefixtures("float16_on_the_cpu")
def test_a_gradient_of_fp16_is_scaled_while_it_is_taken(tmp_path):
    def gradient(training: Any) -> torch.Tensor:
        student = script.model(9, layers=1)
        seen: list[torch.Tensor] = []
        student.get_parameter(f"{QUERY}.weight").register_hook(lambda g: seen.append(g.clone()))
        run(
            tmp_path / str(training),
            "GeneralDistiller",
            {"temperature": 4},
            script.model(0),
            student=student,
            training=training,
            num_epochs=1,
        )
        return seen[0]

    ratio = gradient({"fp16": True}).norm() / gradient({}).norm()
    assert ratio.item() == pytest.approx(2.0**16, rel=0.02)


class TwoWeights(nn.Module):
    """A model whose losses have a gradient that is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, loss: str) -> torch.Tensor:
        losses = {
            # The gradient is (3, 4), of norm 5; clipped to a tenth of it.
            "square": self.weight.square().sum() / 2,
            "overflow": self.weight.sum() * torch.inf,
            "linear": (self.weight * torch.tensor([0.0, 0.25])).sum(),
        }
        return losses[loss]


@pytest.mark.usefixtures("float16_on_the_cpu")
@pytest.mark.parametrize("clipped", [True, False])
def test_a_step_of_fp16_takes_the_scale_off_and_leaves_an_overflow_out(tmp_path, clipped):
    model, seen = TwoWeights(), []
    config = script.settings(OURS, tmp_path, fp16=True, resume=False)
    trainer = OURS.BasicTrainer(config, model, lambda batch, outputs: {"losses": outputs})

    class Seen:
        """Stands where the schedule is, which follows each step."""

        def step(self) -> None:
            seen.append((model.weight.tolist(), trainer._scaler.get_scale()))

    trainer.train(
        torch.optim.SGD(model.parameters(), lr=1.0),
        [{"loss": loss} for loss in ("square", "overflow", "linear")],
        num_epochs=1,
        scheduler=Seen(),
        max_grad_norm=0.5 if clipped else -1.0,
    )
    (first, scale), (second, lower), (third, _) = seen
    assert first == pytest.approx([2.7, 3.6] if clipped else [0.0, 0.0])
    assert second == first
    assert lower == scale / 2
    assert third == pytest.approx([first[0], first[1] - 0.25])
