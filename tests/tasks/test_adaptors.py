"""The adaptor contract: every key optional, tensors or lists, one mask for several logits."""

from types import SimpleNamespace

import pytest
import torch

from raybrew.errors import ConfigError
from raybrew.tasks import TASK_TYPES, adaptor_of
from raybrew.tasks.task_type import View, view_of
from tests.training import user_adaptors

torch.set_num_threads(1)

START, END = torch.randn(2, 5), torch.randn(2, 5)
TOKENS, MORE = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
CLASSES = torch.tensor([1, -100])


def seen(**found) -> View:
    return view_of(lambda batch, outputs: found, {}, None)


def test_a_tensor_is_a_list_of_one():
    view = seen(logits=START, labels=CLASSES, losses=torch.tensor(2.0), logits_mask=MASK)
    assert len(view.logits) == len(view.labels) == len(view.losses) == len(view.logits_mask) == 1
    assert view.logits[0] is START
    listed = seen(logits=[START], labels=(CLASSES,), losses=[torch.tensor(2.0)], logits_mask=[MASK])
    assert all(a is b for a, b in zip(listed.logits, view.logits, strict=True))
    assert listed.labels[0] is view.labels[0]


def test_several_logits_have_labels_and_a_mask_each_or_share_one():
    view = seen(logits=[START, END], labels=[CLASSES, CLASSES])
    assert view.logits == (START, END)
    assert view.logits_mask == (None, None)
    assert len(view.labels) == 2
    # TextBrewer breaks on the second of them.
    shared = seen(logits=[TOKENS, MORE], logits_mask=MASK)
    assert [mask is MASK for mask in shared.logits_mask] == [True, True]
    own = seen(logits=[TOKENS, MORE], logits_mask=[MASK, 1 - MASK])
    assert own.logits_mask[1] is not None
    assert torch.equal(own.logits_mask[1], 1 - MASK)
    with pytest.raises(ConfigError, match=r"one for each of the 2 logits, got 3"):
        seen(logits=[TOKENS, MORE], logits_mask=[MASK] * 3)


@pytest.mark.parametrize("key", View.__dataclass_fields__)
def test_every_key_may_stand_alone(key):
    view = seen(**{key: TOKENS if key != "logits_mask" else None})
    for name in View.__dataclass_fields__:
        value = getattr(view, name)
        if name == key and key != "logits_mask":
            assert value is TOKENS or value[0] is TOKENS
        elif name != "logits_mask":
            assert value in ((), None)


def test_unknown_keys_and_nothing_at_all_are_refused():
    with pytest.raises(ConfigError, match=r"expected one or more of logits, .*, got logit"):
        seen(logit=START)
    with pytest.raises(ConfigError, match="an empty dict"):
        seen()


def test_nothing_of_a_view_keeps_its_graph():
    logits = TOKENS.clone().requires_grad_()
    loss = logits.sum()
    view = seen(
        logits=[logits, MORE],
        logits_mask=MASK,
        labels=[MASK, MASK],
        losses=loss,
        hidden=[logits],
        attention=[START],
        inputs_mask=MASK,
    ).without_examples()
    assert [tuple(each.shape) for each in view.logits] == [(0, 5, 3), (0, 5, 4)]
    assert all(each is not None and len(each) == 0 for each in (*view.logits_mask, *view.labels))
    assert len(view.hidden[0]) == len(view.attention[0]) == 0
    assert view.inputs_mask is not None
    assert len(view.inputs_mask) == 0
    total = view.logits[0].sum() + view.losses[0] + view.hidden[0].sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_built_in_one_of_classifiers():
    hidden, maps = (TOKENS, TOKENS), (MORE,)
    outputs = SimpleNamespace(logits=START, hidden_states=hidden, attentions=maps)
    outputs.get = lambda name: getattr(outputs, name)
    view = view_of(
        TASK_TYPES["sequence-classification"].adaptor,
        {"attention_mask": MASK, "labels": CLASSES},
        outputs,
    )
    assert view.logits == (START,)
    assert view.inputs_mask is MASK
    assert view.labels == (CLASSES,)
    assert (view.hidden, view.attention) == (hidden, maps)


def test_the_more_special_adaptor_wins_and_paths_are_resolved():
    path = "tests.training.user_adaptors:last_layer_first"
    kind = "sequence-classification"
    assert adaptor_of(kind, None, None) is TASK_TYPES[kind].adaptor
    assert adaptor_of(kind, path, user_adaptors.no_attention) is user_adaptors.last_layer_first
    assert adaptor_of(kind, None, user_adaptors.no_attention) is user_adaptors.no_attention


@pytest.mark.parametrize("path", ["nowhere:x", "..relative:x", "json:", ":x"])
def test_import_paths_that_lead_nowhere(path):
    with pytest.raises(ConfigError, match=rf"adaptor '{path}' can't be imported"):
        adaptor_of("sequence-classification", path)
