import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import raybrew as rb
from raybrew.config.job_file import validate
from raybrew.data.augmentation import (
    OPERATIONS,
    augmented,
    deleting,
    long_disorder,
    masking,
    n_gram_sampling,
    short_disorder,
)
from raybrew.data.batch_sequence import BatchSequence, TaskExamples
from raybrew.data.split import IGNORED, UNLABELLED
from raybrew.runs.resolve import resolve_job
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model
from tests.training.in_process import Recorder, build

# Changes of token lists: draw for draw as in the published textbrewer, and by hand.

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer import data_utils

LETTERS = list("abcdefgh")
tokens_of = st.lists(st.integers(0, 99), max_size=30)
seeds = st.integers(0, 2**32 - 1)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("masking", {"p": 0.4, "mask": "[MASK]"}),
    ("deleting", {"p": 0.4}),
    ("n_gram_sampling", {"p_ng": [0.1, 0.6, 0.3], "l_ng": [1, 2, 4]}),
    ("short_disorder", {"p": [0.3, 0.2, 0.2, 0.2, 0.1]}),
    ("long_disorder", {"p": 0.5, "length": 5}),
    ("long_disorder", {"p": 0.5, "length": 0.4}),
]


class Drawn:
    """A generator that gives these numbers."""

    def __init__(self, *values: Any):
        self._values = list(values)

    def random(self, size=None):
        return np.array(self._values.pop(0)) if size is not None else self._values.pop(0)

    def binomial(self, n, p, size):
        return self._values.pop(0)

    def choice(self, *_, **__):
        return self._values.pop(0)

    def integers(self, low, high):
        value = self._values.pop(0)
        assert low <= value < high
        return value


def drawn(*values: Any) -> Any:
    return Drawn(*values)


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(deadline=None, max_examples=40)
@given(seed=seeds, length=st.integers(5, 40))
def test_equals_textbrewer_draw_for_draw(name, options, seed, length):
    theirs_draws = np.random.default_rng(seed)
    stand_in = SimpleNamespace(
        binomial=theirs_draws.binomial,
        choice=theirs_draws.choice,
        integer=int,
        ndarray=np.ndarray,
        random=SimpleNamespace(
            rand=theirs_draws.random,
            choice=theirs_draws.choice,
            binomial=theirs_draws.binomial,
            randint=theirs_draws.integers,
        ),
    )
    tokens = list(range(length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_utils, "np", stand_in)
        theirs = getattr(data_utils, name)(list(tokens), **options)
    ours = OPERATIONS[name](tokens, np.random.default_rng(seed), **options)
    assert ours == theirs
    assert tokens == list(range(length))


def test_masking_and_deleting_by_hand():
    assert masking("abc", drawn([0.3, 0.1, 0.2]), p=0.2, mask="_") == ["a", "_", "c"]
    assert deleting("abc", drawn([1, 0, 1])) == ["a", "c"]
    generator = np.random.default_rng(0)
    assert masking("abc", generator, p=1.0, mask="_") == ["_"] * 3
    assert masking("abc", generator, p=0.0, mask="_") == list("abc")
    assert deleting("abc", generator, p=1.0) == []


def test_an_n_gram_by_hand():
    assert n_gram_sampling(LETTERS, drawn(3, 5)) == ["f", "g", "h"]
    assert n_gram_sampling("ab", drawn(5)) == ["a", "b"]
    assert n_gram_sampling([], np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("case", "expected"),
    [(1, "bacdefgh"), (2, "cbadefgh"), (3, "cabdefgh"), (4, "bcadefgh")],
)
def test_each_short_disorder_by_hand(case, expected):
    # Once, and then places that stay as they are.
    assert "".join(short_disorder(LETTERS, drawn(case, *[0] * 7))) == expected


def test_the_last_two_change_places_in_any_case():
    for case in (1, 2, 3, 4):
        assert short_disorder("ab", drawn(case)) == ["b", "a"]
    assert short_disorder("a", drawn()) == ["a"]


def test_a_long_disorder_by_hand():
    # TextBrewer's own example.
    found = long_disorder(range(11), np.random.default_rng(0), p=1, length=0.4)
    assert found == [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]
    # Spans of 4: the first place stays, the second changes, then there is no room.
    assert "".join(long_disorder(LETTERS, drawn(0.9, 0.1, 0.9), p=0.5, length=4)) == "adebcfgh"


@pytest.mark.parametrize("length", [0.01, 0.4])
def test_a_span_of_no_token_ends(length):
    # TextBrewer goes round for ever here.
    assert long_disorder("ab", np.random.default_rng(0), p=1.0, length=length) == ["a", "b"]


@settings(deadline=None, max_examples=60)
@given(tokens=tokens_of, seed=seeds)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_holds_for_any_list(name, options, tokens, seed):
    before = list(tokens)
    found = OPERATIONS[name](tokens, np.random.default_rng(seed), **options)
    assert tokens == before
    assert found == OPERATIONS[name](tuple(tokens), np.random.default_rng(seed), **options)
    if name in ("short_disorder", "long_disorder"):
        assert sorted(found) == sorted(tokens)
    elif name == "masking":
        assert len(found) == len(tokens)
        assert all(new in (old, "[MASK]") for new, old in zip(found, tokens, strict=True))
    elif name == "n_gram_sampling":
        assert any(found == tokens[at : at + len(found)] for at in range(len(tokens) + 1))
    else:
        rest = iter(tokens)
        assert all(token in rest for token in found)


def test_chances_are_those_that_were_asked_for():
    generator = np.random.default_rng(0)
    many = list(range(20000))
    assert masking(many, generator, p=0.3, mask=-1).count(-1) / 20000 == pytest.approx(
        0.3, abs=0.02
    )
    assert len(deleting(many, generator, p=0.3)) / 20000 == pytest.approx(0.7, abs=0.02)
    lengths = [len(n_gram_sampling(range(9), generator)) for _ in range(5000)]
    for length in range(1, 6):
        assert lengths.count(length) / 5000 == pytest.approx(0.2, abs=0.03)


# Data sets with changed copies of their rows, and what a job makes of them.

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
        resolve_job(job(models, tmp_path, given), tmp_path / "data")


def test_each_epoch_reads_its_round():
    sequence = BatchSequence([TaskExamples(5, 2, rounds=3)], 0)
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
    assert pool.replicas["a"].metrics()["examples"] == different
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
        resolve_job(job(models, tmp_path, wrong), tmp_path / "data")
    unmasked = task(operations=[SHUFFLED], mask="<mask>")
    assert resolve_job(job(models, tmp_path, unmasked), tmp_path / "data")


def test_supervised_training_reads_copies_too(models, tmp_path):
    given = task(operations=[SHUFFLED], hard_labels=True)
    supervised = rb.TrainJob(
        tasks=[given],
        model=rb.Student(config=STUDENT_CONFIG, tokenizer_from=models["a"]),
        training=rb.TrainingConfig(num_epochs=1),
    )
    (prepared,) = resolve_job(supervised, tmp_path).tasks
    assert prepared.train.labels.tolist() == prepared.train.labels[:12].tolist() * 2


@pytest.mark.parametrize(
    ("operation", "message"),
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
def test_mistakes(operation, message):
    given = {
        "tasks": [{"name": "t", "train": "rows.csv", "augmentation": {"operations": [operation]}}],
        "teachers": [{"name": "a", "task": "t", "model": "m"}],
        "student": {"model": "m"},
        "training": {"num_steps": 1},
    }
    with pytest.raises(rb.ConfigError, match=message):
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
    (prepared,) = resolve_job(supervised, tmp_path).tasks
    if not hard_labels and kind != "token-classification":
        assert len(prepared.train) == 2  # nothing is learnt from a row without its label
        return
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
        resolve_job(job(models, tmp_path, given), tmp_path / "data")
