"""The job: what to distil, from whom, into what. Values only, frozen, unknown keys refused.

    DistillJob ── tasks ─────── Task              one per data set
               ├─ teachers ──── Teacher           one per fine-tuned model, each names its task
               ├─ student ───── Student           where the student comes from
               ├─ distillation  DistillationConfig  temperature, losses, weights, mixture
               ├─ mixing ────── MixingConfig      which task a batch is of
               ├─ training ──── TrainingConfig    steps, optimizer, seed
               ├─ labels ────── LabelConfig       the store
               └─ tracking ──── TrackingConfig    W&B, TensorBoard, how often

A live `datasets.Dataset` may stand where a path may; `to_plain` records it by its fingerprint.
"""

from raybrew.config.augmentation import Augmentation
from raybrew.config.distillation import DistillationConfig
from raybrew.config.job import DistillJob, TrainJob
from raybrew.config.lora import Lora
from raybrew.config.matches import MatchPreset
from raybrew.config.mixing import MixingConfig
from raybrew.config.people import Student, Teacher
from raybrew.config.section import DataSource
from raybrew.config.task import Task
from raybrew.config.training import LabelConfig, TrackingConfig, TrainingConfig

__all__ = [
    "Augmentation",
    "DataSource",
    "DistillJob",
    "DistillationConfig",
    "LabelConfig",
    "Lora",
    "MatchPreset",
    "MixingConfig",
    "Student",
    "Task",
    "Teacher",
    "TrackingConfig",
    "TrainJob",
    "TrainingConfig",
]
