"""A teacher's answers to matches: its own features, without padding, each example by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Signal
from raybrew.data.split import Padding
from raybrew.errors import ConfigError, TeacherError
from raybrew.matches.capture import signal_of
from raybrew.matches.spec import CustomMatch, MatchSpec
from raybrew.teachers.teacher import ModelTeacher
from tests.made import made_teacher, make_data, make_model, make_tokenizer
from tests.training import user_adaptors

HIDDEN = MatchSpec(layer_T=2, layer_S=1, feature="hidden", loss="hidden_mse")
ATTENTION = MatchSpec(layer_T=1, layer_S=0, feature="attention", loss="attention_mse")
PKD = MatchSpec(layer_T=1, layer_S=1, feature="hidden", loss="pkd")
VALUE = MatchSpec(layer_T=0, layer_S=0, feature="value", loss="minilm_value_relation")
CUSTOM = CustomMatch(
    module_T="bert.encoder.layer.0.output", module_S="x", loss="tests.matches.user_matches:x"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("teacher"), 0)


@pytest.fixture(scope="module")
def view() -> EncodedView:
    texts = make_data(9)["text"][:]
    return encode(make_tokenizer(), texts, None, 32)[0]


def teacher(model: str, **changes) -> ModelTeacher:
    values = {
        "name": "a",
        "model": model,
        "fingerprint": "f",
        "kind": "sequence-classification",
        "dtype": "float32",
        "batch_tokens": 40,
        "padding": Padding(0),
        "num_threads": 1,
        "attention": True,
    }
    return ModelTeacher(made_teacher(**{**values, **changes}))


def alone(model: str, view: EncodedView, row: int):
    """Transformers' own answer to one example without padding."""
    reference = AutoModelForSequenceClassification.from_pretrained(
        model, attn_implementation="eager"
    ).eval()
    taken = view.take(np.array([row]))
    ids = torch.from_numpy(taken.input_ids.astype(np.int64))[None]
    with torch.inference_mode():
        return reference(input_ids=ids, output_hidden_states=True, output_attentions=True)


def test_each_example_has_the_features_of_the_model_without_its_padding(model, view):
    signals = tuple(signal_of(m, "float32") for m in (HIDDEN, ATTENTION, PKD, VALUE, CUSTOM))
    answer = teacher(model).answer(view, (Signal(), *signals))
    assert set(answer) == {"logits-float32", *(signal.name for signal in signals)}
    for row in range(len(view)):
        outputs = alone(model, view, row)
        expected = (
            outputs.hidden_states[2],
            outputs.attentions[1],
            torch.nn.functional.normalize(outputs.hidden_states[1][:, 0], dim=-1),
            None,
            outputs.hidden_states[1],
        )
        for signal, value in zip(signals, expected, strict=True):
            one = answer[signal.name].take(np.array([row])).values.reshape(-1)
            assert np.isfinite(one).all()
            if value is not None:
                np.testing.assert_allclose(one, value.reshape(-1).numpy(), atol=1e-5)
    # One vector an example needs no offsets.
    assert answer[signals[2].name].offsets is None


def test_half_the_bytes_in_bfloat16(model, view):
    full, half = signal_of(HIDDEN, "float32"), signal_of(HIDDEN, "bfloat16")
    answer = teacher(model).answer(view, (full, half))
    assert answer[full.name].values.nbytes == 2 * answer[half.name].values.nbytes


def test_equal_statistics_are_one_signal():
    cos = HIDDEN.model_copy(update={"loss": "cos", "layer_S": 0, "weight": 3.0})
    assert signal_of(cos, "float32") == signal_of(HIDDEN, "float32")
    assert signal_of(HIDDEN, "float16") != signal_of(HIDDEN, "float32")
    by_hidden = MatchSpec(layer_T=(1, 1), layer_S=(1, 1), feature="hidden", loss="mmd")
    by_length = by_hidden.model_copy(update={"options": {"divisor": "length"}})
    assert signal_of(by_length, "float32").name != signal_of(by_hidden, "float32").name


def test_an_adaptor_of_the_users_decides_what_a_layer_is(model, view):
    signal = signal_of(HIDDEN.model_copy(update={"layer_T": 0}), "float32")
    spec = "tests.training.user_adaptors:last_layer_first"
    answer = teacher(model, adaptor=spec).answer(view, (signal,))[signal.name]
    last = alone(model, view, 0).hidden_states[2].reshape(-1).numpy()
    np.testing.assert_allclose(answer.take(np.array([0])).values, last, atol=1e-5)


def test_what_a_model_does_not_give_names_the_match(model, view):
    signal = signal_of(ATTENTION, "float32")
    with pytest.raises(ConfigError, match=r"'attention_mse'.*attn_implementation=\"eager\""):
        teacher(model, adaptor=user_adaptors.no_attention).answer(view, (signal,))
    # sdpa returns no maps, whatever it is asked for.
    with pytest.raises(ConfigError, match=r"'attention_mse'.*attn_implementation=\"eager\""):
        teacher(model, attention=False).answer(view, (signal,))
    unmasked = teacher(model, adaptor=user_adaptors.without_mask)
    with pytest.raises(ConfigError, match=r"'hidden_mse'.*adaptor gives no `inputs_mask`"):
        unmasked.answer(view, (signal_of(HIDDEN, "float32"),))
    deep = HIDDEN.model_copy(update={"layer_T": 7})
    with pytest.raises(ConfigError, match=r"no hidden of layer 7: it gives 0 to 2"):
        teacher(model).answer(view, (signal_of(deep, "float32"),))
    unknown = CUSTOM.model_copy(update={"module_T": "bert.encoder.layer.9"})
    with pytest.raises(
        TeacherError, match=r"'a'.*no module 'bert.encoder.layer.9'; did you mean 'bert"
    ):
        teacher(model).answer(view, (signal_of(unknown, "float32"),))


@pytest.mark.parametrize("match", [HIDDEN, PKD, CUSTOM], ids=["ragged", "vector", "module"])
def test_nan_in_features_names_teacher_and_example(model, view, match, tmp_path: Path):
    broken = AutoModelForSequenceClassification.from_pretrained(model)
    bad = int(view.input_ids[view.offsets[4] + 1])
    with torch.no_grad():
        broken.bert.embeddings.word_embeddings.weight[bad] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    signal = signal_of(match, "float32")
    rows = [n for n in range(len(view)) if bad in view.take(np.array([n])).input_ids]
    only = view.take(np.array([rows[0]]))
    key = f"{only.keys[0, 0]:016x}{only.keys[0, 1]:016x}"
    with pytest.raises(TeacherError, match=rf"'a'.*{signal.statistic}.*NaN.*{key}"):
        teacher(str(tmp_path / "broken")).answer(only, (signal,))


def test_infinity_of_a_narrow_precision_is_an_error(model, view):
    signal = Signal(dtype="float16")
    loud = teacher(model)
    with torch.no_grad():
        loud._model.get_parameter("classifier.weight").mul_(1e6)
    with pytest.raises(TeacherError, match=r"kept in float16.*another dtype"):
        loud.answer(view, (signal,))


def test_top_k_logits_are_the_largest(model, view):
    full = teacher(model).answer(view, (Signal(),))["logits-float32"].values
    signal = Signal(top_k=2, temperatures=(4.0,))
    kept = teacher(model).answer(view, (signal,))[signal.name].values
    assert kept.shape == (9, 5)
    np.testing.assert_allclose(kept[:, :2], -np.sort(-full, axis=1)[:, :2])
