"""Which rows are the same example, against NumPy's sort of whole rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.data.keys import distinct_keys

# Few values, so that first halves meet with equal and with other second halves.
halves = st.sampled_from([0, 1, 2**63, 2**64 - 1])


@given(st.lists(st.tuples(halves, halves), max_size=40))
def test_the_first_row_of_each_key_and_each_rows_key(pairs):
    keys = np.array(pairs, np.uint64).reshape(-1, 2)
    first, number = distinct_keys(keys)
    _, expected = np.unique(keys, axis=0, return_index=True)
    assert first.tolist() == sorted(expected.tolist())
    assert first.dtype == number.dtype == np.int64
    assert np.array_equal(keys[first][number], keys)


@pytest.mark.parametrize("rows", [1, 5000])
def test_of_many_rows(rows):
    keys = np.random.default_rng(0).integers(0, 2**64, (rows, 2), dtype=np.uint64)
    keys[rows // 2 :: 3] = keys[0]
    first, number = distinct_keys(keys)
    _, expected = np.unique(keys, axis=0, return_index=True)
    assert np.array_equal(first, np.sort(expected))
    assert np.array_equal(keys[first][number], keys)
