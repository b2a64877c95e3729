"""What a distillation will take, before it starts: models, devices, labels. No weights, no Ray."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from raybrew.config import DistillJob
from raybrew.data.encoding import distinct_keys
from raybrew.labels.store import LabelStore
from raybrew.models.parameters import count_parameters
from raybrew.models.pretrained import meta_model, read_config
from raybrew.runs.report import render_table
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import task_type_of
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.job import ResolvedJob

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def plan(job: DistillJob) -> str:
    """Return as tables what a job needs; every check of its start has passed then.

    Raises:
        RaybrewError: as `distill`, before anything is loaded.
    """
    with TemporaryDirectory(prefix="raybrew-plan-") as folder:
        resolved = resolve_job(job, Path(folder))
        labels = [_labels(resolved, teacher) for teacher in resolved.teachers]
        examples = [
            [f"{name}", f"{counts['examples']:,.0f}"]
            for name, counts in resolved.data_counts().items()
        ]
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    parts = [
        render_table("Data", ["", "examples"], examples),
        render_table(
            f"Teachers (this machine: {cpus} CPUs, {gpus} GPUs; a cluster wasn't asked)",
            ["", "model", "parameters", "MB", "replicas", "each takes", "here"],
            [_teacher(teacher, cpus, gpus) for teacher in resolved.teachers],
        ),
        render_table(
            f"Labels in {job.labels.store}",
            ["", "needed", "in the store", "to be computed", "MB to be written"],
            labels,
        ),
        "Time: unknown, as nothing was measured for this job\n",
    ]
    return "\n".join(parts)


def _teacher(teacher: ResolvedTeacher, cpus: int, gpus: int) -> list[str]:
    config = teacher.config
    if config.model is None:
        return [config.name, f"column {config.logits}", "–", "–", "–", "–", "–"]
    kind = task_type_of(teacher.kind, config.architecture)
    what = f"teachers[{config.name}].model"
    read = read_config(str(teacher.model), what, trust=config.trust_remote_code)
    number = count_parameters(meta_model(kind.model_class, read, what))
    takes = dict(config.resources or {"CPU": 1.0} | ({"GPU": 1.0} if gpus else {}))
    have = {"CPU": float(cpus), "GPU": float(gpus)}
    lacking = [n for n, each in takes.items() if each * config.replicas > have.get(n, 0.0)]
    return [
        config.name,
        config.model,
        f"{number:,}",
        f"{number * _BYTES[config.dtype] / 2**20:.1f}",
        str(config.replicas),
        ", ".join(f"{each:g} {name}" for name, each in takes.items()),
        f"too few {', '.join(lacking)}" if lacking else "yes",
    ]


def _labels(job: ResolvedJob, teacher: ResolvedTeacher) -> list[str]:
    """Count the labels of a teacher that are needed and that the store has."""
    task, store = job.task_of(teacher), LabelStore(job.store)
    needed = missing = 0
    size: float | None = 0.0
    for side in task.folders:
        split = task.split(side)
        view = split.views[teacher.view]
        first, _ = distinct_keys(view.keys)
        keys = view.keys[first]
        lacking = np.zeros(len(keys), bool)
        for signal in teacher.signals:
            lacking |= ~store.signal(teacher.fingerprint, signal).contains(keys)
        needed, missing = needed + len(keys), missing + int(lacking.sum())
        known = len(teacher.signals) == 1 and teacher.signals[0].top_k is None
        if known and task.kind.layout == "example" and size is not None:
            size += int(lacking.sum()) * task.num_labels * _BYTES[teacher.signals[0].dtype]
        else:
            size = None
    written = "unknown" if size is None else f"{size / 2**20:.2f}"
    return [teacher.name, *(f"{n:,}" for n in (needed, needed - missing, missing)), written]
