"""The paper's students: their sizes as published, and BiGRU as a model of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedConfig,
)

import raybrew as rb
from raybrew.models.bigru import BiGruConfig
from raybrew.models.parameters import count_parameters
from raybrew.models.pretrained import meta_model
from raybrew.models.student_configs import PRESETS, preset_config
from raybrew.models.students import build_student
from tests.made import CLASSES, make_model
from tests.models.checkpoints import one_head

# Parameters in millions, embeddings counted, heads not, with BERT-base-cased's vocabulary.
PUBLISHED = {"T6": 65, "T3": 44, "T3-small": 17, "T4-tiny": 14, "T12-nano": 17, "BiGRU": 31}


def made(config: PreTrainedConfig) -> nn.Module:
    return meta_model(AutoModel, config, "student")


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_published(name):
    config = preset_config(name, BertConfig(vocab_size=28996), "student.preset", made)
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    pooler = [p.numel() for n, p in trunk.named_parameters() if n.startswith("pooler")]
    assert round((count_parameters(trunk) - sum(pooler)) / 1e6) == PUBLISHED[name]


def test_electra_small_has_the_published_size_with_the_chinese_vocabulary():
    config = preset_config("Electra-small", BertConfig(vocab_size=21128), "student.preset", made)
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    assert config.model_type == "electra"
    assert round(count_parameters(trunk) / 1e6) == 12


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_student_of_its_teachers_vocabulary(name, tmp_path):
    teachers = {"a": rb.Teacher(name="a", task="sum", model=make_model(tmp_path / "a", 0))}
    built: Any = build_student(rb.Student(preset=name), one_head(CLASSES), teachers, seed=0)
    model, tokenizer = built
    assert model.config.vocab_size == len(tokenizer) == 45
    assert model.config.id2label == dict(enumerate(CLASSES))
    model.eval()
    with torch.inference_mode():
        batch = tokenizer(["w1 w2", "w3"], padding=True, return_tensors="pt")
        assert model(**batch).logits.shape == (2, 3)
    model.save_pretrained(tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    with torch.inference_mode():
        # A GRU's last bits depend on where its weights lie in memory.
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_a_preset_stands_alone():
    with pytest.raises(rb.ConfigError, match="expected it without"):
        rb.Student(preset="T3", model="somewhere")
    with pytest.raises(rb.ConfigError, match="T4-tiny"):
        rb.Student(preset="T4")  # type: ignore[arg-type]
    with pytest.raises(rb.ConfigError, match="expected one of `model`, `config`"):
        rb.Student()


def bigru(**changes) -> BiGruConfig:
    config = BiGruConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, **changes)
    config.num_labels = 3
    return config


def test_bigru_does_not_see_padding_and_reads_in_both_directions():
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(bigru()).eval()
    ids = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        alone = model(input_ids=ids[:1, :3])
        torch.testing.assert_close(found.logits[:1, :3], alone.logits)
        assert len(found.hidden_states) == 3
        changed = ids.clone()
        changed[1, 4] = 11
        other = model(input_ids=changed, attention_mask=mask)
    # The first token's answer depends on the last one's, four places to its right.
    assert (other.logits[1, 0] - found.logits[1, 0]).abs().max() > 1e-6


def test_bigru_is_found_by_the_auto_classes(tmp_path: Path):
    model = AutoModelForSequenceClassification.from_config(bigru()).eval()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is BiGruConfig
    trunk = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(
            trunk(ids).last_hidden_state, model.base_model(ids).last_hidden_state
        )
