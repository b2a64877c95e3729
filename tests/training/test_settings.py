"""Settings of a job at work: each is seen in what the run does.

A test that two runs are equal passes as well where the setting that they differ in does nothing.
"""

import numpy as np
import pytest

import raybrew as rb
from raybrew.teachers.teacher import ModelTeacher
from tests.made import make_job, make_model
from tests.training.in_process import Answered, Recorder, build

ROWS = 90


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"a": make_model(tmp_path_factory.mktemp("teachers") / "a", 0)}


def training_of(models, folder, labels=None, **settings):
    job = make_job(
        models,
        folder / "store",
        training=rb.TrainingConfig(**settings),
        labels=rb.LabelConfig(**{"store": str(folder / "store"), **(labels or {})}),
    )
    return build(job, folder / "data")


@pytest.mark.parametrize(("batch_size", "num_epochs"), [(7, 3), (16, 1), (90, 2)])
def test_a_run_is_so_many_epochs_of_batches_of_that_size(models, tmp_path, batch_size, num_epochs):
    training, _ = training_of(models, tmp_path, batch_size=batch_size, num_epochs=num_epochs)
    per_epoch = -(-ROWS // batch_size)
    assert training.num_steps == num_epochs * per_epoch
    rows = [training.sequence.batch(step)[1] for step in range(training.num_steps)]
    for epoch in range(num_epochs):
        batches = rows[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(batches)) == list(range(ROWS))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (per_epoch - 1)


def test_grouping_by_length_puts_sentences_of_similar_length_into_one_batch(models, tmp_path):
    spreads = []
    for grouped in (False, True):
        training, _ = training_of(
            models, tmp_path / str(grouped), batch_size=8, num_epochs=1, group_by_length=grouped
        )
        lengths = training.tasks[0].train.student.lengths
        batches = [lengths[training.sequence.batch(step)[1]] for step in range(ROWS // 8)]
        spreads.append(np.mean([np.ptp(batch) for batch in batches]))
    # Sentences of 5 to 13 tokens: batches that are drawn span most of that.
    assert spreads[0] > 5
    assert spreads[1] < 1.5


@pytest.mark.parametrize(
    ("dtype", "bytes_of_a_value"), [("float32", 4), ("bfloat16", 2), ("float16", 2)]
)
def test_labels_are_kept_in_their_dtype(models, tmp_path, dtype, bytes_of_a_value):
    training, pool = training_of(models, tmp_path, {"dtype": dtype}, num_epochs=1, batch_size=16)
    training.run(Recorder())
    pool.flush()
    # 84 sentences that differ, three classes.
    assert pool.replicas["a"].metrics()["payload_bytes"] == 84 * 3 * bytes_of_a_value


@pytest.mark.parametrize(("top_k", "entries"), [(1, 1), (2, 2)])
def test_so_many_of_the_largest_logits_are_kept(models, tmp_path, top_k, entries):
    labels = {"top_k": top_k, "top_k_temperatures": (3.0, 5.0)}
    training, pool = training_of(models, tmp_path, labels, num_epochs=1, batch_size=16)
    training.run(Recorder())
    pool.flush()
    # Values, their classes, and the logsumexp at the two temperatures and at the job's own.
    expected = 84 * 4 * (2 * entries + 3)
    assert pool.replicas["a"].metrics()["payload_bytes"] == expected


@pytest.mark.parametrize(("window", "requests"), [(1, 6), (2, 3), (4, 2), (8, 1)])
def test_labels_of_so_many_steps_are_asked_for_at_once(
    models, tmp_path, monkeypatch, window, requests
):
    training, pool = training_of(
        models, tmp_path, {"window": window, "max_windows": 1}, num_epochs=1, batch_size=16
    )
    asked = []
    ask = pool.ask

    def counted(teacher, view, signals):
        asked.append(len(view))
        return ask(teacher, view, signals)

    monkeypatch.setattr(pool, "ask", counted)
    training.run(Recorder())
    # An epoch of 6 steps; 6 of the 90 rows are copies of others.
    assert len(asked) == requests
    assert 84 <= sum(asked) <= ROWS


@pytest.mark.parametrize("max_windows", [1, 3])
def test_so_many_requests_are_under_way_before_the_first_answer_is_needed(
    models, tmp_path, monkeypatch, max_windows
):
    training, pool = training_of(
        models,
        tmp_path,
        {"window": 1, "max_windows": max_windows},
        num_epochs=1,
        batch_size=16,
        prefetch=0,
    )
    happened = []
    ask, result = pool.ask, Answered.result

    def asked(teacher, view, signals):
        happened.append("asked")
        return ask(teacher, view, signals)

    def needed(self):
        happened.append("needed")
        return result(self)

    monkeypatch.setattr(pool, "ask", asked)
    monkeypatch.setattr(Answered, "result", needed)
    training.run(Recorder())
    assert happened.index("needed") == max_windows
    assert happened.count("asked") == happened.count("needed") == 6


def test_a_teacher_counts_by_its_weight(tmp_path):
    paths = {name: make_model(tmp_path / name, seed) for seed, name in enumerate("ab")}

    def losses(**weights: float) -> list[float]:
        teachers = [
            rb.Teacher(name=name, task="sum", model=paths[name], weight=weight)
            for name, weight in weights.items()
        ]
        training = rb.TrainingConfig(num_steps=3, batch_size=16)
        job = make_job({}, tmp_path / "store", teachers=teachers, training=training)
        recorder = Recorder()
        built, pool = build(job, tmp_path / str(weights))
        built.run(recorder)
        pool.flush()
        return recorder.term("sum")

    assert losses(a=1.0, b=0.0) == pytest.approx(losses(a=1.0), rel=1e-6)
    assert losses(a=2.0, b=1.0) == pytest.approx(losses(a=1.0, b=0.5), rel=1e-6)
    assert losses(a=1.0, b=0.5) != pytest.approx(losses(a=1.0, b=1.0), rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [26, 200])
def test_a_forward_of_a_teacher_has_so_many_tokens_at_most(
    models, tmp_path, monkeypatch, batch_tokens
):
    teacher = rb.Teacher(name="a", task="sum", model=models["a"], batch_tokens=batch_tokens)
    training = rb.TrainingConfig(num_epochs=1, batch_size=45)
    job = make_job({}, tmp_path / "store", teachers=[teacher], training=training)
    built, _ = build(job, tmp_path / "data")
    sizes = []
    forward = ModelTeacher._forward

    def counted(self, view, rows, signals):
        sizes.append(len(rows) * int(view.lengths[rows].max()))
        return forward(self, view, rows, signals)

    monkeypatch.setattr(ModelTeacher, "_forward", counted)
    built.run(Recorder())
    # Filled as far as one more of these sentences, of 13 tokens at most, would not have fit.
    assert batch_tokens - 2 * 13 < max(sizes) <= batch_tokens
