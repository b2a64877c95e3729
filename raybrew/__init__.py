"""raybrew: label once, brew many. Knowledge distillation from several teachers on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybrew.api import distill, label, train
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
    from raybrew.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        LabelError,
        RaybrewError,
        TeacherError,
        TrainingError,
    )
    from raybrew.evaluation.saved_models import evaluate
    from raybrew.matches.spec import CustomMatch, MatchSpec
    from raybrew.models.parameters import display_parameters
    from raybrew.objective.extensions import register
    from raybrew.runs.report import LabelResult, RunResult
    from raybrew.sweeps.results import TuneResult
    from raybrew.sweeps.sweep import tune

__version__ = "0.1.0"

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
    "CustomMatch": "matches.spec",
    "display_parameters": "models.parameters",
    "distill": "api",
    "evaluate": "evaluation.saved_models",
    "label": "api",
    "LabelResult": "runs.report",
    "MatchSpec": "matches.spec",
    "register": "objective.extensions",
    "RunResult": "runs.report",
    "train": "api",
    "tune": "sweeps.sweep",
    "TuneResult": "sweeps.results",
}


def __getattr__(name: str) -> Any:
    # Each of a run's processes imports this package, few need all of it: names come when used.
    if name not in __all__:
        raise AttributeError(f"module 'raybrew' has no attribute {name!r}")
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "config")
    return getattr(import_module(f"raybrew.{home}"), name)


def __dir__() -> list[str]:
    # What completion offers: the public names, also those that were not used yet.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
