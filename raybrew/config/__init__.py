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

from raybrew.config.distillation import DistillationConfig, MatchPreset
from raybrew.config.job import DistillJob, TrainJob
from raybrew.config.models import Lora, Student, Teacher
from raybrew.config.section import DataSource
from raybrew.config.task import Augmentation, Task
from raybrew.config.training import LabelConfig, MixingConfig, TrackingConfig, TrainingConfig

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
