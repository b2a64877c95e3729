"""Encoded examples that the operating system refuses to map are not called damaged."""

import numpy as np
import pytest

from raybrew.data.encoding import encode
from raybrew.data.split import STUDENT_VIEW, EncodedSplit
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
