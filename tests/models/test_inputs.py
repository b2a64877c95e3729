from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from raybrew.config import Teacher
from raybrew.data.encoding import EncodedView, encode, view_from_ids
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import Padding
from raybrew.errors import ConfigError
from raybrew.models.inputs import enough_positions, fit_tokenizer, most_positions, padding_of
from raybrew.models.pretrained import meta_model, random_model
from raybrew.runs.checks import read_teacher
from raybrew.tasks import TASK_TYPES
from raybrew.teachers.teacher import ModelTeacher
from raybrew.training.module import StudentModule, TaskReader
from tests.made import made_teacher
from tests.models.families import family_config
from tests.models.saved_families import FAMILIES, family_tokenizer, save_family

# An answer is that of the example alone: whatever is in its batch, whichever way it is padded.

LENGTHS = (2, 9, 5, 9, 17, 3)
TASKS = ("sequence-classification", "token-classification", "question-answering", "causal-lm")


def has_head(family: str, task: str) -> bool:
    config = AutoConfig.for_model(family)
    known = type(config) in TASK_TYPES[task].model_class._model_mapping
    # As a language model an encoder reads the token that it predicts.
    return known and (task != "causal-lm" or FAMILIES[family][0] == "none")


CASES = [(family, task) for family in FAMILIES for task in TASKS if has_head(family, task)]


def texts_of(tokenizer) -> EncodedView:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in generator.integers(0, 40, size)) for size in LENGTHS]
    return view_from_ids(tokenizer(texts)["input_ids"])


def teacher_of(folder: str, task: str, batch_tokens: int) -> ModelTeacher:
    model = read_teacher(Teacher(name="a", task="x", model=folder, inputs="own"))
    padding = padding_of(model.tokenizer, model.config, TASK_TYPES[task].layout)
    return ModelTeacher(made_teacher("a", folder, "f", task, "float32", batch_tokens, padding, 1))


def rows_of(payload: Payload) -> list[np.ndarray]:
    if payload.offsets is None:
        return list(payload.values)
    return np.split(payload.values, payload.offsets[1:-1])


@pytest.mark.parametrize(("family", "task"), CASES)
def test_an_answer_is_that_of_the_example_alone(tmp_path, family, task):
    folder = save_family(tmp_path, family, TASK_TYPES[task].model_class)
    view = texts_of(family_tokenizer(FAMILIES[family][0]))
    signal = Signal()
    together = rows_of(teacher_of(folder, task, 4096).answer(view, (signal,))[signal.name])
    reference = TASK_TYPES[task].model_class.from_pretrained(folder).eval()
    for row, got in enumerate(together):
        ids = torch.from_numpy(view.take(np.array([row])).input_ids.astype(np.int64))[None]
        with torch.inference_mode():
            outputs = reference(input_ids=ids)
        if task == "question-answering":
            expected = torch.stack([outputs.start_logits[0], outputs.end_logits[0]], -1)
        else:
            expected = outputs.logits[0]
        np.testing.assert_allclose(got, expected.reshape(-1).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "xlnet", "t5"])
def test_what_a_tokenizer_says_of_the_side_changes_no_answer(tmp_path, family, side):
    task = "sequence-classification"
    folder = save_family(tmp_path, family, TASK_TYPES[task].model_class, padding_side=side)
    view = texts_of(family_tokenizer(FAMILIES[family][0]))
    signal = Signal()
    alone, together = (
        teacher_of(folder, task, tokens).answer(view, (signal,))[signal.name].values
        for tokens in (1, 4096)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


# The tokenizer class of Qwen2 reads no words of one token.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2"])
def test_a_saved_student_pads_elsewhere_as_it_was_padded_here(tmp_path, family):
    kind = TASK_TYPES["sequence-classification"]
    folder = save_family(tmp_path / "a", family, kind.model_class)
    model = read_teacher(Teacher(name="a", task="x", model=folder))
    random_model(kind.model_class, model.config).save_pretrained(tmp_path / "b")
    model.tokenizer.save_pretrained(str(tmp_path / "b"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b")
    reference = kind.model_class.from_pretrained(tmp_path / "b").eval()
    with torch.inference_mode():
        batch = tokenizer(["w1 w2", "w3 w4 w5 w6 w7"], padding=True, return_tensors="pt")
        if padding_of(tokenizer, model.config, "example").is_read:
            return
        together = reference(**batch).logits[0]
        alone = reference(**tokenizer("w1 w2", return_tensors="pt")).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def fitted(form: str, family: str, **options) -> tuple[Padding, PreTrainedTokenizerBase]:
    tokenizer = family_tokenizer(form, **options)
    config = AutoConfig.for_model(family, pad_token_id=None)
    fit_tokenizer(tokenizer, config, "model", custom=False)
    assert config.pad_token_id == tokenizer.pad_token_id
    return padding_of(tokenizer, config, "example"), tokenizer


def test_what_ends_a_text_fills_up_where_there_is_no_padding_token():
    assert fitted("none", "gpt2")[0] == Padding(3)
    # A text that has it at its end would lose it.
    padding, tokenizer = fitted("eos", "gpt2", pad_token=None)
    ids: Any = tokenizer("w1")["input_ids"]
    assert ids[-1] == 3
    assert padding == Padding(1)


def test_a_padding_token_that_the_model_knows_comes_first():
    tokenizer = family_tokenizer("none")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<mask>"]})
    config = AutoConfig.for_model("gpt2", pad_token_id=6)
    fit_tokenizer(tokenizer, config, "model", custom=False)
    assert tokenizer.pad_token_id == config.pad_token_id == 6
    # A word is none, whatever the configuration: it would no longer be read as a word.
    tokenizer, config = family_tokenizer("none"), AutoConfig.for_model("gpt2", pad_token_id=20)
    fit_tokenizer(tokenizer, config, "model", custom=False)
    assert tokenizer.pad_token_id == config.pad_token_id == 3


def test_a_tokenizer_that_has_nothing_to_fill_up_with_is_refused():
    with pytest.raises(ConfigError, match=r"teachers\[a\].model: expected .* padding token"):
        fit_tokenizer(
            family_tokenizer("none", eos_token=None),
            AutoConfig.for_model("gpt2"),
            "teachers[a].model",
            custom=False,
        )


def test_a_class_of_the_users_is_padded_where_its_tokenizer_says():
    tokenizer, config = family_tokenizer("last"), AutoConfig.for_model("bert")
    fit_tokenizer(tokenizer, config, "model", custom=True)
    assert padding_of(tokenizer, config, "example").side == "left"
    assert padding_of(tokenizer, config, "token").side == "right"


def test_a_text_that_holds_what_ends_a_text_is_read_as_text(tmp_path):
    """T5's classifier refuses a batch of texts with one end and with two."""
    kind = TASK_TYPES["sequence-classification"]
    folder = save_family(tmp_path / "a", "t5", kind.model_class)
    pieces_tokenizer().save_pretrained(folder)
    model = read_teacher(Teacher(name="a", task="x", model=folder, inputs="own"))
    view, _ = encode(model.tokenizer, ["a</s> b", "a b", "</s>", "a b a"], None, 16)
    for row in range(len(view)):
        ids = view.input_ids[view.offsets[row] : view.offsets[row + 1]].tolist()
        assert ids.count(3) == 1, ids
        assert ids[-1] == 3
    signal = Signal()
    alone, together = (
        teacher_of(folder, kind.name, tokens).answer(view, (signal,))[signal.name].values
        for tokens in (1, 4096)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    # Elsewhere, too.
    model.tokenizer.save_pretrained(str(tmp_path / "b"))
    saved: Any = AutoTokenizer.from_pretrained(tmp_path / "b")(["a</s> b", "a b"])
    assert [ids.count(3) for ids in saved["input_ids"]] == [1, 1]
    assert saved["input_ids"][0] == view.input_ids[: view.offsets[1]].tolist()


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """T5's form, whose vocabulary has what ends a text among its pieces."""
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "▁", "▁a", "▁b", "<", "/", "s", ">", "a", "b"]
    scores = [0.0 if piece.startswith("<") else -2.0 for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def test_a_rank_without_examples_trains_an_encoder_decoder(tmp_path):
    kind = TASK_TYPES["sequence-classification"]
    folder = save_family(tmp_path, "t5", kind.model_class)
    model = kind.model_class.from_pretrained(folder)
    module = StudentModule(model, [TaskReader(model, kind.adaptor)], seed=0)
    inputs = {
        name: torch.zeros((0, 4), dtype=torch.int64) for name in ("input_ids", "attention_mask")
    }
    view, *_ = module(inputs, torch.zeros(0, dtype=torch.int64))
    assert view.logits[0].shape == (0, 2)


# The most tokens of an input, as the models themselves show it.

UNLIMITED = ("DebertaV2", "Funnel", "XLNet", "ModernBert", "Llama", "Qwen3", "T5")
"""Positions are relative or rotary."""
LIMITED = {
    "Bert": 64,
    "DistilBert": 64,
    "Electra": 64,
    "BigBird": 64,
    "GPT2": 64,
    "XLM": 64,
    "RoFormer": 64,
    "CTRL": 64,  # a buffer
    "OPT": 64,  # two rows more than positions
    "Bart": 64,
    "Roberta": 62,  # positions begin behind that of the padding, here 1
    "Camembert": 62,
    "XLMRoberta": 62,
    "Data2VecText": 62,
    "IBert": 62,
    "Esm": 62,
    "MPNet": 62,
    "Longformer": 62,
}


def runs(model: torch.nn.Module, length: int) -> bool:
    ids = torch.full((1, length), 7)
    ids[:, -1] = 3  # T5 and BART read the class there
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", [*LIMITED, *UNLIMITED])
def test_the_longest_input_is_the_one_that_still_runs(family):
    config = family_config(family, pad_token_id=1)
    most = most_positions(meta_model(AutoModelForSequenceClassification, config, "student"))
    assert most == LIMITED.get(family)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert runs(model, most or 100)
    assert most is None or not runs(model, most + 1)


def test_absolute_positions_of_deberta_count_where_it_has_them():
    config = family_config("DebertaV2", position_biased_input=True)
    assert most_positions(meta_model(AutoModelForSequenceClassification, config, "student")) == 64


def test_short_texts_need_no_look_at_the_model():
    config = family_config("MPNet", pad_token_id=1)
    assert enough_positions(config, 32)
    assert not enough_positions(config, 63)  # it reads 62
    assert enough_positions(family_config("XLNet"), 10_000)
