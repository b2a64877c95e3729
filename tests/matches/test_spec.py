import pickle

import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.losses.hidden import emd
from raybrew.matches.match_losses import MATCH_LOSSES, match_loss
from raybrew.matches.presets import ModelGeometry, check_match
from raybrew.matches.spec import MatchSpec
from tests.losses import user_losses
from tests.losses.feature_inputs import (
    ALL_LOSSES,
    BATCH,
    LENGTH,
    RAGGED,
    WITH_EMPTY_ROW,
    build,
    direct,
    gradients,
    make_pair,
    mean,
)

# How a loss is asked for: by name, with options, or by the import path of the user's own.


def test_every_name_builds_a_loss_that_states_both_sides():
    for name in MATCH_LOSSES:
        assert match_loss(name).name == {"gram": "fsp", "nst": "mmd"}.get(name, name)


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown match loss 'hiden_mse'.*mean 'hidden_mse'"):
        match_loss("hiden_mse")
    with pytest.raises(ConfigError, match=r"'zzz': expected one of attention_ce, "):
        match_loss("zzz")


def test_an_unknown_option_tells_which_there_are():
    with pytest.raises(ConfigError, match=r"match loss 'rkd_distance' 'pool'.*mean 'pooling'"):
        match_loss("rkd_distance", {"pool": "first"})
    with pytest.raises(ConfigError, match="match loss 'pkd' 'pooling': expected none"):
        match_loss("pkd", {"pooling": "first"})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mmd", {"divisor": "lenght"}, "'mmd': option divisor: .*'length' or 'hidden'.*'lenght'"),
        ("attention_ce", {"keys": "some"}, "option keys: .*'all' or 'real'"),
        ("fsp", {"payload": 3}, "option payload"),
        ("sp", {"pooling": "last"}, "option pooling"),
        ("emd", {"student_weights": "equal"}, "option student_weights"),
        ("minilmv2_relation", {"num_relation_heads": 0}, "num_relation_heads: .*greater than 0"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        match_loss(name, options)


def test_a_function_of_the_users_own_gets_a_list_of_each_sides_layers():
    path = "tests.losses.user_losses:of_two_layers"
    spec = MatchSpec(layer_T=(0, 2), layer_S=(0, 1), feature="hidden", loss=path)
    loss = pickle.loads(pickle.dumps(spec.build_loss()))
    pair = make_pair("fsp")
    statistic = loss.teacher_statistic(pair.teacher, RAGGED)
    stored = loss.unpack(loss.pack(statistic, RAGGED), RAGGED, pair.sizes)
    value = mean(loss.loss(pair.student, RAGGED, stored))
    expected = user_losses.of_two_layers(pair.student, pair.teacher, RAGGED)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(value, pair.student), gradients(expected, pair.student))
    check_match(spec, ModelGeometry(2, 8, 2), ModelGeometry(2, 8, 2))


def test_a_function_of_the_users_own():
    path = "tests.losses.user_losses:mean_absolute_error"
    loss = pickle.loads(pickle.dumps(match_loss(path)))
    pair = make_pair("hidden_mse")
    statistic = loss.teacher_statistic(pair.teacher, RAGGED)
    value = mean(loss.loss(pair.student, RAGGED, statistic))
    expected = user_losses.mean_absolute_error(pair.student[0], pair.teacher[0], RAGGED)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(value, pair.student), gradients(expected, pair.student))
    stored = loss.unpack(loss.pack(statistic, RAGGED), RAGGED, pair.sizes)
    torch.testing.assert_close(mean(loss.loss(pair.student, RAGGED, stored)), expected)
    without_mask = mean(loss.loss(pair.student, None, loss.teacher_statistic(pair.teacher, None)))
    torch.testing.assert_close(without_mask, (pair.student[0] - pair.teacher[0]).abs().mean())


def test_a_users_function_is_weighed_by_examples_that_have_a_token():
    loss = user_losses.OWN_LOSS
    pair = make_pair("hidden_mse")
    partial = loss.loss(pair.student, WITH_EMPTY_ROW, pair.teacher[0])
    assert partial.denominator.tolist() == [1, 0, 1, 1]
    expected = user_losses.mean_absolute_error(pair.student[0], pair.teacher[0], WITH_EMPTY_ROW)
    torch.testing.assert_close(mean(partial), expected)
    nothing = loss.loss(pair.student, torch.zeros(4, 6), pair.teacher[0])
    assert nothing.numerator.tolist() == [0.0] * 4
    assert gradients(nothing.numerator.sum(), pair.student)[0].abs().max() == 0


def test_losses_and_builders_by_import_path():
    assert match_loss("tests.losses.user_losses:OWN_LOSS") is user_losses.OWN_LOSS
    built = match_loss("tests.losses.user_losses:own_distance", {"pooling": "first"})
    pair = make_pair("rkd_distance")
    torch.testing.assert_close(
        built.teacher_statistic(pair.teacher, RAGGED),
        match_loss("rkd_distance", {"pooling": "first"}).teacher_statistic(pair.teacher, RAGGED),
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.losses.user_losses:missing", "can't be imported"),
        ("no.such.module:loss", "can't be imported"),
        ("tests.losses.user_losses:NOT_A_LOSS", "is a int; expected a MatchLoss"),
        ("tests.losses.user_losses:builds_a_number", "built a int; expected a MatchLoss"),
    ],
)
def test_an_import_path_that_leads_to_no_loss(path: str, message: str):
    with pytest.raises(ConfigError, match=message):
        match_loss(path)


def test_a_ready_loss_takes_no_options():
    with pytest.raises(ConfigError, match="takes no options"):
        match_loss("tests.losses.user_losses:OWN_LOSS", {"weight": 1})


# Models of other sizes or heads, batches without a mask: refused, or the same as spelt out.

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
