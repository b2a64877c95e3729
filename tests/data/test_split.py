"""Batches by length, and encoded examples that the operating system refuses to map."""

import numpy as np
import pytest

from raybrew.data.encoding import encode
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, batches_by_length
from raybrew.errors import DataError
from tests.made import make_tokenizer
from tests.refusing import FewMaps, in_child, limited_maps


@limited_maps
def test_a_split_that_cant_be_mapped_is_not_called_damaged(tmp_path):
    view = encode(make_tokenizer(), ["w1"], None, 64)[0]
    EncodedSplit({STUDENT_VIEW: view}, np.array([0])).save(tmp_path)

    def load_with_few_maps() -> str:
        with FewMaps(left=20), pytest.raises(DataError) as caught:
            # Two maps each, which stay as long as the list is made.
            [EncodedSplit.load(tmp_path) for _ in range(40)]
        return str(caught.value)

    message = in_child(load_with_few_maps)
    assert "can't be read" in message
    assert "vm.max_map_count" in message
    assert "delete" not in message


@pytest.mark.parametrize("budget", [1, 16, 40, 10_000])
def test_batches_hold_each_example_once_and_keep_to_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    batches = list(batches_by_length(lengths, max_tokens=budget))
    assert sorted(np.concatenate(batches)) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    again = batches_by_length(lengths, max_tokens=budget)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]
    assert list(batches_by_length(np.empty(0, np.int64), max_tokens=budget)) == []


@pytest.mark.parametrize("one_length", [False, True])
def test_batches_of_so_many_examples_are_filled_from_the_shortest_on(one_length):
    lengths = np.array([3, 1, 2, 1, 2, 1, 2])
    batches = batches_by_length(lengths, max_examples=2, one_length=one_length)
    expected = [[1, 3], [5], [2, 4], [6], [0]] if one_length else [[1, 3], [5, 2], [4, 6], [0]]
    assert [batch.tolist() for batch in batches] == expected
