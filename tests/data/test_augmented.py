"""Data sets with changed copies of their rows, and what a job makes of them."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import raybrew as rb
from raybrew.data.augmented import augmented
from raybrew.data.sampler import BatchSequence
from raybrew.data.split import IGNORED, UNLABELLED
from raybrew.jobfile import validate
from raybrew.preparation import prepare, prepare_supervised
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model
from tests.student.in_process import Recorder, build

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
ROWS = Dataset.from_dict(
    {"text": ["a b c d e f", "g h i j", "a b c d e f"], "label": [0, 1, 1]}, features=FEATURES
)
SHUFFLED = {"name": "short_disorder", "p": [0.2, 0.2, 0.2, 0.2, 0.2]}
MASKED = {"name": "masking", "p": 0.5}


def made(rows=ROWS, texts=("text",), label="label", **given) -> Dataset:
    return augmented(
        rows, rb.Augmentation(**given), texts=texts, label=label, what="tasks[t].train"
    )


def test_rounds_of_originals_and_copies():
    found = made(operations=[SHUFFLED], copies=2, rounds=2)
    assert len(found) == 2 * 3 * 3
    assert found.features == FEATURES
    assert found.column_names == ROWS.column_names
    for start in (0, 9):
        assert found["text"][start : start + 3] == ROWS["text"][:]
        assert found["label"][start : start + 3] == [0, 1, 1]
        assert found["label"][start + 3 : start + 9] == [None] * 6
    blocks = [found["text"][start : start + 3] for start in (3, 6, 12, 15)]
    for block in blocks:
        for copy, text in zip(block, ROWS["text"], strict=True):
            assert sorted(copy.split()) == sorted(text.split())
    assert len({tuple(block) for block in blocks}) == 4


def test_copies_alone_with_their_labels():
    found = made(operations=[SHUFFLED], originals=False, hard_labels=True)
    assert found["label"][:] == [0, 1, 1]
    assert found["text"][:] != ROWS["text"][:]


def test_a_copy_follows_from_its_text_and_the_seed():
    found = made(operations=[SHUFFLED], originals=False)["text"][:]
    assert found[0] == found[2]
    assert made(ROWS.select([2, 1]), operations=[SHUFFLED], originals=False)["text"][:] == [
        found[0],
        found[1],
    ]
    assert made(operations=[SHUFFLED], originals=False, seed=1)["text"][:] != found


def test_operations_one_after_another():
    given = [{"name": "deleting", "p": 0.3}, MASKED, {"name": "n_gram_sampling"}]
    found = made(operations=given, originals=False, mask="<m>", copies=30)
    sizes = [len(text.split()) for text in found["text"]]
    assert min(sizes) >= 1
    assert max(sizes) <= 5
    assert {"<m>", "c"} <= {word for text in found["text"] for word in text.split()}


def test_nothing_is_never_all_that_is_left():
    found = made(operations=[{"name": "deleting", "p": 1.0}], originals=False)
    assert found["text"][:] == ROWS["text"][:]


def test_characters_of_writing_without_spaces():
    rows = Dataset.from_dict({"text": ["今天天气很好"], "label": [0]})
    (text,) = made(rows, operations=[SHUFFLED], originals=False, unit="character")["text"][:]
    assert text != "今天天气很好"
    assert sorted(text) == sorted("今天天气很好")


def test_pairs_and_labels_of_words():
    rows = Dataset.from_dict({"text": ["a b c d"], "other": ["e f g h"], "label": [0]})
    found = made(rows, ("text", "other"), operations=[SHUFFLED], originals=False, copies=9)
    assert len(set(zip(found["text"], found["other"], strict=True))) > 3
    words = Dataset.from_dict({"words": [list("abcdefgh")], "tags": [list(range(8))]})
    operations = [MASKED, SHUFFLED, {"name": "deleting", "p": 0.4}]
    found = made(
        words, ("words",), "tags", operations=operations, hard_labels=True, copies=20, rounds=2
    )
    assert any("[MASK]" in row for row in found["words"])
    assert min(map(len, found["words"])) < 8
    for row, tags in zip(found["words"], found["tags"], strict=True):
        assert len(row) == len(tags)
        for word, tag in zip(row, tags, strict=True):
            assert word in ("[MASK]", "abcdefgh"[tag])


def test_a_label_of_several_classes_is_no_label_of_words():
    rows = Dataset.from_dict({"text": ["a b c"], "label": [["x", "y"]]})
    found = made(rows, operations=[SHUFFLED], originals=False, hard_labels=True)
    assert found["label"][:] == [["x", "y"]]


def test_a_column_that_holds_no_text():
    rows = Dataset.from_dict({"text": [3], "label": [0]})
    with pytest.raises(rb.DataError, match=r"tasks\[t\]\.train: row 0: column 'text'.*got int"):
        made(rows, operations=[SHUFFLED])


def test_a_missing_column_is_named_by_whoever_reads_it(models, tmp_path):
    given = task(operations=[SHUFFLED]).model_copy(update={"text": "txt"})
    with pytest.raises(rb.DataError, match=r"expected a column 'txt'.*did you mean 'text'"):
        prepare(job(models, tmp_path, given), tmp_path / "data")


def test_each_epoch_reads_its_round():
    sequence = BatchSequence([5], 2, 0, rounds=[3])
    assert sequence.steps_per_epoch == 3
    for epoch in range(5):
        rows = np.concatenate([sequence.batch(3 * epoch + step)[1] for step in range(3)])
        assert sorted(rows) == list(range(5 * (epoch % 3), 5 * (epoch % 3) + 5))


def task(rows=12, **augmentation) -> rb.Task:
    return rb.Task(
        name="sum",
        train=make_data(rows),
        max_length=32,
        augmentation=rb.Augmentation(**augmentation),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"a": make_model(tmp_path_factory.mktemp("teachers") / "a", 0)}


def job(models, tmp_path, task, **changes) -> rb.DistillJob:
    return make_job(
        models,
        tmp_path / "store",
        tasks=[task],
        training=rb.TrainingConfig(num_epochs=4, batch_size=8, num_threads=1),
        **changes,
    )


def test_teachers_label_copies_like_any_row(models, tmp_path):
    given = task(operations=[SHUFFLED, MASKED], copies=2, rounds=2)
    training, pool = build(job(models, tmp_path, given), tmp_path / "run")
    split = training.tasks[0].train
    assert len(split.labels) == 2 * 3 * 12
    assert (split.labels[:12] >= 0).all()
    assert (split.labels[12:36] == -1).all()
    assert training.num_steps == 4 * 5  # 36 rows an epoch in batches of 8
    recorder = Recorder()
    training.run(recorder)
    different = len(np.unique(split.student.keys, axis=0))
    assert different > 48
    # Four epochs read two rounds twice: one forward for each text that differs.
    assert pool.replicas["a"].figures()["examples"] == different
    assert len(recorder.term("sum", "kd")) == 20


def test_hard_labels_count_where_they_are(models, tmp_path):
    given = task(operations=[SHUFFLED], copies=3)
    both = job(
        models,
        tmp_path,
        given,
        distillation=rb.DistillationConfig(kd_loss_weight=0, hard_label_weight=1),
    )
    training, _ = build(both, tmp_path / "run")
    _, rows = training.sequence.batch(0)
    labels = training.tasks[0].train.labels[rows]
    assert 0 < (labels >= 0).sum() < 8


def test_the_mask_is_that_of_every_reader(models, tmp_path):
    wrong = task(operations=[MASKED], mask="<mask>")
    with pytest.raises(
        rb.ConfigError, match=r"tasks\[sum\]\.augmentation\.mask.*'\[MASK\]', got '<mask>'"
    ):
        prepare(job(models, tmp_path, wrong), tmp_path / "data")
    unmasked = task(operations=[SHUFFLED], mask="<mask>")
    assert prepare(job(models, tmp_path, unmasked), tmp_path / "data")


def test_supervised_training_reads_copies_too(models, tmp_path):
    given = task(operations=[SHUFFLED], hard_labels=True)
    supervised = rb.TrainJob(
        tasks=[given],
        model=rb.Student(config=STUDENT_CONFIG, tokenizer_from=models["a"]),
        training=rb.TrainingConfig(num_epochs=1),
    )
    (prepared,) = prepare_supervised(supervised, tmp_path).tasks
    assert prepared.train.labels.tolist() == prepared.train.labels[:12].tolist() * 2


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ({"name": "maskin"}, r"operations\[0\]\.name.*did you mean 'masking'"),
        ({"name": "masking", "p": 1.5}, r"masking: expected p in \[0, 1\], got 1.5"),
        ({"name": "deleting", "length": 3}, r"deleting takes p, got length"),
        ({"name": "short_disorder", "p": 0.5}, r"expected 5 numbers.*short_disorder: p, got 0.5"),
        (
            {"name": "n_gram_sampling", "l_ng": [1, 2]},
            r"expected 2 numbers ≥ 0 with the sum 1 in n_gram_sampling: p_ng",
        ),
        (
            {"name": "n_gram_sampling", "l_ng": [0], "p_ng": [1.0]},
            r"expected lengths of 1 or more in l_ng",
        ),
        (
            {"name": "n_gram_sampling", "l_ng": [], "p_ng": []},
            r"expected lengths of 1 or more in l_ng, got \(\)",
        ),
    ],
)
def test_mistakes(operation, said):
    given = {
        "tasks": [{"name": "t", "train": "rows.csv", "augmentation": {"operations": [operation]}}],
        "teachers": [{"name": "a", "task": "t", "model": "m"}],
        "student": {"model": "m"},
        "training": {"num_steps": 1},
    }
    with pytest.raises(rb.ConfigError, match=said):
        validate(rb.DistillJob, given)


WORDS = Dataset.from_dict(
    {
        "words": [["w1", "w2", "w3", "w4", "w5"], ["w6", "w7", "w8"]],
        "tags": [["O", "B", "I", "O", "B"], ["B", "I", "O"]],
    }
)
SEVERAL = Dataset.from_dict({"text": ["w1 w2 w3", "w4 w5 w6"], "label": [["x", "y"], ["z"]]})
VALUES = Dataset.from_dict({"text": ["w1 w2 w3", "w4 w5 w6"], "label": [1.5, -2.0]})


@pytest.mark.parametrize("hard_labels", [True, False])
@pytest.mark.parametrize(
    ("kind", "rows"),
    [("token-classification", WORDS), ("multi-label", SEVERAL), ("regression", VALUES)],
)
def test_every_kind_of_rows_of_one_example(models, tmp_path, kind, rows, hard_labels):
    given = rb.Task(
        name="t",
        kind=kind,
        train=rows,
        max_length=32,
        augmentation=rb.Augmentation.model_validate(
            {
                "operations": [SHUFFLED, {"name": "deleting", "p": 0.2}],
                "hard_labels": hard_labels,
            }
        ),
    )
    supervised = rb.TrainJob(
        tasks=[given],
        model=rb.Student(config=STUDENT_CONFIG, tokenizer_from=models["a"]),
        training=rb.TrainingConfig(num_epochs=1),
    )
    (prepared,) = prepare_supervised(supervised, tmp_path).tasks
    assert len(prepared.train) == 4
    first, last = prepared.train.labels_of(np.arange(2)), prepared.train.labels_of(np.arange(2, 4))
    known = np.isfinite(first) & (first != UNLABELLED)
    assert known.all()
    labelled = np.isfinite(last) & (last != UNLABELLED) & (last != IGNORED)
    assert labelled.any() == hard_labels


def test_a_kind_whose_answers_are_places_is_not_changed(models, tmp_path):
    given = rb.Task(
        name="sum",
        kind="question-answering",
        train="nowhere.json",
        augmentation=rb.Augmentation.model_validate({"operations": [SHUFFLED]}),
    )
    with pytest.raises(
        rb.ConfigError, match=r"tasks\[sum\]\.augmentation.*got 'question-answering'"
    ):
        prepare(job(models, tmp_path, given), tmp_path / "data")
