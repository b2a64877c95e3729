"""raybrew: label once, brew many. Knowledge distillation from several teachers on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from raybrew.driver import LabelResult, RunResult, distill, label, train
    from raybrew.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        LabelError,
        RaybrewError,
        TeacherError,
        TrainingError,
    )

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistillJob",
    "DistillationConfig",
    "LabelConfig",
    "LabelError",
    "LabelResult",
    "RaybrewError",
    "RunResult",
    "Student",
    "Task",
    "Teacher",
    "TeacherError",
    "TrackingConfig",
    "TrainJob",
    "TrainingConfig",
    "TrainingError",
    "distill",
    "label",
    "train",
]

_HOMES = {
    "distill": "driver",
    "label": "driver",
    "train": "driver",
    "LabelResult": "driver",
    "RunResult": "driver",
}


def __getattr__(name: str) -> Any:
    # Each of a run's processes imports this package, few need all of it: names come when used.
    if name not in __all__:
        raise AttributeError(f"module 'raybrew' has no attribute {name!r}")
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "config")
    return getattr(import_module(f"raybrew.{home}"), name)
