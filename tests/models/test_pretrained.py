from pathlib import Path

import pytest
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    T5Config,
    XLNetConfig,
)

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.pretrained import read_config, read_tokenizer
from raybrew.models.students import save_student
from tests.models.checkpoints import WORDS, bert, build, check, one_teacher, save_tokenizer

BYTES = ByT5Tokenizer()


@pytest.fixture
def teachers(tmp_path: Path) -> dict[str, Teacher]:
    return one_teacher(tmp_path / "a", bert(), name="a")


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
    message = "the field: expected a tokenizer among config.json at .*knows only special tokens"
    with pytest.raises(ConfigError, match=message):
        read_tokenizer(str(tmp_path / "bare"), "the field")
    with pytest.raises(ConfigError, match=r"student\.tokenizer_from"):
        check(Student(model=str(tmp_path / "bare")), teachers)
    config, tokenizer = check(Student(model=str(tmp_path / "bare"), tokenizer_from="a"), teachers)
    assert (len(tokenizer), config.pad_token_id) == (len(WORDS), 0)


@pytest.mark.parametrize(
    "config", [DebertaV2Config, T5Config, XLNetConfig, GPT2Config, LlamaConfig]
)
def test_what_transformers_makes_up_without_files_is_no_tokenizer(config, tmp_path):
    config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"the field: expected a tokenizer among config\.json at"):
        read_tokenizer(str(tmp_path), "the field")


def test_a_tokenizer_of_bytes_needs_no_vocabulary_and_is_saved_with_the_student(tmp_path):
    folder = tmp_path / "given"
    bert(vocab_size=len(BYTES)).save_pretrained(folder)
    BYTES.save_pretrained(folder)
    teachers = {"a": Teacher(name="a", task="t", model=str(folder))}
    model, own = build(Student(config={"num_hidden_layers": 1}), teachers)
    save_student(model, own, tmp_path / "student")
    for tokenizer in (own, read_tokenizer(str(tmp_path / "student"), "the field")):
        assert tokenizer("a dog")["input_ids"] == BYTES("a dog")["input_ids"]


def test_transformers_decides_which_files_hold_a_tokenizer(tmp_path, monkeypatch):
    DebertaV2Config().save_pretrained(tmp_path)
    (tmp_path / "spm.model").write_bytes(b"")  # as DeBERTa-v3 is published
    asked = []
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda path, **_: asked.append(path) or BYTES
    )
    assert read_tokenizer(str(tmp_path), "the field") is BYTES
    assert asked == [str(tmp_path)]


def test_a_vocabulary_that_needs_sentencepiece_names_the_package(tmp_path, monkeypatch):
    DebertaV2Config().save_pretrained(tmp_path)
    (tmp_path / "spm.model").write_bytes(b"")
    monkeypatch.setattr("raybrew.models.pretrained.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"among config\.json, spm\.model at .*sentencepiece\)"):
        read_tokenizer(str(tmp_path), "the field")


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
