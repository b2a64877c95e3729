import logging
from pathlib import Path

import pytest
import torch

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.layers import layer_stack
from raybrew.models.pretrained import meta_model
from tests.models.checkpoints import (
    SIZES,
    bert,
    build,
    check,
    distilbert,
    electra,
    gpt2,
    modernbert,
    one_teacher,
    roberta,
    same,
    save_teacher,
    weights,
)


@pytest.fixture
def teachers(tmp_path: Path) -> dict[str, Teacher]:
    return one_teacher(tmp_path / "a", bert(), name="a")


@pytest.mark.parametrize("make", [bert, distilbert, roberta, electra, gpt2, modernbert])
def test_chosen_layers_and_everything_around_them_come_from_the_teacher(make, tmp_path):
    teachers = one_teacher(tmp_path / "m", make(), name="m")
    path = teachers["m"].model_path
    model, _ = build(Student(layers_from=("m", (1, 3))), teachers)
    stack, given, taken = layer_stack(model), weights(path), model.state_dict()
    assert model.config.num_hidden_layers == 2
    for name, tensor in taken.items():
        origin = name.replace(f"{stack}.1.", f"{stack}.3.").replace(f"{stack}.0.", f"{stack}.1.")
        assert torch.equal(tensor, given[origin]), name


@pytest.mark.parametrize("make", [bert, distilbert, gpt2])
def test_all_layers_make_the_teacher_again(make, tmp_path):
    teachers = one_teacher(tmp_path / "m", make(), name="m")
    path = teachers["m"].model_path
    model, _ = build(Student(layers_from=("m", (0, 1, 2, 3))), teachers)
    teacher, _ = build(Student(model=path), {})
    ids = torch.tensor([[2, 4, 6, 3]])
    with torch.inference_mode():
        expected = teacher.eval()(input_ids=ids).logits
        assert torch.equal(model.eval()(input_ids=ids).logits, expected)


def test_a_file_written_anew_leaves_the_loaded_model_alone(teachers):
    model, _ = build(Student(model=teachers["a"].model), {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = Path(teachers["a"].model) / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\x7f" * (file.stat().st_size // 2))
    assert same(model.state_dict(), before)


def test_per_layer_lists_of_the_configuration_follow_the_layers(tmp_path):
    teachers = one_teacher(tmp_path / "m", modernbert(), name="m")
    config, _ = check(Student(layers_from=("m", (1, 3))), teachers)
    assert config.layer_types == ["sliding_attention", "full_attention"]


def test_head_of_another_size_stays_random(teachers, caplog):
    caplog.set_level(logging.INFO, "raybrew")
    model, _ = build(Student(layers_from=("a", (0,))), teachers, num_labels=3)
    given = weights(teachers["a"].model)
    assert torch.equal(
        model.state_dict()["bert.pooler.dense.weight"], given["bert.pooler.dense.weight"]
    )
    assert "newly initialised: classifier.bias, classifier.weight" in caplog.text


def test_layer_that_the_teacher_lacks_says_which_it_has(teachers):
    with pytest.raises(ConfigError, match=r"teacher 'a', which has 0 to 3, got 4"):
        check(Student(layers_from=("a", (0, 4))), teachers)


def test_layers_of_nobody_are_refused():
    with pytest.raises(ConfigError, match=r"layers_from: expected a teacher .*it has none.*'a'"):
        check(Student(layers_from=("a", (0,))), {})


def test_model_with_layers_gives_the_configuration(teachers, tmp_path):
    folder = save_teacher(
        tmp_path / "s", bert(num_hidden_layers=2, hidden_dropout_prob=0.3), seed=5
    )
    model, _ = build(Student(model=folder, layers_from=("a", (0, 2))), teachers)
    given = weights(teachers["a"].model)
    key = "encoder.layer.{}.output.dense.weight"
    assert model.config.hidden_dropout_prob == 0.3
    assert torch.equal(model.state_dict()["bert." + key.format(1)], given["bert." + key.format(2)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "which has 3, got 2"),
        ({"intermediate_size": 48}, r"layer\.0\.intermediate\.dense\.weight of shape \(48, 16\)"),
    ],
)
def test_model_that_does_not_fit_the_layers_is_refused(teachers, tmp_path, changes, message):
    folder = save_teacher(tmp_path / "s", bert(**{"num_hidden_layers": 2, **changes}))
    with pytest.raises(ConfigError, match=message):
        check(Student(model=folder, layers_from=("a", (0, 2))), teachers)


def test_layers_of_another_architecture_name_the_first_weight(teachers, tmp_path):
    folder = save_teacher(tmp_path / "r", roberta())
    with pytest.raises(ConfigError, match=r"roberta\.embeddings.* in teacher 'a', got none"):
        check(Student(model=folder, layers_from=("a", (0, 1, 2, 3))), teachers)


def test_a_teacher_whose_layers_have_no_weights_is_refused(teachers):
    bert(num_hidden_layers=5).save_pretrained(teachers["a"].model)
    with pytest.raises(ConfigError, match=r"teachers\[a\]\.model: expected all weights"):
        build(Student(layers_from=("a", (0, 4))), teachers)


def test_layer_stack_of_a_model_that_shares_its_layers_is_refused():
    from transformers import AlbertConfig, AutoModelForSequenceClassification

    config = AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=4)
    with pytest.raises(ConfigError, match="one stack of layers, got 'albert'"):
        layer_stack(meta_model(AutoModelForSequenceClassification, config, "x"))
