"""A script gives the same losses with either import: dropout on, shuffled, all trainers."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from tests.textbrewer import script
from tests.textbrewer.script import OURS, PUBLISHED, Losses

TOLERANCE = 2e-5
PROJ = ["linear", 8, 16, {"lr": 3e-3}]
MATCHES: list[dict[str, Any]] = [
    {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
    {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "cos", "weight": 0.5},
    {"layer_T": [0, 2], "layer_S": [0, 1], "feature": "hidden", "loss": "nst", "weight": 1},
    {"layer_T": 1, "layer_S": 0, "feature": "attention", "loss": "attention_mse", "weight": 10},
    {"layer_T": 1, "layer_S": 0, "feature": "attention", "loss": "attention_ce", "weight": 1},
]
SCHEDULE = {
    "scheduler_class": get_linear_schedule_with_warmup,
    "scheduler_args": {"num_warmup_steps": 2, "num_training_steps": 20},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def both(folder: Path, kind: str, student: nn.Module, *arguments: Any, **more: Any):
    """Run with either package from the same weights; return both losses."""
    distillation, teachers, loaders = arguments
    found = []
    for package in (PUBLISHED, OURS):
        losses, distiller = script.distil(
            package,
            kind,
            folder / package.__name__,
            copy.deepcopy(distillation),
            teachers,
            copy.deepcopy(student),
            loaders,
            **more,
        )
        found.append((losses, distiller))
    return found


def compare(theirs: Losses, ours: Losses, *, steps: int) -> None:
    assert len(ours.total) == len(theirs.total) == steps
    assert ours.of.keys() == theirs.of.keys()
    for tag, values in theirs.of.items():
        np.testing.assert_allclose(ours.of[tag], values, atol=TOLERANCE, rtol=1e-5, err_msg=tag)
    assert len(set(ours.total)) == steps


@pytest.mark.parametrize(
    ("distillation", "train"),
    [
        ({"temperature": 8}, {"num_epochs": 2}),
        ({"kd_loss_type": "mse", "hard_label_weight": 0.5}, {"num_epochs": 2, **SCHEDULE}),
        (
            {"temperature_scheduler": ["flsw", 1, 2], "probability_shift": True},
            {"num_steps": 7, "max_grad_norm": 0.5},
        ),
        (
            {
                "temperature_scheduler": ["cwsm", 1],
                "kd_loss_weight_scheduler": "linear_decay",
                "hard_label_weight_scheduler": "linear_growth",
            },
            {"num_epochs": 2},
        ),
    ],
    ids=["ce", "mse", "flsw", "schedules"],
)
def test_basic(tmp_path, distillation, train):
    training = {"gradient_accumulation_steps": 2, "ckpt_steps": 3}
    (theirs, _), (ours, distiller) = both(
        tmp_path,
        "BasicDistiller",
        script.model(1, layers=1),
        distillation,
        script.model(0),
        script.loader(),
        training=training,
        **train,
    )
    # Five batches an epoch, so that with two a step the last one is trained on for nothing.
    compare(theirs, ours, steps=14 if "num_steps" in train else 10)
    files = [sorted(p.name for p in (tmp_path / each.__name__).glob("*.pkl")) for each in BOTH]
    assert files[0] == files[1] != []
    assert not (tmp_path / OURS.__name__ / "resume").exists()
    assert distiller.label_counts["found"] == 0


BOTH = (PUBLISHED, OURS)


def test_matches_and_projections(tmp_path):
    small = script.model(1, layers=1, hidden=8)
    matches = [{**m, "proj": PROJ} if "hidden" in m["feature"] else m for m in MATCHES]
    matches[2] = MATCHES[2]
    matches.append({**matches[0], "loss": "pkd", "proj": ["tanh", 8, 16]})
    matches.append({**MATCHES[2], "loss": "fsp", "proj": ["relu", 8, 16]})
    (theirs, _), (ours, _) = both(
        tmp_path,
        "GeneralDistiller",
        small,
        {"temperature": 4, "hard_label_weight": 1, "intermediate_matches": matches},
        script.model(0),
        script.loader(),
        num_epochs=3,
    )
    compare(theirs, ours, steps=15)
    assert len(ours.of) == 10


def test_a_loss_of_the_scripts_own_on_two_layers(tmp_path, monkeypatch):
    for package in (PUBLISHED, OURS):
        monkeypatch.setitem(package.MATCH_LOSS_MAP, "own_pair", own_pair)
    (theirs, _), (ours, _) = both(
        tmp_path,
        "GeneralDistiller",
        script.model(1, layers=1),
        {"intermediate_matches": [{**MATCHES[2], "loss": "own_pair"}]},
        script.model(0),
        script.loader(),
        num_epochs=1,
    )
    compare(theirs, ours, steps=5)


def own_pair(states_S: Any, states_T: Any, mask: Any = None) -> Any:
    assert len(states_S) == len(states_T) == 2
    pairs = zip(states_S, states_T, strict=True)
    return sum(((s - t) ** 2 * mask.unsqueeze(-1)).mean() for s, t in pairs)


def test_matches_without_a_mask(tmp_path):
    def maskless(batch, outputs):
        found = script.adaptor(batch, outputs)
        found.pop("inputs_mask")
        return found

    (theirs, _), (ours, _) = both(
        tmp_path,
        "GeneralDistiller",
        script.model(1, layers=1),
        {"intermediate_matches": MATCHES},
        script.model(0),
        script.loader(),
        adaptors=(maskless, maskless),
        num_steps=5,
        training={"ckpt_steps": 5},
    )
    compare(theirs, ours, steps=5)


def test_tokens_with_a_mask(tmp_path):
    (theirs, _), (ours, _) = both(
        tmp_path,
        "GeneralDistiller",
        script.model(1, layers=1, per_token=True),
        {"temperature": 2, "hard_label_weight": 0.5, "intermediate_matches": MATCHES[:3]},
        script.model(0, per_token=True),
        script.loader(per_token=True),
        adaptors=(script.token_adaptor, script.token_adaptor),
        num_epochs=2,
    )
    compare(theirs, ours, steps=10)


def two_outputs(batch: Any, outputs: Any) -> dict[str, Any]:
    """As question answering: scores of every token, of a start and of an end."""
    start, end = outputs.logits[..., 0], outputs.logits[..., 1]
    return {"logits": [start, end], "logits_mask": batch["attention_mask"], "losses": outputs.loss}


def test_scores_of_tokens(tmp_path):
    (theirs, _), (ours, _) = both(
        tmp_path,
        "BasicDistiller",
        script.model(1, layers=1, per_token=True),
        {"temperature": 2, "hard_label_weight": 0.5},
        script.model(0, per_token=True),
        script.loader(per_token=True),
        adaptors=(two_outputs, two_outputs),
        num_epochs=2,
    )
    compare(theirs, ours, steps=10)


def test_several_teachers(tmp_path):
    (theirs, _), (ours, _) = both(
        tmp_path,
        "MultiTeacherDistiller",
        script.model(9, layers=1),
        {"temperature": 8, "hard_label_weight": 0.5, "probability_shift": True},
        [script.model(seed) for seed in range(3)],
        script.loader(),
        num_epochs=2,
    )
    compare(theirs, ours, steps=10)


class TwoHeads(nn.Module):
    """A student with a head for each of two tasks."""

    def __init__(self):
        super().__init__()
        self.body: Any = script.model(3, layers=1)
        self.other = nn.Linear(16, script.CLASSES)

    def forward(self, **batch: Any) -> SimpleNamespace:
        outputs = self.body(**batch)
        other = self.other(outputs.hidden_states[-1][:, 0])
        return SimpleNamespace(
            logits=[outputs.logits, other],
            loss=outputs.loss,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def head(number: int):
    def of_head(batch, outputs):
        return {**script.adaptor(batch, outputs), "logits": outputs.logits[number]}

    return of_head


def test_several_tasks(tmp_path):
    tasks = ("first", "second")
    (theirs, _), (ours, _) = both(
        tmp_path,
        "MultiTaskDistiller",
        TwoHeads(),
        {"temperature": 4, "hard_label_weight": 0.5, "intermediate_matches": MATCHES[:1]},
        {name: script.model(seed) for seed, name in enumerate(tasks)},
        {name: script.loader(seed, batch_size=4 + 4 * seed) for seed, name in enumerate(tasks)},
        adaptors=(
            dict.fromkeys(tasks, script.adaptor),
            {name: head(number) for number, name in enumerate(tasks)},
        ),
        training={"ckpt_steps": 4, "gradient_accumulation_steps": 2},
        num_steps=9,
        tau=0.5,
    )
    compare(theirs, ours, steps=18)


@pytest.mark.parametrize("train", [{"num_epochs": 2}, {"num_epochs": 1, "num_steps": 6}])
def test_basic_trainer(tmp_path, train):
    found = []
    for package in BOTH:
        model = script.model(1, layers=1)
        script.seed_all(5)
        config = script.settings(package, tmp_path / package.__name__, ckpt_steps=3)
        trainer = package.BasicTrainer(config, model, script.adaptor)
        trainer.tb_writer = losses = Losses()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with trainer:
            trainer.train(optimizer, script.loader(), max_grad_norm=1.0, **SCHEDULE, **train)
        found.append(losses)
    compare(*found, steps=6 if "num_steps" in train else 10)


@pytest.mark.parametrize("name", ["nst", "attention_ce", "hidden_mse"])
def test_what_moves_with_the_padding_there_does_so_here(name):
    """The mask of a script's adaptors makes its nst divide by the padded length."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 2, 2, 8, 4, generator=generator)
    attention = torch.rand(2, 2, 2, 8, 8, generator=generator)
    mask = (torch.arange(8) < 5).long().expand(2, -1)

    def side(number: int, length: int) -> Any:
        if name == "attention_ce":
            return attention[number, :, :, :length, :length]
        layers = [layer[:, :length] for layer in hidden[number]]
        return layers if name == "nst" else layers[0]

    theirs, ours = (
        [
            float(package.MATCH_LOSS_MAP[name](side(0, n), side(1, n), mask=mask[:, :n]))
            for n in (5, 8)
        ]
        for package in (PUBLISHED, OURS)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (abs(ours[0] - ours[1]) > 1e-4) is (name != "hidden_mse")
