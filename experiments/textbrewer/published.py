"""TextBrewer's published experiments: their data, the rows of their tables, their students."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.data import default_cache
from raybrew.errors import ConfigError

# The data sets of TextBrewer's experiments: where each is on the hub, and how it is trained.
#
#     Benchmark.task      fields of raybrew's `Task`; `{split}` is filled in for train and eval
#     Benchmark.teacher   of `TrainingConfig`: how teachers, and students without teachers, are made
#     Benchmark.student   of `TrainingConfig`: how students are distilled
#
# Learning rates, lengths, batch sizes and epochs are those of TextBrewer's paper and of the scripts
# in its `examples`; where they say nothing (see README.md), those of MNLI.

HOTPOTQA = default_cache() / "data" / "hotpotqa" / "train.parquet"
"""What `experiments.textbrewer.hotpotqa` writes."""

_ENTAILMENT = ["entailment", "neutral", "contradiction"]
_ENTITIES = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
_TEACHER = {"num_epochs": 3, "batch_size": 32, "learning_rate": 3e-5}
_STUDENT = {"num_epochs": 40, "batch_size": 32, "learning_rate": 1e-4}
_PAIR = {"kind": "sequence-classification", "label": "label", "max_length": 128}
_ANSWERS = {"kind": "question-answering", "text": "question", "text_pair": "context"}
_CHINESE_ANSWERS = {
    **_ANSWERS,
    "max_length": 512,
    "stride": 128,
    # Hundreds of answers don't stand where these sets say; TextBrewer looks for them, too.
    "answers_at": "search",
    "answers_by": "character",
}
_WORDS = {"kind": "token-classification", "text": "tokens", "label": "ner_tags"}


@dataclass(frozen=True)
class Benchmark:
    """A data set as the rows use it.

    Args:
        task: fields of the job's task besides its name.
        metrics: what the published numbers are, in order; `accuracy mm` is that of `further`.
        teacher: training of a model on labels alone.
        student: training of a student with teachers.
        further: other evaluation rows, by what is added to the metric's name.
        transfer: data that are added where a row asks for augmentation.
        constant_rate_with: teachers with whom the learning rate doesn't decay.
        temperature: of distillation.
    """

    task: Mapping[str, Any]
    metrics: tuple[str, ...]
    teacher: Mapping[str, Any] = field(default_factory=lambda: _TEACHER)
    student: Mapping[str, Any] = field(default_factory=lambda: _STUDENT)
    further: Mapping[str, str] = field(default_factory=dict)
    transfer: tuple[str, ...] = ()
    constant_rate_with: tuple[str, ...] = ()
    temperature: float = 8


BENCHMARKS: Mapping[str, Benchmark] = {
    "mnli": Benchmark(
        task={
            **_PAIR,
            "train": "nyu-mll/glue:mnli@train",
            "eval": "nyu-mll/glue:mnli@validation_matched",
            "text": "premise",
            "text_pair": "hypothesis",
            "label_names": _ENTAILMENT,
        },
        metrics=("accuracy", "accuracy mm"),
        further={"mm": "nyu-mll/glue:mnli@validation_mismatched"},
    ),
    "squad": Benchmark(
        task={
            **_ANSWERS,
            "train": "rajpurkar/squad@train",
            "eval": "rajpurkar/squad@validation",
            "max_length": 384,
            "stride": 128,
        },
        metrics=("exact_match", "f1"),
        transfer=("lucadiliello/newsqa@train",),
    ),
    "conll2003": Benchmark(
        task={
            **_WORDS,
            "train": "eriktks/conll2003:conll2003@train",
            "eval": "eriktks/conll2003:conll2003@validation",
            "label_names": [*_ENTITIES, "B-MISC", "I-MISC"],
            "max_length": 128,
        },
        metrics=("f1",),
        transfer=(str(HOTPOTQA),),
    ),
    "xnli": Benchmark(
        task={
            **_PAIR,
            "train": "facebook/xnli:zh@train",
            "eval": "facebook/xnli:zh@validation",
            "text": "premise",
            "text_pair": "hypothesis",
            "label_names": _ENTAILMENT,
        },
        metrics=("accuracy",),
    ),
    "lcqmc": Benchmark(
        task={
            **_PAIR,
            "train": "C-MTEB/LCQMC@train",
            "eval": "C-MTEB/LCQMC@validation",
            "text": "sentence1",
            "text_pair": "sentence2",
            "label": "score",
            "label_names": ["different", "same"],
        },
        metrics=("accuracy",),
    ),
    "cmrc2018": Benchmark(
        task={
            **_CHINESE_ANSWERS,
            "train": "hfl/cmrc2018@train",
            "eval": "hfl/cmrc2018@validation",
        },
        metrics=("exact_match", "f1"),
        teacher={"num_epochs": 2, "batch_size": 24, "learning_rate": 3e-5},
        student={"num_epochs": 50, "batch_size": 24, "learning_rate": 1e-4},
        transfer=("clue/clue:drcd@train",),
        constant_rate_with=("roberta-wwm-ext",),
    ),
    "drcd": Benchmark(
        task={
            **_CHINESE_ANSWERS,
            "train": "clue/clue:drcd@train",
            "eval": "clue/clue:drcd@validation",
        },
        metrics=("exact_match", "f1"),
        teacher={"num_epochs": 2, "batch_size": 24, "learning_rate": 3e-5},
        student={"num_epochs": 50, "batch_size": 24, "learning_rate": 1e-4},
        transfer=("hfl/cmrc2018@train",),
        constant_rate_with=("roberta-wwm-ext",),
    ),
    "msra": Benchmark(
        task={
            **_WORDS,
            "train": "levow/msra_ner:msra_ner@train",
            "eval": "levow/msra_ner:msra_ner@test",
            "label_names": _ENTITIES,
            "max_length": 160,
        },
        metrics=("f1",),
        teacher={"num_epochs": 2, "batch_size": 24, "learning_rate": 3e-5},
        student={"num_epochs": 30, "batch_size": 24, "learning_rate": 1e-4},
    ),
    "sst2": Benchmark(
        task={
            **_PAIR,
            "train": "nyu-mll/glue:sst2@train",
            "eval": "nyu-mll/glue:sst2@validation",
            "text": "sentence",
            "label_names": ["negative", "positive"],
        },
        metrics=("accuracy",),
        teacher={"num_epochs": 5, "batch_size": 32, "learning_rate": 5e-5},
        student={"num_epochs": 20, "batch_size": 32, "learning_rate": 1e-4},
        temperature=4,
    ),
}


# The rows of TextBrewer's published tables, and their students.

# The models of TextBrewer's experiments: teachers' hub ids, and where each student comes from.

MODELS: Mapping[str, str] = {
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "roberta-wwm-ext": "hfl/chinese-roberta-wwm-ext",
    "electra-base": "hfl/chinese-electra-base-discriminator",
    "electra-small": "hfl/chinese-electra-small-discriminator",
}
"""What is fine-tuned, by the name that rows use."""

_MSE_AND_MMD = ("hidden_mse", "hidden_smmd")
_EVERY_SECOND = tuple({"preset": kind, "every": 2} for kind in _MSE_AND_MMD)


@dataclass(frozen=True)
class Origin:
    """Where a student starts from, and what of its teacher's layers it is compared with.

    Args:
        matches: of the objective; kinds are generated for the sizes of both models.
        layers: so many of the first layers of the teacher, or of what the teacher was made from.
        preset: one of raybrew's, with random weights.
        model: one of `MODELS`, pretrained; what the teachers are made from if all are left out.
    """

    matches: tuple[Any, ...] = _MSE_AND_MMD
    layers: int = 0
    preset: str | None = None
    model: str | None = None

    def section(self, base: str, teacher: str | None) -> dict[str, Any]:
        """Return the job's section.

        Args:
            base: name of the model that the row's teacher is made from.
            teacher: the job's teacher; None without teachers.
        """
        if self.layers:
            return {"layers_from": [teacher or MODELS[base], list(range(self.layers))]}
        if self.preset is not None:
            own = {} if teacher else {"tokenizer_from": MODELS[base]}
            return {"preset": self.preset, **own}
        return {"model": MODELS[self.model or base]}


STUDENTS: Mapping[str, Origin] = {
    "T6": Origin(layers=6),
    "T3": Origin(layers=3),
    "T3-small": Origin(preset="T3-small"),
    "T4-tiny": Origin(preset="T4-tiny"),
    "T4-tiny-emd": Origin(preset="T4-tiny", matches=("hidden_emd",)),
    "T12-nano": Origin(preset="T12-nano", matches=_EVERY_SECOND),
    "BiGRU": Origin(preset="BiGRU", matches=()),
    "Electra-small": Origin(model="electra-small", matches=_EVERY_SECOND),
    # What several teachers teach: a model of their own size, by their logits alone.
    "base": Origin(matches=()),
    "T3-two-matches": Origin(
        layers=3,
        matches=(
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse"},
            {"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse"},
        ),
    ),
}
"""By the name that rows use."""


# The rows of TextBrewer's published tables, each a job: who learns what from whom, and the score.
#
#     python -m experiments.textbrewer --list     prints them
#
# A row of kind `teacher` or `alone` is trained on labels, one of kind `student` is distilled.
# Scores are percentages, in the order of the benchmark's metrics; none where none was published.

ENGLISH, ROBERTA, ELECTRA = "bert-base-cased", "roberta-wwm-ext", "electra-base"


@dataclass(frozen=True)
class Row:
    """One line of a published table.

    Args:
        benchmark: its data set, a key of `BENCHMARKS`.
        name: of the row.
        kind: how the model is made.
        base: what its teachers are made from, a key of `MODELS`.
        published: percentages.
        student: a key of `STUDENTS`.
        teachers: how many.
        augmented: whether the benchmark's transfer data are added.
        note: what the table should say of it.
    """

    benchmark: str
    name: str
    kind: Literal["teacher", "alone", "student"]
    base: str
    published: tuple[float, ...] = ()
    student: str = "base"
    teachers: int = 1
    augmented: bool = False
    note: str = ""

    @property
    def data(self) -> Benchmark:
        """Of the row."""
        return BENCHMARKS[self.benchmark]

    @property
    def origin(self) -> Origin:
        """Where the student starts from."""
        return STUDENTS[self.student]

    @property
    def title(self) -> str:
        """As the command line names it."""
        return f"{self.benchmark} {self.name}"

    @property
    def score(self) -> str:
        """The published score, as tables write it."""
        return "/".join(f"{value:.2f}".removesuffix("0") for value in self.published) or "–"


def _students(
    benchmark: str, base: str, scores: dict[str, tuple[float, ...]], augmented: tuple[str, ...] = ()
) -> Iterator[Row]:
    for name, published in scores.items():
        da = name in augmented
        yield Row(
            benchmark,
            name,
            "student",
            base,
            published,
            student=name,
            augmented=da,
            note="+DA" if da else "",
        )


def _alone(benchmark: str, base: str, scores: dict[str, tuple[float, ...]]) -> Iterator[Row]:
    for name, published in scores.items():
        yield Row(benchmark, f"{name}-alone", "alone", base, published, student=name)


def _three(benchmark: str, published: tuple[float, ...], ensemble: str) -> Row:
    note = f"their mean {ensemble}"
    return Row(benchmark, "three-teachers", "student", ENGLISH, published, teachers=3, note=note)


ROWS: tuple[Row, ...] = (
    Row("mnli", ENGLISH, "teacher", ENGLISH, (83.7, 84.0)),
    *_alone("mnli", ENGLISH, {"T3": (76.1, 76.5)}),
    *_students(
        "mnli",
        ENGLISH,
        {
            "T6": (83.5, 84.0),
            "T3": (81.8, 82.7),
            "T3-small": (81.3, 81.7),
            "T4-tiny": (82.0, 82.6),
            "T12-nano": (83.2, 83.9),
        },
    ),
    Row(
        "mnli",
        "T4-tiny-emd",
        "student",
        ENGLISH,
        student="T4-tiny-emd",
        note="as main.emd.py",
    ),
    _three("mnli", (84.8, 85.3), "84.3/84.7"),
    Row("squad", ENGLISH, "teacher", ENGLISH, (81.5, 88.6)),
    *_alone("squad", ENGLISH, {"T3": (63.0, 74.3), "T6": (75.0, 83.3)}),
    *_students(
        "squad",
        ENGLISH,
        {
            "T6": (80.8, 88.1),
            "T3": (76.4, 84.9),
            "T3-small": (72.3, 81.4),
            "T4-tiny": (75.2, 84.0),
            "T12-nano": (79.0, 86.6),
        },
        augmented=("T4-tiny",),
    ),
    _three("squad", (83.5, 90.0), "82.3/89.4"),
    Row("conll2003", ENGLISH, "teacher", ENGLISH, (91.1,)),
    *_alone("conll2003", ENGLISH, {"T3": (85.3,), "BiGRU": (81.1,)}),
    *_students(
        "conll2003",
        ENGLISH,
        {
            "BiGRU": (85.3,),
            "T6": (90.7,),
            "T3": (87.5,),
            "T3-small": (78.6,),
            "T4-tiny": (89.1,),
            "T12-nano": (89.6,),
        },
        augmented=("T4-tiny", "T12-nano"),
    ),
    Row("xnli", ROBERTA, "teacher", ROBERTA, (79.9,)),
    *_students("xnli", ROBERTA, {"T3": (78.4,), "T3-small": (76.0,), "T4-tiny": (76.2,)}),
    Row("xnli", ELECTRA, "teacher", ELECTRA, (77.8,)),
    *_students("xnli", ELECTRA, {"Electra-small": (77.7,)}),
    Row("lcqmc", ROBERTA, "teacher", ROBERTA, (89.4,)),
    *_students("lcqmc", ROBERTA, {"T3": (89.0,), "T3-small": (88.1,), "T4-tiny": (88.4,)}),
    Row("lcqmc", ELECTRA, "teacher", ELECTRA, (89.8,)),
    *_students("lcqmc", ELECTRA, {"Electra-small": (89.3,)}),
    Row("cmrc2018", ROBERTA, "teacher", ROBERTA, (68.8, 86.4)),
    *_students(
        "cmrc2018",
        ROBERTA,
        {"T3": (66.4, 84.2), "T3-small": (58.0, 79.3), "T4-tiny": (61.8, 81.8)},
        augmented=("T3", "T3-small", "T4-tiny"),
    ),
    Row("cmrc2018", ELECTRA, "teacher", ELECTRA, (65.6, 84.7)),
    *_students("cmrc2018", ELECTRA, {"Electra-small": (66.5, 84.9)}, augmented=("Electra-small",)),
    Row("drcd", ROBERTA, "teacher", ROBERTA, (86.5, 92.5)),
    *_students(
        "drcd",
        ROBERTA,
        {"T3": (78.2, 86.4), "T3-small": (75.8, 84.8), "T4-tiny": (77.3, 86.1)},
        augmented=("T3", "T3-small", "T4-tiny"),
    ),
    Row("drcd", ELECTRA, "teacher", ELECTRA, (86.9, 92.3)),
    *_students("drcd", ELECTRA, {"Electra-small": (85.5, 91.3)}, augmented=("Electra-small",)),
    Row("msra", ELECTRA, "teacher", ELECTRA, (95.14,)),
    *_students("msra", ELECTRA, {"Electra-small": (93.48,)}),
    Row("sst2", "bert-base-uncased", "teacher", "bert-base-uncased"),
    Row(
        "sst2",
        "T3",
        "student",
        "bert-base-uncased",
        student="T3-two-matches",
        note="as sst2.ipynb",
    ),
)


def find(benchmark: str, name: str) -> Row:
    """Return the row of this name.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    rows = {row.name: row for row in ROWS if row.benchmark == benchmark}
    if not rows:
        raise ConfigError(f"expected a benchmark of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    if name not in rows:
        raise ConfigError(f"expected a row of {benchmark} ({', '.join(rows)}), got {name!r}")
    return rows[name]
