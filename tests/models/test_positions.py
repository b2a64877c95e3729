"""The most tokens of an input, as the models themselves show it."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from raybrew.models.positions import enough_positions, most_positions
from raybrew.models.pretrained import meta_model
from tests.models.families import family_config

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
