import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.data.collate import collate
from raybrew.data.encoding import EncodedView, content_keys, encode, same_vocabulary
from raybrew.data.padding import Padding
from raybrew.data.split import STUDENT_VIEW, EncodedSplit
from raybrew.errors import DataError
from tests.made import WORDS, make_tokenizer

TOKENIZER = make_tokenizer()
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


def view_of(texts: list[str], pairs: list[str] | None = None) -> EncodedView:
    return encode(TOKENIZER, texts, pairs, 64)[0]


def ids_of(view: EncodedView, row: int) -> list[int]:
    return view.input_ids[view.offsets[row] : view.offsets[row + 1]].tolist()


@given(st.lists(sentences, min_size=1, max_size=6), st.data())
def test_take_and_collate_are_what_the_tokenizer_gives(texts, data):
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    batch = collate(view_of(texts), np.array(rows), Padding(0))
    expected = TOKENIZER([texts[row] for row in rows], padding=True, return_tensors="pt")
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert batch[name].equal(tensor), name


@given(st.lists(sentences, min_size=2, max_size=8))
def test_equal_tokens_have_equal_keys_and_others_dont(texts):
    view = view_of(texts)
    for i in range(len(texts)):
        for j in range(len(texts)):
            same = ids_of(view, i) == ids_of(view, j)
            assert (view.keys[i] == view.keys[j]).all() == same


def test_a_key_depends_on_content_alone_not_on_the_batch_or_the_order():
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    assert (view_of(texts).keys == view_of(texts[::-1]).keys[::-1]).all()
    assert (view_of([texts[1]]).keys[0] == view_of(texts).keys[1]).all()


def test_pairs_that_are_split_elsewhere_have_other_keys():
    view = view_of(["w1", "w1 w2"], ["w2 w3", "w3"])
    assert len(np.unique(view.keys, axis=0)) == 2
    # Same tokens, other pair ids.
    ids = [np.array([2, 5, 3, 6], np.int32)] * 2
    types = [np.array([0, 0, 0, 1], np.int8), np.array([0, 0, 1, 1], np.int8)]
    assert len(np.unique(content_keys(ids, types), axis=0)) == 2


def test_pair_ids_of_a_single_text_say_nothing():
    ids = [np.array([2, 5, 3], np.int32)]
    zeros = [np.zeros(3, np.int8)]
    assert (content_keys(ids, zeros) == content_keys(ids, None)).all()


def test_keys_dont_change_between_versions():
    # Stores outlive releases: this number may only change together with the store's format.
    key = content_keys([np.array([2, 5, 3], np.int32)], None)[0]
    assert [f"{part:016x}" for part in key] == ["ff5c318ec379fac5", "669b273128080de9"]


def test_long_examples_are_cut_and_counted():
    view, cut = encode(TOKENIZER, [" ".join(WORDS), "w1"], None, 10)
    assert cut == 1
    assert view.lengths.tolist() == [10, 3]
    expected = TOKENIZER(" ".join(WORDS), truncation=True, max_length=10)["input_ids"]
    assert ids_of(view, 0) == expected


def test_collating_nothing_gives_an_empty_batch():
    batch = collate(view_of(["w1"]), np.empty(0, np.int64), Padding(0))
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(0, 1)}


def test_a_split_comes_back_from_disk_and_can_only_be_read(tmp_path):
    split = EncodedSplit(
        {STUDENT_VIEW: view_of(["w1 w2", "w3"]), "a.b": view_of(["w5", "w6 w7 w8"])},
        np.array([1, -1]),
    )
    split.save(tmp_path / "s")
    back = EncodedSplit.load(tmp_path / "s")
    assert back.labels.tolist() == [1, -1]
    for name, view in split.views.items():
        assert (back.views[name].input_ids == view.input_ids).all()
        assert (back.views[name].keys == view.keys).all()
        assert back.views[name].lengths.tolist() == view.lengths.tolist()
    with pytest.raises(ValueError, match="read-only"):
        back.labels[0] = 0
    assert not list((tmp_path / "s").glob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "missing", "version"])
def test_a_damaged_split_is_an_error_that_says_what_to_do(tmp_path, damage):
    EncodedSplit({STUDENT_VIEW: view_of(["w1"])}, np.array([0])).save(tmp_path)
    path = tmp_path / "view-(student).arrow"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"raybrew-encoded-2", b"raybrew-encoded-0"))
    with pytest.raises(DataError, match=r"view-\(student\).*delete the folder"):
        EncodedSplit.load(tmp_path)


def test_vocabularies_are_compared_by_content():
    assert same_vocabulary(TOKENIZER, make_tokenizer())
    assert not same_vocabulary(TOKENIZER, make_tokenizer(WORDS[::-1]))
