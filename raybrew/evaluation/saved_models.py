"""Saved models on the evaluation rows of a job's tasks, and on rows of any file. No Ray.

model ──► its folder for the task ──► own tokenizer ──► rows encoded ──► logits ──► metrics
                                                              a block of rows ──► logits ──► answers
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import DistillJob, Student, Task, TrainingConfig, TrainJob
from raybrew.config.section import user_path
from raybrew.config.task import TaskTypeName
from raybrew.data.agreement import order_problem
from raybrew.data.columns import Rows
from raybrew.data.payload import Payload
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.errors import ConfigError
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.models.class_order import (
    assumed_order,
    check_outputs,
    is_unnamed,
    model_classes,
    order_of,
)
from raybrew.models.devices import check_device, device_for
from raybrew.models.inputs import check_vocabulary, fit_tokenizer, padding_of
from raybrew.models.pretrained import (
    architecture_of,
    describe_names,
    load_model,
    read_config,
    read_tokenizer,
)
from raybrew.models.students import task_folders
from raybrew.tasks import adaptor_of, task_type_of
from raybrew.tasks.task_data import TaskData, read_task_data
from raybrew.tasks.task_type import (
    Breakdown,
    Metrics,
    Prediction,
    TaskType,
    first_classes,
    ordered_classes,
)

logger = logging.getLogger(__name__)

BLOCK = 1024
"""Rows of the data that are predicted at once."""


def evaluate(
    job: DistillJob | TrainJob, model: str | Path, *, task: str | None = None
) -> dict[str, Metrics]:
    """Evaluate a saved model.

    Args:
        job: whose tasks, each with evaluation rows.
        model: folder of a student or of any model that transformers loads, or a hub id.
        task: name of the task for a model of one task; may be left out where the job has one.

    Returns:
        By task, the metrics of its type.

    Raises:
        ConfigError: the model hasn't got the task's labels, in whatever order, or it isn't clear
            which task is meant.
        DataError: the data isn't what its task says.
    """
    return {name: each.metrics for name, each in evaluate_rows(job, model, task=task).items()}


class Evaluation(NamedTuple):
    """What an evaluation finds out.

    Args:
        metrics: of the task type.
        breakdown: a metric by class, bin or position; None where no row has a label.
        predictions: of each evaluation row, in their order.
    """

    metrics: Metrics
    breakdown: Breakdown | None
    predictions: list[Prediction]


def evaluate_rows(
    job: DistillJob | TrainJob, model: str | Path, *, task: str | None = None
) -> dict[str, Evaluation]:
    """Evaluate a saved model, and return the predictions too; see `evaluate`."""
    found = {}
    for each, folder in _folders(job, str(model), task):
        if not each.is_evaluated:
            raise ConfigError(f"tasks[{each.name}].eval: expected evaluation rows, got none")
        found[each.name] = _score(job, each, folder)
    return found


def _folders(job: DistillJob | TrainJob, model: str, name: str | None) -> list[tuple[Task, str]]:
    """Return the tasks that a model is evaluated on, each with the folder of its model."""
    tasks = {task.name: task for task in job.tasks}
    if name is not None and name not in tasks:
        raise ConfigError(f"task: expected one of {', '.join(tasks)}, got {name!r}")
    folders = {n: str(f) for n, f in task_folders(user_path(model, "model")).items()}
    if not folders:
        if name is None and len(tasks) > 1:
            raise ConfigError(
                f"task: expected the task that {model!r} is a model of, since the job has several "
                f"({', '.join(tasks)}), got none"
            )
        return [(tasks[name or next(iter(tasks))], model)]
    chosen = [name] if name is not None else [n for n in tasks if n in folders]
    if not chosen or chosen[0] not in folders:
        raise ConfigError(
            f"{model}: expected a student of one of the job's tasks ({', '.join(tasks)}), got one "
            f"of {', '.join(folders)}"
        )
    return [(tasks[n], folders[n]) for n in chosen]


@dataclass(frozen=True)
class SavedModel:
    """A model of a folder, on its device, with what it takes to read rows of a task.

    Args:
        task: whose columns, and longest input, hold.
        kind: its task type, for models of the folder's class.
        config: the folder's.
        tokenizer: the folder's.
        hosted: the model; its adaptor brings the logits into the order of `names`.
        names: of the classes.
    """

    task: Task
    kind: TaskType
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    hosted: ModelOnDevice
    names: tuple[str, ...]

    def encode(self, rows: Rows) -> EncodedSplit:
        """Encode rows as the model reads them."""
        return self.kind.encode(self.task, rows, {STUDENT_VIEW: self.tokenizer})

    def answers(self, split: EncodedSplit, rows: np.ndarray, batch_size: int) -> Payload:
        """Return `TaskType.predict` of examples, in their order.

        Args:
            split: of `encode`.
            rows: of the split, int64 (n,).
            batch_size: examples of a forward.
        """
        return predict(self.hosted, self.kind, split, rows, batch_size=batch_size)

    def predictions(
        self, data: Dataset, what: str, *, batch_size: int = 64, block: int = BLOCK
    ) -> Iterator[list[Prediction]]:
        """Predict rows that need no labels, `block` rows at a time, however many there are.

        Args:
            data: rows with the task's columns of texts.
            what: where they are from, for messages.
            batch_size: examples of a forward.
            block: rows of the data in memory at once.

        Yields:
            Of `block` rows, fewer at the end, one prediction each, in their order; see
            `TaskType.decode`.

        Raises:
            DataError: a column of texts is missing, or a row of it holds none.
        """
        for start in range(0, len(data), block):
            part = data.select(range(start, min(start + block, len(data))))
            split = self.encode(
                self.kind.unlabelled_rows(self.task, part, what, self.config.num_labels or 0)
            )
            rows = np.arange(len(split))
            predicted = self.answers(split, rows, batch_size)
            yield self.kind.decode(predicted, split, rows, self.names)


def open_model(
    folder: str,
    task: Task,
    *,
    data: TaskData | None = None,
    kind: TaskType | None = None,
    adaptor: Any = None,
    device: torch.device | None = None,
) -> SavedModel:
    """Load a model to predict rows of a task.

    Args:
        folder: of a student's task, or of any model that transformers loads, or a hub id.
        task: what it is for; its `kind` must be the model's.
        data: rows whose classes the model must have, in whatever order; the classes are the
            model's own if left out.
        kind: the task type for the folder's class, where that is one of the user's.
        adaptor: of that class.
        device: where it computes; a GPU if this process sees one, if left out.

    Raises:
        ConfigError: it can't be loaded, lacks weights, or hasn't got the task's labels.
    """
    config, tokenizer = read_config(folder, "model"), read_tokenizer(folder, "model")
    check_vocabulary(config, tokenizer, "model")
    kind = kind or task_type_of(task.kind)
    if data is not None:
        check_outputs(folder, config, data)
    fit_tokenizer(tokenizer, config, "model", custom=kind.is_custom)
    names = model_classes(config) if data is None else data.label_names
    read = adaptor_of(task.kind, adaptor, task.adaptor)
    if not kind.has_labels:
        read = first_classes(read, kind.num_labels(names, tokenizer))
    hosted = ModelOnDevice(
        _load(kind, folder, config),
        ordered_classes(read, None if data is None else order_of(config, data)),
        padding_of(tokenizer, config, kind.layout),
        # This process has no resources of Ray's: it may use all the GPUs that it sees.
        device or device_for(torch.cuda.device_count()),
    )
    check_device(hosted.device, "evaluate", "CUDA_VISIBLE_DEVICES to nothing")
    hosted.model.to(hosted.device)
    return SavedModel(task, kind, config, tokenizer, hosted, names)


_ENDINGS: dict[str, TaskTypeName] = {
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForQuestionAnsweringSimple": "question-answering",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
_PROBLEMS: dict[str, TaskTypeName] = {
    "regression": "regression",
    "single_label_classification": "sequence-classification",
    "multi_label_classification": "multi-label",
}


def task_type_in(folder: str) -> TaskTypeName:
    """Return the task type of a saved model, by its class and transformers' `problem_type`.

    A classifier without `problem_type` is one of texts, or a regression where it has one output.

    Raises:
        ConfigError: its class tells of none.
    """
    config = read_config(folder, "model")
    name = architecture_of(config, folder)
    for ending, found in _ENDINGS.items():
        if name.endswith(ending):
            return found
    if not name.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"{folder}: expected a model of a task (…ForSequenceClassification, "
            f"{', '.join(f'…{each}' for each in _ENDINGS)}), got {name}"
        )
    one = "regression" if config.num_labels == 1 else "single_label_classification"
    return _PROBLEMS[config.problem_type or one]


SAVED_TASK = "raybrew.json"
"""File of a model's folder: what it was trained for, with its columns and longest input."""


def saved_task(folder: str) -> Task | None:
    """Return the task that a model was trained for; None where its folder doesn't say.

    Raises:
        ConfigError: the file isn't what `save_task` writes.
    """
    path = user_path(folder, "model") / SAVED_TASK
    if not path.is_file():
        return None
    try:
        return Task(**json.loads(path.read_text(encoding="utf-8"))["task"], train="-")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected the task of a model, got: {error}") from None


def save_task(folder: Path, task: Task) -> None:
    """Write what a model was trained for into its folder; data and augmentation stay out."""
    left_out = {"train", "transfer", "eval", "eval_fraction", "augmentation", "distillation"}
    plain = task.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    values = {"task": {"kind": task.kind, "text": task.text, "max_length": task.max_length} | plain}
    (folder / SAVED_TASK).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def job_for_file(folder: str, task: Task, data: str) -> TrainJob:
    """Return a job whose task is evaluated on the rows of a file, by the model's own classes."""
    names = model_classes(read_config(folder, "model"))
    update: dict[str, Any] = {"train": data, "eval": data, "teacher_column": None}
    if task_type_of(task.kind).names_classes and len(names) > 1:
        update["label_names"] = names
    return TrainJob(
        tasks=[task.model_copy(update=update)],
        model=Student(model=folder),
        training=TrainingConfig(num_steps=1),
    )


def _score(job: DistillJob | TrainJob, task: Task, folder: str) -> Evaluation:
    data = read_task_data(task)
    # Whatever wrote the folder, one of the job's own classes or transformers'.
    name = architecture_of(read_config(folder, "model"), folder)
    kind, adaptor = _own_classes(job, task).get(name, (data.kind, None))
    model = open_model(folder, task, data=data, kind=kind, adaptor=adaptor)
    unnamed = adaptor is None and task.adaptor is None and is_unnamed(model.config, data)
    if unnamed and data.order_assumed:
        logger.warning(assumed_order(folder, data))
    assert data.eval is not None, task.name
    split = model.encode(data.eval)
    rows = np.arange(len(split))
    predicted = model.answers(split, rows, job.training.eval_batch_size)
    if unnamed:
        labels = split.labels[split.labels != IGNORED] if split.per_token else split.labels
        names = data.label_names
        flags = kind.class_flags(labels, predicted.values, len(names))
        if problem := order_problem(flags, folder, names, task=task.name, side="eval"):
            raise ConfigError(problem)
    given = (predicted, split, rows, data.label_names)
    return Evaluation(kind.metrics(*given), kind.breakdown(*given), kind.decode(*given))


def _own_classes(job: DistillJob | TrainJob, task: Task) -> dict[str, tuple[TaskType, Any]]:
    """Return the task type, and the adaptor, for models of each class of the user's, by name."""
    if isinstance(job, TrainJob):
        sections = [job.model]
    else:
        sections = [job.student, *job.teachers_of(task.name)]
    types = [
        (task_type_of(task.kind, section.architecture), section.adaptor)
        for section in sections
        if section.architecture is not None
    ]
    return {task_type.model_class.__name__: (task_type, adaptor) for task_type, adaptor in types}


def _load(task_type: TaskType, folder: str, config: PreTrainedConfig) -> nn.Module:
    model, info = load_model(task_type.model_class, folder, "model", config)
    lacking = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
    if lacking:
        raise ConfigError(
            f"{folder}: expected a trained model, got weights without {describe_names(lacking)}"
        )
    return model
