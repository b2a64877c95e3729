"""raybrew: label once, brew many. Knowledge distillation from several teachers on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybrew.config import (
        Augmentation,
        DistillationConfig,
        DistillJob,
        LabelConfig,
        Lora,
        MatchPreset,
        MixingConfig,
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
    from raybrew.extensions import register
    from raybrew.losses.match_spec import MatchSpec
    from raybrew.model_evaluation import evaluate
    from raybrew.models.custom_match import CustomMatch
    from raybrew.models.parameters import display_parameters
    from raybrew.tuning.sweep import TuneResult, tune

__all__ = [
    "Augmentation",
    "CheckpointError",
    "ConfigError",
    "CustomMatch",
    "DataError",
    "DistillJob",
    "DistillationConfig",
    "LabelConfig",
    "LabelError",
    "LabelResult",
    "Lora",
    "MatchPreset",
    "MatchSpec",
    "MixingConfig",
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
    "TuneResult",
    "display_parameters",
    "distill",
    "evaluate",
    "label",
    "register",
    "train",
    "tune",
]

_HOMES = {
    "CustomMatch": "models.custom_match",
    "display_parameters": "models.parameters",
    "distill": "driver",
    "evaluate": "model_evaluation",
    "label": "driver",
    "LabelResult": "driver",
    "MatchSpec": "losses.match_spec",
    "register": "extensions",
    "RunResult": "driver",
    "train": "driver",
    "tune": "tuning.sweep",
    "TuneResult": "tuning.sweep",
}


def __getattr__(name: str) -> Any:
    # Each of a run's processes imports this package, few need all of it: names come when used.
    if name not in __all__:
        raise AttributeError(f"module 'raybrew' has no attribute {name!r}")
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "config")
    return getattr(import_module(f"raybrew.{home}"), name)
