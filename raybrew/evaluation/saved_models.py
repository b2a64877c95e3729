"""A saved model on the evaluation rows of a job's tasks. No Ray.

model ──► its folder for the task ──► own tokenizer ──► rows encoded ──► logits ──► metrics
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from raybrew.config import DistillJob, Task, TrainJob
from raybrew.config.section import user_path
from raybrew.data.agreement import order_problem
from raybrew.data.split import IGNORED, STUDENT_VIEW
from raybrew.errors import ConfigError
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.models.class_order import assumed_order, check_outputs, is_unnamed, order_of
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
from raybrew.tasks.task_data import read_task_data
from raybrew.tasks.task_type import Metrics, TaskType, first_classes, ordered_classes

logger = logging.getLogger(__name__)


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
    found = {}
    for each, folder in _folders(job, str(model), task):
        if each.eval is None:
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


def _score(job: DistillJob | TrainJob, task: Task, folder: str) -> Metrics:
    config, tokenizer = read_config(folder, "model"), read_tokenizer(folder, "model")
    check_vocabulary(config, tokenizer, "model")
    data = read_task_data(task)
    own = _own_classes(job, task)
    # Whatever wrote the folder, one of the job's own classes or transformers'.
    task_type, adaptor = own.get(architecture_of(config, folder), (data.kind, None))
    check_outputs(folder, config, data)
    fit_tokenizer(tokenizer, config, "model", custom=task_type.is_custom)
    unnamed = adaptor is None and task.adaptor is None and is_unnamed(config, data)
    if unnamed and data.order_assumed:
        logger.warning(assumed_order(folder, data))
    read = adaptor_of(task.kind, adaptor, task.adaptor)
    if not task_type.has_labels:
        read = first_classes(read, task_type.num_labels(data.label_names, tokenizer))
    model = ModelOnDevice(
        _load(task_type, folder, config),
        ordered_classes(read, order_of(config, data)),
        padding_of(tokenizer, config, task_type.layout),
        # This process has no resources of Ray's: it may use all the GPUs that it sees.
        device_for(torch.cuda.device_count()),
    )
    check_device(model.device, "evaluate", "CUDA_VISIBLE_DEVICES to nothing")
    model.model.to(model.device)
    assert data.eval is not None, task.name
    split = task_type.encode(task, data.eval, {STUDENT_VIEW: tokenizer})
    rows = np.arange(len(split))
    predicted = predict(model, task_type, split, rows, batch_size=job.training.eval_batch_size)
    if unnamed:
        labels = split.labels[split.labels != IGNORED] if split.per_token else split.labels
        names = data.label_names
        flags = task_type.class_flags(labels, predicted.values, len(names))
        if problem := order_problem(flags, folder, names, task=task.name, side="eval"):
            raise ConfigError(problem)
    return task_type.metrics(predicted, split, rows, data.label_names)


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
