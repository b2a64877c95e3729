"""raybrew: label once, brew many. Knowledge distillation from several teachers on Ray."""

from raybrew.config import (
    DistillationConfig,
    DistillJob,
    LabelConfig,
    Student,
    Task,
    Teacher,
    TrackingConfig,
    TrainingConfig,
    TrainJob,
)
from raybrew.driver import RunResult, distill, train
from raybrew.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelError,
    RaybrewError,
    TeacherError,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistillJob",
    "DistillationConfig",
    "LabelConfig",
    "LabelError",
    "RaybrewError",
    "RunResult",
    "Student",
    "Task",
    "Teacher",
    "TeacherError",
    "TrackingConfig",
    "TrainJob",
    "TrainingConfig",
    "distill",
    "train",
]
