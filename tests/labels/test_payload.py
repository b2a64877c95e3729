import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raybrew.errors import LabelError
from raybrew.labels.payload import DTYPES, Payload, Signal, from_storage, to_storage


def ragged(rows: list[list[float]]) -> Payload:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Payload(np.array([v for row in rows for v in row], np.float32), offsets)


def rows_of(payload: Payload) -> list[list[float]]:
    assert payload.offsets is not None
    bounds = zip(payload.offsets[:-1], payload.offsets[1:], strict=True)
    return [payload.values[start:end].tolist() for start, end in bounds]


row_lists = st.lists(st.lists(st.integers(-9, 9).map(float), max_size=4), min_size=1, max_size=6)


@given(row_lists, st.data())
def test_take_is_indexing(rows, data):
    picks = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = ragged(rows).take(np.array(picks, np.int64))
    assert rows_of(taken) == [rows[i] for i in picks]


@given(row_lists, row_lists)
def test_concat_is_list_addition(first, second):
    assert rows_of(Payload.concat([ragged(first), ragged(second)])) == first + second


def test_take_of_a_dense_payload_is_a_copy():
    payload = Payload(np.arange(6, dtype=np.float32).reshape(3, 2))
    taken = payload.take(np.array([2, 0]))
    taken.values[:] = 0
    assert payload.values.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_mixing_dense_and_ragged_is_refused():
    with pytest.raises(LabelError, match="got both"):
        Payload.concat([ragged([[1.0]]), Payload(np.zeros((1, 1), np.float32))])


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)]
)
def test_storage_keeps_the_precision_it_names(dtype, error):
    values = torch.tensor([[1.2345678, -987.65]])
    back = from_storage(to_storage(values, dtype), dtype)
    assert back.dtype == DTYPES[dtype][0]
    relative = ((back.float() - values) / values).abs().max()
    assert relative <= error
    if error:
        assert relative > 0


def test_signals_that_differ_have_different_folders():
    signals = [
        Signal(),
        Signal(dtype="float16"),
        Signal("hidden", (4,)),
        Signal("hidden", (4, 8)),
        Signal("hidden", (48,)),
    ]
    assert len({signal.name for signal in signals}) == len(signals)


def test_long_names_are_cut_to_what_a_folder_may_be_called_and_still_differ():
    signals = [Signal(f"module.{'é' * 300}.{n}", layers=(n,)) for n in range(3)]
    assert len({signal.name for signal in signals}) == 3
    assert all(len(signal.name.encode()) <= 255 for signal in signals)
    assert signals[0].name == Signal(signals[0].statistic, layers=(0,)).name
