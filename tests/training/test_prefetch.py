"""Steps made ready ahead: their order, what they may overtake, errors, memory that is reused."""

import itertools
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import raybrew as rb
from raybrew.training.batches import BatchBuilder, ReadyStep
from raybrew.training.prefetch import PinnedBuffers, Prefetcher, map_tensors
from tests.made import STUDENT_CONFIG, make_job, make_model
from tests.training.in_process import Recorder, build

CPU = torch.device("cpu")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "raybrew-prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_everything_comes_in_order_and_not_too_far_ahead(depth):
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    with Prefetcher(make, range(4, 12), depth) as prefetcher:
        for taken, value in enumerate(prefetcher, start=1):
            assert value == (taken + 3) ** 2
            # Those that lie ready and the one that is being put, besides those that were taken.
            assert len(made) <= taken + depth + (depth > 0)
    assert made == list(range(4, 12))
    assert not threads()


def test_making_goes_on_while_the_step_is_taken_and_waiting_is_counted():
    slow = threading.Event()

    def make(step: int) -> int:
        if step == 2:
            slow.wait(5)
        return step

    with Prefetcher(make, range(3), 2) as prefetcher:
        steps = iter(prefetcher)
        assert [next(steps), next(steps)] == [0, 1]
        threading.Timer(0.2, slow.set).start()
        assert next(steps) == 2
        assert prefetcher.waited_s > 0.15


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_up_at_its_own_step(depth):
    def make(step: int) -> int:
        if step == 2:
            raise rb.LabelError("no label for step 2")
        return step

    with Prefetcher(make, range(5), depth) as prefetcher:
        steps = iter(prefetcher)
        assert [next(steps), next(steps)] == [0, 1]
        with pytest.raises(rb.LabelError, match="no label for step 2"):
            next(steps)
    assert not threads()


def test_leaving_early_ends_the_thread():
    made: list[int] = []

    def interrupted() -> None:
        with Prefetcher(made.append, range(1000), 2) as prefetcher:
            next(iter(prefetcher))
            time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not threads()
    assert len(made) < 10


class Pair(NamedTuple):
    values: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True)
class Batch:
    name: str
    inputs: dict[str, torch.Tensor]
    pair: Pair
    parts: list[torch.Tensor]
    nothing: None = None


def batch(step: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 100, (size, 3), generator=generator)
    values = torch.randn(size * 5, generator=generator)
    half = values.to(torch.bfloat16)
    return Batch(str(step), {"ids": ids, "mask": ids > 50}, Pair(values, ids[:, 0]), [half, ids.T])


def tensors(value) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(value, lambda tensor: found.append(tensor) or tensor)
    return found


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(2, 4))
def test_a_block_keeps_every_value_until_its_turn_comes_again(sizes, count):
    buffers = PinnedBuffers(count, CPU)
    alive: list[tuple[int, Batch]] = []
    for step, size in enumerate(sizes):
        moved, copied = buffers.bring(step, batch(step, size))
        assert copied is None
        alive = [*alive, (step, moved)][-count:]
        for earlier, got in alive:
            expected = batch(earlier, sizes[earlier])
            assert (got.name, got.nothing) == (expected.name, None)
            assert isinstance(got.pair, Pair)
            for one, other in zip(tensors(got), tensors(expected), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)


def test_memory_is_used_again_and_again():
    buffers = PinnedBuffers(2, CPU)
    places = []
    for step in range(12):
        moved, _ = buffers.bring(step, batch(step, 8))
        places.append([each.data_ptr() for each in tensors(moved)])
    # The first round says how much is needed; from then on two buffers serve all steps.
    assert places[2:] == places[2:4] * 5
    assert not {p for each in places[2:3] for p in each} & {p for each in places[3:4] for p in each}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def trained(models, folder, store, *, prefetch: int, num_steps: int = 14):
    job = make_job(
        models,
        store,
        student=rb.Student(config=STUDENT_CONFIG),
        training=rb.TrainingConfig(
            num_steps=num_steps, batch_size=16, learning_rate=1e-3, prefetch=prefetch
        ),
    )
    training, pool = build(job, folder)
    recorder = Recorder()
    training.run(recorder)
    pool.flush()
    return training, recorder, pool


def test_a_run_with_batches_made_ahead_is_bit_for_bit_the_run_without(models, tmp_path):
    # A first run fills the store, so that both read the same labels.
    trained(models, tmp_path / "0", tmp_path / "store", prefetch=0)
    plain, losses, _ = trained(models, tmp_path / "1", tmp_path / "store", prefetch=0)
    for prefetch in (1, 5):
        prefetched, same, _ = trained(
            models, tmp_path / f"{prefetch}", tmp_path / "store", prefetch=prefetch
        )
        assert same.term("sum") == losses.term("sum")
        state = prefetched.model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in plain.model.state_dict().items())
        assert prefetched.labels is not None
        assert plain.labels is not None
        assert prefetched.labels.counts == plain.labels.counts


def test_labels_asked_for_ahead_are_computed_as_often_as_otherwise(models, tmp_path):
    counts = []
    for prefetch in (0, 4):
        store = tmp_path / f"store-{prefetch}"
        training, _, pool = trained(models, tmp_path / f"{prefetch}", store, prefetch=prefetch)
        assert training.labels is not None
        forwards = {name: r.metrics()["examples"] for name, r in pool.replicas.items()}
        counts.append((training.labels.counts, forwards))
    assert counts[0] == counts[1]
    # 90 rows, 6 of them twice.
    assert counts[0][1] == {"a": 84, "b": 84}


MAKING_S = 0.05
NUM_STEPS = 6
"""Of one epoch: nothing is made ahead beyond an evaluation."""


class SlowSteps(Recorder):
    """A student whose step ends once the batch of the next one is made."""

    def __init__(self, made: list[int]):
        super().__init__()
        self._made = made

    def progress(self, step: int) -> None:
        deadline = time.monotonic() + 10
        while step < NUM_STEPS and step not in self._made:
            assert time.monotonic() < deadline, "the next batch isn't made ahead"
            time.sleep(MAKING_S / 10)


def total_waits(models, folder, store, monkeypatch, prefetch: int) -> list[tuple[float, float]]:
    """Return the seconds that the student waited, and that it ran, up to each step."""
    build_step, made = BatchBuilder.build, []

    def slow_build(self: BatchBuilder, step: int) -> ReadyStep:
        time.sleep(MAKING_S)
        ready = build_step(self, step)
        made.append(step)
        return ready

    monkeypatch.setattr(BatchBuilder, "build", slow_build)
    config = rb.TrainingConfig(num_steps=NUM_STEPS, batch_size=16, prefetch=prefetch)
    recorder = SlowSteps(made) if prefetch else Recorder()
    build(make_job(models, store, training=config), folder)[0].run(recorder)
    names = ("time/label_wait_s", "time/step_s")  # each since the report before
    waited_s, ran_s = (itertools.accumulate([v[name] for v in recorder.values]) for name in names)
    return list(zip(waited_s, ran_s, strict=True))


def test_without_anything_made_ahead_each_step_waits_for_its_batch(models, tmp_path, monkeypatch):
    waits = total_waits(models, tmp_path / "1", tmp_path / "store", monkeypatch, prefetch=0)
    assert len(waits) == NUM_STEPS
    for step, (waited_s, ran_s) in enumerate(waits, start=1):
        assert step * MAKING_S <= waited_s <= ran_s


def test_only_the_first_step_waits_where_batches_are_made_faster_than_used(
    models, tmp_path, monkeypatch
):
    waits = total_waits(models, tmp_path / "1", tmp_path / "store", monkeypatch, prefetch=2)
    (first, _), *_, (last, ran_s) = waits
    assert first >= MAKING_S
    assert last - first < 3 * MAKING_S
    assert ran_s > first + (NUM_STEPS - 1) * MAKING_S
