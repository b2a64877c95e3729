"""Models of other sizes or heads, batches without a mask: refused, or the same as spelt out."""

import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.losses.features import MATCH_LOSSES, match_loss
from raybrew.losses.features.emd import emd
from raybrew.losses.match_check import ModelGeometry, check_match
from raybrew.losses.match_spec import MatchSpec
from tests.losses.feature_inputs import ALL_LOSSES, BATCH, LENGTH, build, direct, make_pair, mean

SAME_SIZE = {"hidden_mse", "cos", "pkd", "fsp", "gram", "emd"}
SAME_HEADS = {"attention_mse", "attention_ce", "minilm_attention", "minilm_value_relation"}
TEACHER = ModelGeometry(num_layers=4, hidden_size=16, num_heads=4)


def spec_of(name: str) -> MatchSpec:
    options = {"num_relation_heads": 2} if name == "minilmv2_relation" else {}
    built = match_loss(name, options)
    layer = 1 if built.num_layers == 1 else (1, 2)
    return MatchSpec(
        layer_T=layer, layer_S=layer, feature=built.features[0], loss=name, options=options
    )


@pytest.mark.parametrize("name", sorted(MATCH_LOSSES))
def test_other_sizes_and_heads_are_refused_where_they_are_compared_one_by_one(name):
    check_match(spec_of(name), TEACHER, TEACHER)
    for student, refused, message in (
        (ModelGeometry(4, 8, 4), name in SAME_SIZE, "hidden size is 8 and the teacher's 16"),
        (ModelGeometry(4, 16, 2), name in SAME_HEADS, "has 4 heads and the student 2"),
    ):
        if refused:
            with pytest.raises(ConfigError, match=message):
                check_match(spec_of(name), TEACHER, student)
        else:
            check_match(spec_of(name), TEACHER, student)


# TextBrewer's form of `mmd` divides by another number where there is no mask.
@pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - {"mmd of length"}))
def test_without_a_mask_every_token_is_real(name):
    pair = make_pair(name, probabilities=build(name).features[0] == "attention")
    without = mean(direct(name, pair, None))
    whole = mean(direct(name, pair, torch.ones(BATCH, LENGTH)))
    torch.testing.assert_close(without, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_weights_of_layers_that_cannot_be_are_named(weights):
    loss = emd(student_weights=weights)
    layers = [torch.zeros(1, 2, 3)] * 2
    with pytest.raises(ConfigError, match=r"one weight ≥ 0 for each of the 2 student layers"):
        loss.loss(layers, None, loss.teacher_statistic(layers, None))
