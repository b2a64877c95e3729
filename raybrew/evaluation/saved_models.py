"""A saved model on the evaluation rows of a job's tasks. No Ray.

model ──► its folder for the task ──► own tokenizer ──► rows encoded ──► logits ──► metrics
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from raybrew.config import DistillJob, Task, TrainJob
from raybrew.config.paths import user_path
from raybrew.data.agreement import order_problem
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.errors import ConfigError
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.models.class_order import (
    assumed_order,
    check_class_names,
    is_unnamed,
    order_of,
)
from raybrew.models.devices import check_device, device_for
from raybrew.models.inputs import fit_tokenizer, padding_of
from raybrew.models.pretrained import (
    architecture_of,
    describe_names,
    load_model,
    read_config,
    read_tokenizer,
)
from raybrew.models.student_files import task_folders
from raybrew.runs.checks import assumed_order, check_class_names, is_unnamed, order_of
from raybrew.tasks import task_type_of
from raybrew.tasks.adaptors import Adaptor, adaptor_of, first_classes, view_of
from raybrew.tasks.causal_lm import RESIZE, check_vocabulary
from raybrew.tasks.task_data import encode_table, read_table
from raybrew.tasks.task_type import CustomModelClass, TaskType

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


def evaluate(
    job: DistillJob | TrainJob, model: str | Path, *, task: str | None = None
) -> dict[str, Metrics]:
    """Evaluate a saved model.

    Args:
        job: whose tasks, each with evaluation rows.
        model: folder of a student or of any model that transformers loads, or a hub id.
        task: name of the task for a model of one task; may be left out where the job has one.

    Returns:
        By task, the metrics of its kind.

    Raises:
        ConfigError: the model hasn't got the task's labels, in whatever order, or it isn't clear
            which task is meant.
        DataError: the data isn't what its task says.
    """
    found = {}
    for each, folder in _pairs(job, str(model), task):
        if each.eval is None:
            raise ConfigError(f"tasks[{each.name}].eval: expected evaluation rows, got none")
        found[each.name] = _score(job, each, folder)
    return found


def _pairs(job: DistillJob | TrainJob, model: str, name: str | None) -> list[tuple[Task, str]]:
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
    asked = [name] if name is not None else [n for n in tasks if n in folders]
    if not asked or asked[0] not in folders:
        raise ConfigError(
            f"{model}: expected a student of one of the job's tasks ({', '.join(tasks)}), got one "
            f"of {', '.join(folders)}"
        )
    return [(tasks[n], folders[n]) for n in asked]


def _own_classes(job: DistillJob | TrainJob, task: Task) -> dict[str, tuple[TaskType, Any]]:
    """Return the kind of task, and the adaptor, for models of each class of the user's, by name."""
    people = [job.model] if isinstance(job, TrainJob) else [job.student]
    teachers = () if isinstance(job, TrainJob) else job.teachers_of(task.name)
    kinds = [
        (task_type_of(task.kind, one.architecture), one.adaptor)
        for one in (*people, *teachers)
        if one.architecture is not None
    ]
    return {kind.model_class.__name__: (kind, adaptor) for kind, adaptor in kinds}


def _score(job: DistillJob | TrainJob, task: Task, folder: str) -> Metrics:
    own = _own_classes(job, task)
    config, tokenizer = read_config(folder, "model"), read_tokenizer(folder, "model")
    check_vocabulary(config, tokenizer, "model", RESIZE)
    data = read_task_data(task)
    # Whatever wrote the folder, one of the job's own classes or transformers'.
    kind, adaptor = own.get(architecture_of(config, folder), (data.kind, None))
    names = data.label_names
    num_labels = kind.num_labels(names, tokenizer)
    if kind.has_labels and config.num_labels != num_labels:
        raise ConfigError(
            f"{folder}: expected {num_labels} labels as task {task.name!r} has "
            f"({', '.join(names)}), got a model with {config.num_labels}"
        )
    check_class_names(folder, config, data)
    own_code = isinstance(kind.model_class, CustomModelClass)
    fit_tokenizer(tokenizer, config, "model", own_code=own_code)
    unnamed = adaptor is None and task.adaptor is None and is_unnamed(config, data)
    if unnamed and data.order_assumed:
        logger.warning(assumed_order(folder, data))
    model, info = load_model(kind.model_class, folder, "model", config)
    lacking = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
    if lacking:
        raise ConfigError(
            f"{folder}: expected a trained model, got weights without {describe_names(lacking)}"
        )
    read = adaptor_of(task.kind, adaptor, task.adaptor)
    read = first_classes(read, None if kind.has_labels else num_labels)
    # This process has no resources of Ray's: what it sees is its own.
    device = device_for(torch.cuda.device_count())
    check_device(device, "evaluate", "CUDA_VISIBLE_DEVICES to nothing")
    nn.Module.to(model, device)
    hosted = ModelOnDevice(
        model,
        _in_order(read, order_of(config, data)),
        padding_of(tokenizer, config, kind.layout),
        device,
    )
    with TemporaryDirectory(prefix="raybrew-") as temporary:
        folders = data.encode({STUDENT_VIEW: tokenizer}, Path(temporary))
        split = EncodedSplit.load(Path(folders["eval"]))
        rows = np.arange(len(split))
        predicted = predict(hosted, kind, split, rows, batch_size=job.training.eval_batch_size)
        if unnamed:
            labels = split.labels[split.labels != IGNORED] if split.per_token else split.labels
            flags = kind.class_flags(labels, predicted.values, len(names))
            if problem := order_problem(flags, folder, names, task=task.name, side="eval"):
                raise ConfigError(problem)
        return kind.metrics(predicted, split, rows, names)


def _in_order(adaptor: Adaptor, order: Sequence[int] | None) -> Adaptor:
    """Return the adaptor with the logits in the order of the task's classes."""
    if order is None:
        return adaptor

    def ordered(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
        view = view_of(adaptor, batch, outputs)
        return {**vars(view), "logits": [logits[..., list(order)] for logits in view.logits]}

    return ordered
