"""Named matches: TextBrewer's lists entry for entry, and those generated for any two models."""

import pickle

import pytest

from raybrew.errors import ConfigError
from raybrew.losses.match_loss import FeatureSizes
from raybrew.matches.presets import (
    MATCH_FAMILIES,
    PRESETS,
    ModelGeometry,
    check_match,
    generate_matches,
    resolve_matches,
    statistic_sizes,
)
from raybrew.matches.spec import MatchSpec
from tests.losses.textbrewer_judge import IntermediateMatch

L3, L4 = [(4, 1), (8, 2), (12, 3)], [(3, 1), (6, 2), (9, 3), (12, 4)]
L6 = [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]
EVERY_SECOND = [(layer, layer) for layer in (0, 2, 4, 6, 8, 10, 12)]
H3, H4 = [(0, 0), *L3], [(0, 0), *L4]

# Name → (teacher and student layers, loss, projection), as TextBrewer's examples list them.
TEXTBREWER_MATCHES: dict[str, tuple[list[tuple[int, int]], str, list | None]] = {
    **{
        f"{depth}_attention_{of}": (layers, f"attention_{of}", None)
        for depth, layers in (("L3", L3), ("L4", L4))
        for of in ("mse", "mse_sum", "ce", "ce_mean")
    },
    "L3_hidden_mse": (H3, "hidden_mse", None),
    "L3n_hidden_mse": (H3, "hidden_mse", ["linear", 384, 768]),
    "L3_hidden_smmd": (H3, "mmd", None),
    "L4t_hidden_mse": (H4, "hidden_mse", ["linear", 312, 768]),
    "L4_hidden_smmd": (H4, "mmd", None),
    "L4t_hidden_sgram": (H4, "gram", ["linear", 312, 768]),
    "L6_hidden_mse": (L6, "hidden_mse", None),
    "L6_hidden_smmd": (L6, "mmd", None),
    "small_hidden_mse": (EVERY_SECOND, "hidden_mse", ["linear", 256, 768]),
    "small_hidden_smmd": (EVERY_SECOND, "mmd", None),
}

BERT_BASE = ModelGeometry(num_layers=12, hidden_size=768, num_heads=12)
TINY = ModelGeometry(num_layers=4, hidden_size=312, num_heads=12)


def textbrewer_dict(layer_T: int, layer_S: int, loss: str, proj: list | None) -> dict:
    twice = loss in ("mmd", "gram")
    entry = {
        "layer_T": [layer_T, layer_T] if twice else layer_T,
        "layer_S": [layer_S, layer_S] if twice else layer_S,
        "feature": "attention" if loss.startswith("attention") else "hidden",
        "loss": loss,
        "weight": 1,
    }
    return entry if proj is None else {**entry, "proj": list(proj)}


def sizes(num_layers: int, hidden_size: int = 768) -> ModelGeometry:
    return ModelGeometry(num_layers, hidden_size, 12, first_attention=1)


def test_the_presets_are_textbrewers():
    assert set(PRESETS) == set(TEXTBREWER_MATCHES)


@pytest.mark.parametrize("name", TEXTBREWER_MATCHES)
def test_each_preset_equals_textbrewers_entry_for_entry(name: str):
    layers, loss, proj = TEXTBREWER_MATCHES[name]
    entries = [textbrewer_dict(layer_T, layer_S, loss, proj) for layer_T, layer_S in layers]
    # What TextBrewer divides by in its recipes, whose adaptors give no mask.
    options = {"divisor": "hidden"} if loss == "mmd" else {}
    with_options = [{**entry, "options": options} for entry in entries]
    assert resolve_matches(name) == resolve_matches(with_options)
    for ours, theirs in zip(PRESETS[name], entries, strict=True):
        accepted = IntermediateMatch.from_dict(theirs)  # TextBrewer's own reading of the entry
        dumped = ours.model_dump(mode="json")
        for key in ("layer_T", "layer_S", "feature", "loss", "weight", "proj"):
            assert dumped[key] == getattr(accepted, key)
        assert ours.teacher is None
        assert ours.options == options


def test_presets_are_generated():
    teacher, every_second = sizes(12), list(PRESETS["small_hidden_smmd"])
    assert generate_matches("hidden_mse", teacher, sizes(3, 384)) == [*PRESETS["L3n_hidden_mse"]]
    assert generate_matches("hidden_smmd", teacher, teacher, every=2) == every_second
    assert generate_matches("attention_ce", teacher, sizes(4)) == [*PRESETS["L4_attention_ce"]]


@pytest.mark.parametrize(
    ("depths", "layers"),
    [
        ((6, 4), [0, 2, 3, 5, 6]),
        ((24, 5), [0, 5, 10, 14, 19, 24]),
        ((4, 6), [0, 1, 1, 2, 3, 3, 4]),
        ((7, 1), [0, 7]),
    ],
)
def test_any_pair_of_depths_is_spread_evenly(depths: tuple[int, int], layers: list[int]):
    matches = generate_matches("hidden_mse", sizes(depths[0]), sizes(depths[1]))
    assert [match.layer_T for match in matches] == layers
    assert [match.layer_S for match in matches] == list(range(depths[1] + 1))


def test_generated_matches_are_projected_where_sizes_differ():
    matches = generate_matches("hidden_sgram", sizes(6, 384), sizes(2, 128))
    assert matches[1] == MatchSpec(
        layer_T=(3, 3),
        layer_S=(1, 1),
        feature="hidden",
        loss="gram",
        proj=("linear", 128, 384, {}),
    )


def test_a_student_may_be_matched_at_some_of_its_layers():
    teacher, student = ModelGeometry(12, 768, 12), ModelGeometry(12, 256, 4)
    for kind in ("hidden_mse", "hidden_smmd"):
        generated = resolve_matches(kind, teacher, student, every=2)
        assert generated == resolve_matches(f"small_{kind}")
    with pytest.raises(ConfigError, match=r"'small_hidden_mse' has fixed layers.*got 2"):
        resolve_matches("small_hidden_mse", teacher, student, every=2)


def test_many_to_many_matches_embeddings_and_all_layers_at_once():
    teacher, student = ModelGeometry(12, 768, 12), ModelGeometry(4, 312, 12)
    proj = ["linear", 312, 768]
    embeddings = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse"}
    layers = {"layer_T": list(range(1, 13)), "layer_S": [1, 2, 3, 4], "feature": "hidden"}
    assert resolve_matches("hidden_emd", teacher, student) == resolve_matches(
        [{**embeddings, "proj": proj}, {**layers, "loss": "emd", "proj": proj}]
    )


def test_attention_lists_may_start_at_zero():
    teacher, student = ModelGeometry(12, 768, 12), ModelGeometry(3, 768, 12)
    matches = generate_matches("attention_mse", teacher, student)
    assert [(match.layer_T, match.layer_S) for match in matches] == [(3, 0), (7, 1), (11, 2)]


@pytest.mark.parametrize("kind", MATCH_FAMILIES)
@pytest.mark.parametrize("first_attention", [0, 1])
def test_kinds_are_generated_for_the_models_at_hand(kind: str, first_attention: int):
    teacher = ModelGeometry(6, 384, 12, first_attention=first_attention)
    student = ModelGeometry(3, 128, 12, first_attention=first_attention)
    matches = resolve_matches(kind, teacher, student)
    assert len(matches) == {"hidden_emd": 2}.get(kind, 4 if kind.startswith("hidden") else 3)
    for match in matches:
        check_match(match, teacher, student)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_the_models_they_are_for(name: str):
    student_size = (PRESETS[name][0].proj or ("linear", 768, 768, {}))[1]
    num_layers = max(max(match.student_layers) for match in PRESETS[name])
    teacher = ModelGeometry(12, 768, 12, first_attention=1)
    student = ModelGeometry(num_layers, student_size, 12, first_attention=1)
    for match in PRESETS[name]:
        check_match(match, teacher, student)


def test_names_specs_and_dicts_may_be_mixed():
    spec = MatchSpec(layer_T=1, layer_S=1, feature="hidden", loss="cos")
    entry = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "pkd"}
    matches = resolve_matches(["L3_hidden_smmd", spec, entry])
    assert matches == [*PRESETS["L3_hidden_smmd"], spec, MatchSpec(**entry)]
    assert resolve_matches(spec) == [spec]
    assert resolve_matches(entry) == [MatchSpec(**entry)]


def test_unknown_names_tell_the_nearest():
    with pytest.raises(ConfigError, match=r"match preset 'L3_hiden_mse'.*'L3_hidden_mse'"):
        resolve_matches("L3_hiden_mse")
    with pytest.raises(ConfigError, match=r"family of matches 'hidden_mmd'.*mean 'hidden_smmd'"):
        generate_matches("hidden_mmd", sizes(12), sizes(3))
    with pytest.raises(ConfigError, match="sizes of teacher and student"):
        resolve_matches("hidden_mse")
    with pytest.raises(ConfigError, match="1 or more"):
        generate_matches("hidden_mse", sizes(12), sizes(0))


def test_mistakes_of_an_entry_are_shown_at_once():
    entry = {"layer_T": -1, "layer_S": 1, "feature": "hiden", "loss": "cos", "wieght": 1}
    with pytest.raises(ConfigError) as caught:
        resolve_matches(["L3_hidden_mse", entry])
    message = str(caught.value)
    assert "Match 1 of the list" in message
    for part in ("layer_T", "greater than or equal to 0", "feature", "'hiden'", "wieght"):
        assert part in message


@pytest.mark.parametrize("proj", [["gelu", 4, 8], ["linear", 0, 8], ["linear", 4], "linear"])
def test_a_projection_that_is_none(proj):
    with pytest.raises(ConfigError):
        MatchSpec(layer_T=1, layer_S=1, feature="hidden", loss="cos", proj=proj)


def test_a_spec_is_frozen_pickles_and_names_itself():
    spec = MatchSpec(layer_T=(4, 4), layer_S=(1, 2), feature="hidden", loss="mmd", teacher="a")
    with pytest.raises(ConfigError):
        spec.weight = 2
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert MatchSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.metric_name == "hidden_mmd_1-2_4-4_a"
    assert spec.label == "match 'mmd' on hidden (teacher 'a' layer [4, 4] → student layer [1, 2])"
    assert all(field.description for field in MatchSpec.model_fields.values())


def spec(**changes) -> MatchSpec:
    given = {"layer_T": 4, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", **changes}
    return MatchSpec(**given)


def test_a_match_that_can_be_had_passes():
    check_match(spec(proj=["relu", 312, 768]), BERT_BASE, TINY)
    check_match(spec(loss="mmd", layer_T=[4, 4], layer_S=[1, 1]), BERT_BASE, TINY)
    check_match(spec(loss="attention_ce", feature="attention", layer_T=11), BERT_BASE, TINY)
    check_match(
        spec(loss="emd", layer_T=[1, 2, 3], layer_S=[1, 4], proj=["linear", 312, 768]),
        BERT_BASE,
        TINY,
    )
    check_match(
        spec(loss="minilmv2_relation", feature="value", options={"num_relation_heads": 24}),
        BERT_BASE,
        TINY,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_T": 13, "proj": ["linear", 312, 768]},
            "teacher has no hidden of layer 13: it has 0 to 12",
        ),
        (
            {"layer_S": 5, "proj": ["linear", 312, 768]},
            "student has no hidden of layer 5: it has 0 to 4",
        ),
        ({}, 'add "proj": ["linear", 312, 768]'),
        ({"proj": ["tanh", 384, 768]}, 'write "proj": ["tanh", 312, 768]'),
        ({"loss": "hiden_mse"}, "mean 'hidden_mse'"),
        ({"loss": "attention_mse"}, "compares attention, not hidden"),
        ({"loss": "mmd"}, "layer_T has to be a list of two layers; got 4"),
        ({"loss": "cos", "layer_T": [4, 4]}, "layer_T has to be one layer, a number; got [4, 4]"),
        ({"loss": "emd", "layer_T": [4, 4]}, "layer_S has to be a list of layers; got 1"),
        (
            {"loss": "attention_mse", "feature": "attention", "layer_T": 12},
            "teacher has no attention of layer 12: it has 0 to 11",
        ),
        (
            {"loss": "attention_mse", "feature": "attention", "proj": ["linear", 312, 768]},
            "A projection acts on hidden states, not on attention",
        ),
        (
            {"loss": "minilmv2_relation", "feature": "key"},
            "student's hidden size 312 can't be cut into 48 relation heads",
        ),
        ({"loss": "pkd", "options": {"pooling": "mean"}}, "option of match loss 'pkd' 'pooling'"),
        (
            {"loss": "mmd", "layer_T": [4, 4], "layer_S": [1, 1], "options": {"divisor": "length"}},
            "value moves with the padding of the batch with {'divisor': 'length'}",
        ),
        (
            {"loss": "attention_ce", "feature": "attention", "options": {"keys": "all"}},
            "value moves with the padding of the batch with {'keys': 'all'}",
        ),
        (
            {"loss": "mmd", "layer_T": [4, 4], "layer_S": [1, 1], "options": {"divisor": "depth"}},
            "option divisor",
        ),
    ],
)
def test_a_match_that_cant_be_had_says_why(changes: dict, message: str):
    match = spec(**changes)
    with pytest.raises(ConfigError) as caught:
        check_match(match, BERT_BASE, TINY)
    assert message in str(caught.value)
    assert str(caught.value).startswith(match.label)


def test_a_kernel_without_attention_says_how_to_load_the_model():
    sdpa = ModelGeometry(4, 312, 12, returns_attention=False)
    match = spec(loss="attention_mse", feature="attention")
    with pytest.raises(ConfigError, match=r'The student.*attn_implementation="eager"'):
        check_match(match, BERT_BASE, sdpa)
    with pytest.raises(ConfigError, match=r'The teacher.*attn_implementation="eager"'):
        check_match(match, sdpa, TINY)


@pytest.mark.parametrize(
    ("loss", "feature", "instead"),
    [
        ("attention_mse", "attention", "attention_mse_sum"),
        ("attention_ce", "attention", "attention_ce_mean"),
        ("minilm_value_relation", "value", "minilmv2_relation"),
    ],
)
def test_heads_that_differ_say_what_to_use(loss: str, feature: str, instead: str):
    student = ModelGeometry(4, 312, 6)
    with pytest.raises(ConfigError, match=f"12 heads and the student 6.* use {instead}"):
        check_match(spec(loss=loss, feature=feature), BERT_BASE, student)


def test_everything_wrong_with_a_match_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        check_match(spec(layer_T=40, layer_S=50), BERT_BASE, TINY)
    for part in ("layer 40", "layer 50", "add"):
        assert part in str(caught.value)


def test_sizes_of_what_is_asked_of_the_teacher():
    doubled = spec(loss="gram", layer_T=[4, 4], layer_S=[1, 1])
    assert statistic_sizes(doubled, BERT_BASE) == FeatureSizes(768, 12, 1)
    two = spec(loss="gram", layer_T=[4, 5], layer_S=[1, 1])
    assert statistic_sizes(two, BERT_BASE) == FeatureSizes(768, 12, 2)
    many = spec(loss="emd", layer_T=[4, 5, 6], layer_S=[1, 2])
    assert statistic_sizes(many, BERT_BASE) == FeatureSizes(768, 12, 3)
