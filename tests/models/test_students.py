import logging
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM
from transformers.utils import logging as transformers_logging

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.pretrained import quiet_transformers
from tests.models.checkpoints import (
    bert,
    build,
    check,
    distilbert,
    one_teacher,
    same,
    save_teacher,
    save_tokenizer,
    weights,
)


@pytest.fixture
def teachers(tmp_path: Path) -> dict[str, Teacher]:
    return one_teacher(tmp_path / "a", bert(), name="a")


# config: random weights


def test_config_changes_the_first_teachers_configuration(teachers):
    model, tokenizer = build(
        Student(config={"num_hidden_layers": 1, "hidden_size": 8}), teachers, 3
    )
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 8)
    assert model.config.intermediate_size == 32
    assert model.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert model.config.label2id == {"class 0": 0, "class 1": 1, "class 2": 2}
    assert tokenizer.convert_tokens_to_ids("film") == 6
    assert model.training


@pytest.mark.parametrize(
    "student",
    [
        Student(config={"num_hidden_layers": 2}),
        Student(layers_from=("a", (0, 3))),
        Student(model="a"),
    ],
    ids=["config", "layers", "model"],
)
def test_one_seed_gives_one_set_of_bits_and_leaves_the_global_generator(student, teachers):
    if student.model:
        student = Student(model=teachers["a"].model)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = build(student, teachers, num_labels=3)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = build(student, teachers, num_labels=3)[0].state_dict()
    other = build(student, teachers, num_labels=3, seed=1)[0].state_dict()
    assert same(first, again)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_config_speaks_the_models_own_names_and_the_common_ones(tmp_path):
    path = save_teacher(tmp_path / "d", distilbert())
    teachers = {"d": Teacher(name="d", task="t", model=path)}
    own, _ = check(Student(config={"n_layers": 1}), teachers)
    common, _ = check(Student(config={"num_hidden_layers": 1}), teachers)
    assert own.num_hidden_layers == common.num_hidden_layers == 1


def test_unknown_key_of_the_configuration_names_the_nearest(teachers):
    with pytest.raises(ConfigError, match=r"student\.config\.hiden_size.*'hidden_size'"):
        check(Student(config={"hiden_size": 8}), teachers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 17}, "17"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_act": "gellu"}, "KeyError: 'gellu'"),
        ({"num_labels": 4}, "label_names decide"),
        ({"model_type": "gpt2"}, "tokenizer_from"),
        ({"vocab_size": 3}, "all 8 tokens of its tokenizer, got vocab_size 3"),
    ],
)
def test_configurations_that_make_no_model_are_refused_before_weights(teachers, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(Student(config=changes), teachers)


def test_config_without_teachers_needs_a_base(teachers):
    with pytest.raises(ConfigError, match=r"model\.tokenizer_from"):
        check(Student(config={}), {}, what="model")
    config, _ = check(Student(config={}, tokenizer_from=teachers["a"].model), {})
    assert config.num_hidden_layers == 4


# model: pretrained weights


def test_model_keeps_a_head_of_the_right_size(teachers):
    model, _ = build(Student(model=teachers["a"].model), {})
    assert same(model.state_dict(), weights(teachers["a"].model))


def test_model_gets_a_fresh_head_where_sizes_differ_and_says_so(teachers, caplog):
    caplog.set_level(logging.INFO, "raybrew")
    model, _ = build(Student(model=teachers["a"].model), {}, num_labels=5)
    assert model.state_dict()["classifier.weight"].shape == (5, 16)
    body = {k: v for k, v in weights(teachers["a"].model).items() if k.startswith("bert.")}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in body.items())
    assert "newly initialised head: classifier.bias, classifier.weight" in caplog.text


def test_model_without_head_and_pooler_says_what_is_fresh(tmp_path, caplog):
    with quiet_transformers():
        BertForMaskedLM(bert()).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, pad_token="[PAD]")
    caplog.set_level(logging.INFO, "raybrew")
    build(Student(model=str(tmp_path)), {})
    assert [(record.levelname, "pooler" in record.getMessage()) for record in caplog.records] == [
        ("INFO", False),
        ("WARNING", True),
    ]


def test_half_precision_weights_become_float32(tmp_path):
    path = save_teacher(tmp_path / "half", bert(dtype="bfloat16"))
    model, _ = build(Student(model=path), {})
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_loading_prints_nothing_and_restores_the_verbosity(teachers, capfd):
    before = transformers_logging.get_verbosity()
    build(Student(model=teachers["a"].model), {}, num_labels=5)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert transformers_logging.get_verbosity() == before
    assert transformers_logging.is_progress_bar_enabled()


def test_weights_of_another_architecture_are_refused(teachers, tmp_path):
    folder = Path(save_teacher(tmp_path / "d", distilbert()))
    bert().save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"student\.model: expected weights of a bert model"):
        build(Student(model=str(folder)), {})


def test_weights_that_contradict_their_configuration_are_refused(teachers):
    bert(intermediate_size=48).save_pretrained(teachers["a"].model)
    with pytest.raises(ConfigError, match=r"shape \(48,\).*got \(32,\)"):
        build(Student(model=teachers["a"].model), {})


def test_damaged_weights_are_refused(teachers):
    file = Path(teachers["a"].model) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"student\.model: expected weights"):
        build(Student(model=teachers["a"].model), {})


def test_layers_may_come_from_a_model_that_is_no_teacher(tmp_path):
    path = save_teacher(tmp_path / "encoder", bert())
    model, _ = build(Student(layers_from=(path, (1,))), {})
    assert model.config.num_hidden_layers == 1
    source, layer = weights(path), model.state_dict()
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(layer[name.format(0)], source[name.format(1)])
    with pytest.raises(ConfigError, match=r"student\.layers_from: expected a folder.*got '/nope'"):
        check(Student(layers_from=("/nope", (0,))), {})
    with pytest.raises(ConfigError, match=r"layers_from: expected layers of.*got 9"):
        check(Student(layers_from=(path, (9,))), {})
