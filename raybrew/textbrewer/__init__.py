"""TextBrewer's distillers on this package's losses and label store, in the caller's process.

    import raybrew.textbrewer as textbrewer      # the one line that changes in a script

    config dicts, adaptors, models ──► a distiller ──► with distiller: distiller.train(…)

What scripts gain: labels are kept by content (`is_caching_logits`) and serve every epoch, shuffled
or not, steps, matches, several tasks and later runs; a training that was stopped goes on when the
script is run again; mixed precision is PyTorch's own; with several teachers, layers of each can be
matched. Nothing here uses Ray: teachers on other machines, sweeps and W&B are `raybrew.distill`'s.
"""

from raybrew.textbrewer import augmentation as data_utils
from raybrew.textbrewer import parameters as utils
from raybrew.textbrewer import presets
from raybrew.textbrewer.custom_match import CustomMatch
from raybrew.textbrewer.distillation_config import DistillationConfig
from raybrew.textbrewer.distillers import BasicDistiller, GeneralDistiller, MultiTeacherDistiller
from raybrew.textbrewer.multitask import MultiTaskDistiller
from raybrew.textbrewer.presets import (
    ADAPTOR_KEYS,
    FEATURES,
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    PROJ_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
    register_new,
)
from raybrew.textbrewer.trainer import BasicTrainer
from raybrew.textbrewer.training_config import TrainingConfig

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "BasicDistiller",
    "BasicTrainer",
    "CustomMatch",
    "DistillationConfig",
    "Distillers",
    "GeneralDistiller",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
    "TrainingConfig",
    "data_utils",
    "presets",
    "register_new",
    "utils",
]

Distillers = {
    "Basic": BasicDistiller,
    "General": GeneralDistiller,
    "MultiTeacher": MultiTeacherDistiller,
    "MultiTask": MultiTaskDistiller,
    "Train": BasicTrainer,
}
"""By TextBrewer's names."""
