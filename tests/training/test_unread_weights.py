"""Weights that no forward pass reads: found before the first step, and no hindrance to DDP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BigBirdForSequenceClassification

import raybrew as rb
from raybrew.training.loop import StudentTraining
from raybrew.training.module import ddp_options, unread_weights
from tests.made import make_data, make_job, make_model, make_tokenizer
from tests.models.families import family_config
from tests.own_models import Bag, BagConfig
from tests.training.in_process import Recorder, build

TRAINING = rb.TrainingConfig(num_steps=3, batch_size=8, learning_rate=1e-3, num_threads=1)


class LopsidedBag(Bag):
    """A class of a user with a layer that it forgot."""

    def __init__(self, config: BagConfig):
        super().__init__(config)
        self.forgotten = nn.Linear(2, 2)
        self.post_init()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def big_bird(folder: Path) -> rb.Student:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config: Any = family_config("BigBird", sep_token_id=3, num_hidden_layers=1, **dropout)
    config.num_labels = 3
    BigBirdForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))
    return rb.Student(model=str(folder))


def lopsided(folder: Path) -> rb.Student:
    make_tokenizer().save_pretrained(str(folder))
    BagConfig(vocab_size=45).save_pretrained(folder)
    return rb.Student(
        config={"width": 8},
        tokenizer_from=str(folder),
        architecture=LopsidedBag,
        adaptor="tests.own_models:read_bag",
    )


def training_of(student: rb.Student, folder: Path) -> StudentTraining:
    models = {"a": make_model(folder / "teacher", 0)}
    job = make_job(models, folder / "store", student=student, training=TRAINING)
    training, _ = build(job, folder / "data")
    return training


@pytest.mark.parametrize(
    ("student", "unread"), [(big_bird, "model.bert.pooler"), (lopsided, "model.forgotten")]
)
def test_ddp_trains_a_student_with_weights_that_it_never_reads(student, unread, tmp_path, group):
    chosen = student(tmp_path / "student")
    alone = training_of(chosen, tmp_path / "alone")
    alone.run(Recorder())

    training = training_of(chosen, tmp_path / "ddp")
    names = unread_weights(training.module, training.samples())
    assert sorted({name.rpartition(".")[0] for name in names}) == [unread]
    before = {name: training.module.get_parameter(name).clone() for name in names}
    options: Any = ddp_options(training.module, training.samples())
    training.wrapped = DistributedDataParallel(training.module, **options)
    training.run(Recorder())
    for name, value in training.module.named_parameters():
        expected = alone.module.get_parameter(name)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0, msg=name)
        assert name not in before or torch.equal(value, before[name]), name


def test_a_student_that_reads_all_its_weights_spares_ddp_the_search(tmp_path):
    training = training_of(rb.Student(config={"num_hidden_layers": 1}), tmp_path)
    draws = torch.get_rng_state()
    assert ddp_options(training.module, training.samples()) == {}
    assert training.module.training
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(parameter.grad is None for parameter in training.module.parameters())
    for parameter in training.module.parameters():  # what is frozen is not missed
        parameter.requires_grad_(False)
    assert unread_weights(training.module, training.samples()) == []


def test_layers_that_are_dropped_at_random_are_looked_for_in_each_step(tmp_path):
    training = training_of(rb.Student(config={"num_hidden_layers": 1}), tmp_path)
    model: Any = training.module.model
    model.config.encoder_layerdrop = 0.1
    assert ddp_options(training.module, training.samples()) == {"find_unused_parameters": True}


def test_several_tasks_are_looked_through_in_each_step(tmp_path):
    model = make_model(tmp_path / "a", 0)
    job = make_job(
        {},
        tmp_path / "store",
        tasks=[rb.Task(name=name, train=make_data(20), max_length=32) for name in ("one", "two")],
        teachers=[rb.Teacher(name=name, task=name, model=model) for name in ("one", "two")],
        training=TRAINING,
    )
    training, _ = build(job, tmp_path / "data")
    assert ddp_options(training.module, training.samples()) == {"find_unused_parameters": True}
