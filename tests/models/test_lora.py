"""Adapters on a student: what learns, what is saved, where a stopped run goes on."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

import raybrew as rb
from raybrew.models.students import MultiTaskStudent, task_folders
from raybrew.models.trainable import add_adapters, merged_state
from raybrew.runs.resolve import resolve_job
from raybrew.training.loop import StudentTraining
from tests.made import make_data, make_job, make_model, make_yes_no_data
from tests.training.in_process import Recorder, build

LORA = rb.Lora(rank=3, alpha=6, dropout=0.1, target_modules=["query", "attention.output.dense"])
MATCH = {"layer_T": 1, "layer_S": 1, "feature": "value", "loss": "minilm_value_relation"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def job_of(models: dict[str, str], store: Path, **changes: Any) -> rb.DistillJob:
    sections: dict[str, Any] = {
        "student": rb.Student(model=models["b"], lora=LORA),
        "training": rb.TrainingConfig(num_steps=8, batch_size=12, learning_rate=1e-2),
    }
    return make_job({"a": models["a"]}, store, **{**sections, **changes})


def of_two_tasks(models: dict[str, str], store: Path, folder: Path) -> rb.DistillJob:
    pairs = {"text": "word", "text_pair": "sentence", "max_length": 24}
    no_yes = make_model(folder / "c", 2, labels=("no", "yes"))
    return job_of(
        models,
        store,
        tasks=[
            rb.Task(name="sum", train=make_data(40), max_length=32),
            rb.Task(name="among", train=make_yes_no_data(30), **pairs),
        ],
        teachers=[
            rb.Teacher(name="a", task="sum", model=models["a"]),
            rb.Teacher(name="c", task="among", model=no_yes),
        ],
        mixing=rb.MixingConfig(sampling="every"),
    )


def trained(job: rb.DistillJob, folder: Path, num_steps: int | None = None) -> StudentTraining:
    training, pool = build(job, folder)
    training.num_steps = num_steps or training.num_steps
    training.run(Recorder())
    pool.flush()
    return training


def saved(training: StudentTraining, folder: Path) -> Path:
    folder.mkdir()
    training.save(folder)
    return folder


def test_adapters_and_heads_learn_and_the_saved_student_has_them_merged(models, tmp_path):
    objective = rb.DistillationConfig(hard_label_weight=0.5, matches=[MATCH])
    job = job_of(models, tmp_path / "store", distillation=objective)
    training = trained(job, tmp_path / "run")
    base = AutoModelForSequenceClassification.from_pretrained(models["b"])
    own = dict(training.model.named_parameters())
    learnt = {name for name, value in own.items() if value.requires_grad}
    assert {name.split(".")[0] for name in learnt} == {"bert", "classifier"}
    assert all(".lora_" in name for name in learnt if name.startswith("bert."))
    # Two layers, two adapters each, of two matrices; the head's weight and bias.
    assert len(learnt) == 2 * 2 * 2 + 2
    folder = saved(training, tmp_path / "checkpoint") / "student"
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = AutoTokenizer.from_pretrained(folder)(
        make_data(8, seed=5)["text"][:], padding=True, return_tensors="pt"
    )
    training.model.eval()
    with torch.inference_mode():
        ours = training.model(**batch).logits
        torch.testing.assert_close(loaded.eval()(**batch).logits, ours, atol=1e-5, rtol=1e-5)
        assert (base.eval()(**batch).logits - ours).abs().max() > 0.1
    changed = {
        name
        for name, value in loaded.state_dict().items()
        if not torch.equal(value, base.state_dict()[name])
    }
    wanted = {
        f"bert.encoder.layer.{n}.attention.{part}.weight"
        for n in (0, 1)
        for part in ("self.query", "output.dense")
    }
    assert changed == wanted | {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(models, tmp_path, tasks):
    job = job_of(models, tmp_path / "store")
    if tasks == 2:
        job = of_two_tasks(models, tmp_path / "store", tmp_path)
    whole = trained(job, tmp_path / "1")
    checkpoint = saved(trained(job, tmp_path / "2", num_steps=3), tmp_path / "checkpoint")
    second, _ = build(job, tmp_path / "3")
    second.resume(checkpoint)
    second.run(Recorder())
    state = whole.model.state_dict()
    assert any(".lora_A." in name for name in state)
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    other = job.student.model_copy(update={"lora": rb.Lora(rank=2)})
    third, _ = build(job.model_copy(update={"student": other}), tmp_path / "4")
    with pytest.raises(rb.CheckpointError, match="the adapters and heads of this job"):
        third.resume(checkpoint)


def test_tasks_share_the_adapters_of_their_trunk(models, tmp_path):
    training = trained(of_two_tasks(models, tmp_path / "store", tmp_path), tmp_path / "run")
    assert isinstance(training.model, MultiTaskStudent)
    folder = saved(training, tmp_path / "checkpoint") / "student"
    training.model.eval()
    name = "bert.encoder.layer.1.attention.self.query.weight"
    seen = []
    for number, path in enumerate(task_folders(folder).values()):
        head = AutoModelForSequenceClassification.from_pretrained(path).eval()
        ids = torch.tensor([[2, 7, 9, 3]])
        with torch.inference_mode():
            torch.testing.assert_close(
                head(ids).logits, training.model.model_of(number)(ids).logits, atol=1e-5, rtol=1e-5
            )
        seen.append(head.state_dict()[name])
    assert torch.equal(*seen)


def test_layers_of_gpt2_are_merged_the_other_way_round():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    )
    model.eval()
    plain = GPT2LMHeadModel(model.config).eval()
    add_adapters(model.transformer, rb.Lora(target_modules=("c_attn", "c_fc")), "student.lora")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    plain.load_state_dict(merged_state(model))
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_every_linear_layer_of_the_trunk_where_none_is_named(models, tmp_path):
    student = rb.Student(model=models["b"], lora=rb.Lora())
    training, _ = build(job_of(models, tmp_path / "store", student=student), tmp_path / "run")
    names = {n.split(".lora_")[0] for n, _ in training.model.named_parameters() if ".lora_" in n}
    # Query, key, value and three dense layers in each of two layers, and the pooler.
    assert len(names) == 2 * 6 + 1


def test_mistakes(models, tmp_path, monkeypatch):
    def refused(lora: rb.Lora, message: str):
        student = rb.Student(model=models["b"], lora=lora)
        with pytest.raises(rb.ConfigError, match=message):
            resolve_job(job_of(models, tmp_path / "store", student=student), tmp_path / "data")

    # A norm is there, and is no linear layer.
    for target, hint in (("qery", "did you mean 'query'"), ("LayerNorm", "they end in dense, key")):
        refused(
            rb.Lora(target_modules=(target,)),
            rf"student\.lora\.target_modules: .*linear layers.*BertModel.*'{target}'; {hint}",
        )
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(rb.Lora(), r"student\.lora: expected the library peft.*raybrew\[peft\]")
