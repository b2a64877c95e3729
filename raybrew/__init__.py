"""raybrew: label once, brew many. Knowledge distillation from several teachers on Ray."""

from typing import TYPE_CHECKING, Any

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
from raybrew.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelError,
    RaybrewError,
    TeacherError,
)

if TYPE_CHECKING:
    from raybrew.driver import RunResult, distill, train

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


def __getattr__(name: str) -> Any:
    # Ray and all that trains take seconds to import: they come when they are used.
    if name in ("RunResult", "distill", "train"):
        from raybrew import driver

        return getattr(driver, name)
    raise AttributeError(f"module 'raybrew' has no attribute {name!r}")
