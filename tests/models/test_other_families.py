"""Students of families that differ from BERT: each runs, or is one message at the start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.pretrained import meta_model, quiet_transformers
from raybrew.models.student_configs import resized
from tests.made import make_tokenizer
from tests.models.checkpoints import build, check
from tests.models.families import family_config

CLASSES = AutoModelForSequenceClassification
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
CONFIG, PRESET = Student(config=SMALL), Student(preset="T4-tiny")
LAYERS = Student(layers_from=("t", (1, 3)))

ONE_STACK = "expected a model with one stack of layers"
OTHER_SIZES = r"student\.preset: expected a base whose layers can have a hidden size of 312"
TWO_STACKS = r"student\.preset: expected a base of one stack of layers"
NO_KEY = r"num_hidden_layers: expected a key of a funnel configuration"

OUTCOMES = {
    ("DebertaV2", "config"): "runs",
    ("DebertaV2", "preset"): "runs",
    ("DebertaV2", "layers"): "runs",
    ("Longformer", "config"): r"student\.config\.attention_window: expected a list with an entry",
    ("Longformer", "layers"): "runs",
    ("MobileBert", "config"): "runs",
    ("MobileBert", "preset"): OTHER_SIZES,
    ("MobileBert", "layers"): "runs",
    ("SqueezeBert", "config"): "If you want embedding_size != intermediate hidden_size",
    ("SqueezeBert", "preset"): "If you want embedding_size != intermediate hidden_size",
    ("SqueezeBert", "layers"): "runs",
    ("Funnel", "config"): NO_KEY,
    ("Funnel", "preset"): NO_KEY,
    ("Funnel", "layers"): "which has 0 to 2, got 3",
    ("BigBird", "config"): "runs",
    ("BigBird", "layers"): "runs",
    ("XLNet", "config"): "runs",
    ("XLNet", "preset"): "runs",
    ("XLNet", "layers"): "runs",
    ("ModernBert", "config"): "runs",
    ("ModernBert", "preset"): "runs",
    ("ModernBert", "layers"): "runs",
    ("GPT2", "config"): "runs",
    ("GPT2", "preset"): "runs",
    ("GPT2", "layers"): "runs",
    ("OPT", "preset"): "runs",
    ("Llama", "config"): "runs",
    ("T5", "config"): "runs",
    ("T5", "preset"): TWO_STACKS,
    ("T5", "layers"): ONE_STACK,
    ("Bart", "preset"): TWO_STACKS,
    ("Bart", "layers"): ONE_STACK,
    ("XLM", "config"): "runs",
    ("XLM", "preset"): OTHER_SIZES,
    ("XLM", "layers"): ONE_STACK,
}
STUDENTS = {"config": CONFIG, "preset": PRESET, "layers": LAYERS}


def teachers_of(folder: Path, family: str, **changes) -> dict[str, Teacher]:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        CLASSES.from_config(family_config(family, **changes)).save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))
    return {"t": Teacher(name="t", task="t", model=str(folder))}


@pytest.mark.parametrize(("family", "form"), OUTCOMES)
def test_a_student_runs_or_is_refused_before_anything_is_loaded(family, form, tmp_path):
    teachers, student = teachers_of(tmp_path, family), STUDENTS[form]
    if (outcome := OUTCOMES[family, form]) != "runs":
        with pytest.raises(ConfigError, match=outcome):
            check(student, teachers)
        return
    check(student, teachers)
    model, tokenizer = build(student, teachers)
    batch = tokenizer(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 2)


def test_a_model_whose_first_forward_pass_fails_is_refused(tmp_path):
    teachers = teachers_of(tmp_path, "DebertaV2")
    student = Student(config={"hidden_size": 16, "pooler_hidden_size": 32})
    with pytest.raises(ConfigError, match=r"whose first forward pass fails: mat1 and mat2"):
        check(student, teachers)


def test_an_odd_number_of_windows_is_asked_for_and_taken(tmp_path):
    teachers = teachers_of(tmp_path, "Longformer")
    check(Student(config={"num_hidden_layers": 2, "attention_window": [4, 8]}), teachers)
    alike = teachers_of(tmp_path / "alike", "Longformer", attention_window=[4, 4, 4, 4])
    config, _ = check(Student(config={"num_hidden_layers": 2}), alike)
    assert config.attention_window == [4, 4]


@pytest.mark.parametrize(
    ("family", "key", "width"),
    [
        ("Bert", "intermediate_size", 1200),
        ("DistilBert", "hidden_dim", 1200),
        ("GPT2", "n_inner", 1200),
        ("XLNet", "d_inner", 1200),
        ("OPT", "ffn_dim", 1200),
        ("CTRL", "dff", 1200),
    ],
)
def test_a_preset_has_its_feed_forward_size_whatever_it_is_called(family, key, width, tmp_path):
    config, _ = check(PRESET, teachers_of(tmp_path, family))
    assert getattr(config, key) == width
    assert (config.num_hidden_layers, config.hidden_size) == (4, 312)


def builder(family: str) -> Callable[..., torch.nn.Module]:
    return lambda config: meta_model(CLASSES, config, "student")


def chosen(family: str, layers: tuple[int, ...], **changes):
    config = family_config(family, **changes)
    return resized(config, {"num_hidden_layers": len(layers)}, "student", builder(family), layers)


def test_lists_with_an_entry_for_each_layer_follow_the_layers_and_others_stay():
    longformer = chosen("Longformer", (1, 3))
    assert longformer.attention_window == [4, 8]
    # Two layers and two ways of attention: a list of the same length that isn't one of layers.
    deberta = chosen("DebertaV2", (0,), num_hidden_layers=2)
    assert deberta.pos_att_type == ["p2c", "c2p"]
    modern = chosen("ModernBert", (3, 2))
    whole = family_config("ModernBert").layer_types
    assert modern.layer_types == [whole[3], whole[2]]


def test_sizes_that_hang_on_another_follow_it_and_those_that_were_chosen_stay():
    def head_dim(**changes) -> tuple[int, int]:
        base = family_config("Llama", **changes)
        made = resized(base, {"hidden_size": 64}, "student", builder("Llama"))
        return base.head_dim, made.head_dim

    assert head_dim() == (16, 32)
    assert head_dim(head_dim=8) == (8, 8)
    deberta = family_config("DebertaV2")
    made = resized(deberta, {"hidden_size": 16}, "student", builder("DebertaV2"))
    assert made.pooler_hidden_size == 16
    assert {k: v for k, v in made.to_dict().items() if "hidden_size" not in k} == {
        k: v for k, v in deberta.to_dict().items() if "hidden_size" not in k
    }
