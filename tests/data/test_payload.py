import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raybrew.data.payload import Payload, Signal, from_storage, to_storage, torch_dtype
from raybrew.errors import LabelError


def ragged(rows: list[list[float]]) -> Payload:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Payload(np.array([v for row in rows for v in row], np.float32), offsets)


def rows_of(payload: Payload) -> list[list[float]]:
    assert payload.offsets is not None
    assert len(payload.values) == payload.offsets[-1]
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


@given(row_lists, st.data())
def test_slice_is_slicing(rows, data):
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert rows_of(ragged(rows).slice(start, stop)) == rows[start:stop]
    dense = Payload(np.arange(2 * len(rows)).reshape(-1, 2))
    np.testing.assert_array_equal(dense.slice(start, stop).values, dense.values[start:stop])


def test_mixing_dense_and_ragged_is_refused():
    with pytest.raises(LabelError, match="got both"):
        Payload.concat([ragged([[1.0]]), Payload(np.zeros((1, 1), np.float32))])


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)]
)
def test_storage_keeps_the_precision_it_names(dtype, error):
    values = torch.tensor([[1.2345678, -987.65]])
    back = from_storage(to_storage(values, dtype), dtype)
    assert back.dtype == torch_dtype(dtype)
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


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        (Signal(), "logits-float32"),
        (Signal("hidden", (4, 8), "float16"), "hidden-L4-L8-float16"),
        (Signal(top_k=8, temperatures=(1.0, 2.5)), "logits-top8-T1-T2.5-float32"),
        (
            Signal("é" * 100 + "x", dtype="bfloat16"),
            "é" * 50 + "-0451f724a26ab00eb0e40731b070e93b-bfloat16",
        ),
    ],
)
def test_names_of_folders_stay_what_they_are(signal, name):
    """Labels that were stored under another name would be computed again."""
    assert signal.name == name


def test_concat_of_dense_payloads():
    parts = [Payload(np.full((n, 2), n, np.float32)) for n in (1, 2)]
    joined = Payload.concat(parts)
    assert joined.offsets is None
    assert joined.values.tolist() == [[1, 1], [2, 2], [2, 2]]
    assert joined.nbytes == 3 * 2 * 4
    assert ragged([[1.0], [2.0]]).nbytes == 2 * 4 + 3 * 8


def test_long_names_are_cut_to_what_a_folder_may_be_called_and_still_differ():
    signals = [Signal(f"module.{'é' * 300}.{n}", layers=(n,)) for n in range(3)]
    assert len({signal.name for signal in signals}) == 3
    assert all(len(signal.name.encode()) <= 255 for signal in signals)
    assert signals[0].name == Signal(signals[0].statistic, layers=(0,)).name
