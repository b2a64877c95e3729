import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers.utils import logging as transformers_logging

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.layers import layer_stack
from raybrew.models.pretrained import meta_classifier, quiet_transformers
from raybrew.models.students import (
    build_student,
    freeze,
    read_config,
    read_tokenizer,
    student_config,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}


def bert(**changes) -> BertConfig:
    return BertConfig(**{**SIZES, "num_hidden_layers": 4, **changes})


def distilbert() -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=len(WORDS),
        dim=16,
        n_heads=2,
        n_layers=4,
        hidden_dim=32,
        max_position_embeddings=24,
    )


def roberta() -> RobertaConfig:
    return RobertaConfig(
        **SIZES, num_hidden_layers=4, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )


def electra() -> ElectraConfig:
    return ElectraConfig(**SIZES, embedding_size=8, num_hidden_layers=4)


def gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=len(WORDS),
        n_embd=16,
        n_head=2,
        n_layer=4,
        n_positions=24,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def modernbert() -> ModernBertConfig:
    return ModernBertConfig(
        **SIZES,
        num_hidden_layers=4,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )


def save_tokenizer(folder: Path, **special: str) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", **special
    ).save_pretrained(folder)


def save_teacher(folder: Path, config: PreTrainedConfig, num_labels: int = 2, seed: int = 1) -> str:
    config.num_labels = num_labels
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return str(folder)


@pytest.fixture
def teachers(tmp_path: Path) -> dict[str, Teacher]:
    return {"a": Teacher(name="a", task="t", model=save_teacher(tmp_path / "a", bert()))}


def weights(path: str) -> dict[str, torch.Tensor]:
    with quiet_transformers():
        return AutoModelForSequenceClassification.from_pretrained(path).state_dict()


def build(student: Student, teachers: dict[str, Teacher], num_labels: int = 2, seed: int = 0):
    names = [f"class {index}" for index in range(num_labels)]
    return build_student(
        student, num_labels=num_labels, label_names=names, seed=seed, teachers=teachers
    )


def check(student: Student, teachers: dict[str, Teacher], num_labels: int = 2):
    return student_config(student, num_labels=num_labels, label_names=None, teachers=teachers)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


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
        student_config(
            Student(config={}), num_labels=2, label_names=None, teachers={}, what="model"
        )
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


# layers_from


@pytest.mark.parametrize("make", [bert, distilbert, roberta, electra, gpt2, modernbert])
def test_chosen_layers_and_everything_around_them_come_from_the_teacher(make, tmp_path):
    path = save_teacher(tmp_path / "m", make())
    teachers = {"m": Teacher(name="m", task="t", model=path)}
    model, _ = build(Student(layers_from=("m", (1, 3))), teachers)
    stack, given, taken = layer_stack(model), weights(path), model.state_dict()
    assert model.config.num_hidden_layers == 2
    for name, tensor in taken.items():
        origin = name.replace(f"{stack}.1.", f"{stack}.3.").replace(f"{stack}.0.", f"{stack}.1.")
        assert torch.equal(tensor, given[origin]), name


@pytest.mark.parametrize("make", [bert, distilbert, gpt2])
def test_all_layers_make_the_teacher_again(make, tmp_path):
    path = save_teacher(tmp_path / "m", make())
    teachers = {"m": Teacher(name="m", task="t", model=path)}
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
    path = save_teacher(tmp_path / "m", modernbert())
    teachers = {"m": Teacher(name="m", task="t", model=path)}
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
    from transformers import AlbertConfig

    config = AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=4)
    with pytest.raises(ConfigError, match="one stack of layers, got 'albert'"):
        layer_stack(meta_classifier(config, "x"))


# freeze


def test_freeze_stops_at_whole_numbers():
    model = meta_classifier(bert(num_hidden_layers=11), "x")
    freeze(model, ["layer.1"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(".layer.1." in name for name in frozen)


def test_build_freezes_and_counts(teachers):
    model, _ = build(Student(model=teachers["a"].model, freeze=("embeddings",)), {})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if "embeddings" not in n}
    assert freeze(model, ["word_embeddings", "LayerNorm"]) == 1 + 2 * (1 + 2 * 4)


def test_freeze_of_nothing_names_the_nearest_and_changes_nothing():
    model = meta_classifier(bert(), "x")
    with pytest.raises(ConfigError, match=r"student\.freeze.*'embedings'.*'embeddings'"):
        freeze(model, ["classifier", "embedings"], "student.freeze")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("patterns", [["bert", "classifier"], [""]])
def test_freeze_of_everything_is_refused(patterns):
    model = meta_classifier(bert(), "x")
    with pytest.raises(ConfigError):
        freeze(model, patterns)
    assert all(p.requires_grad for p in model.parameters())


# reading


def test_paths_that_hold_no_model_name_the_field_and_what_is_there(teachers, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    cases = {
        "empty": "holds nothing",
        "other": "notes.txt",
        "other/notes.txt": "got the file",
        "othr": "did you mean .*other",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=f"^the field: expected .*config.json.*{message}"):
            read_config(str(tmp_path / name), "the field")


def test_hub_id_says_that_the_hub_is_out_of_reach():
    with pytest.raises(ConfigError, match=r"student\.model: .*'no-one/nothing'.*offline"):
        read_config("no-one/nothing", "student.model")


def test_broken_config_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", ')
    with pytest.raises(ConfigError, match="the field: expected a model configuration"):
        read_config(str(tmp_path), "the field")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ConfigError, match="no-such-model"):
        read_config(str(tmp_path), "the field")


def test_folder_without_tokenizer_is_refused(teachers, tmp_path):
    bert().save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="expected a folder with a tokenizer"):
        read_tokenizer(str(tmp_path / "bare"), "the field")
    with pytest.raises(ConfigError, match=r"student\.tokenizer_from"):
        check(Student(model=str(tmp_path / "bare")), teachers)
    config, tokenizer = check(Student(model=str(tmp_path / "bare"), tokenizer_from="a"), teachers)
    assert (len(tokenizer), config.pad_token_id) == (len(WORDS), 0)


def test_tokenizer_without_padding_is_refused(teachers):
    save_tokenizer(Path(teachers["a"].model))
    with pytest.raises(ConfigError, match="padding token"):
        check(Student(model=teachers["a"].model), {})


def test_config_without_weights_is_refused_at_the_build(tmp_path):
    bert().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, pad_token="[PAD]")
    check(Student(model=str(tmp_path)), {})
    with pytest.raises(ConfigError, match=r"expected a folder with weights"):
        build(Student(model=str(tmp_path)), {})


def test_wrong_number_of_names_is_refused(teachers):
    with pytest.raises(ConfigError, match="expected 3 label names, got 2"):
        student_config(Student(config={}), num_labels=3, label_names=["x", "y"], teachers=teachers)
