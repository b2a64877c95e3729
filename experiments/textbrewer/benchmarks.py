"""The data sets of TextBrewer's experiments: where each is on the hub, and how it is trained.

    Benchmark.task      fields of raybrew's `Task`; `{split}` is filled in for train and eval
    Benchmark.teacher   of `TrainingConfig`: how teachers, and students without teachers, are made
    Benchmark.student   of `TrainingConfig`: how students are distilled

Learning rates, lengths, batch sizes and epochs are those of TextBrewer's paper and of the scripts
in its `examples`; where they say nothing (see README.md), those of MNLI.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.data import default_cache

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
