"""TextBrewer's distillers on this package's losses and label store, in the caller's process.

    import raybrew.textbrewer as textbrewer      # the one line that changes in a script

    config dicts, adaptors, models ──► a distiller ──► with distiller: distiller.train(…)

What scripts gain: labels are kept by content (`is_caching_logits`) and serve every epoch, shuffled
or not, steps, matches, several tasks and later runs; a training that was stopped goes on when the
script is run again; mixed precision is PyTorch's own; with several teachers, layers of each can be
matched. Nothing here uses Ray: teachers on other machines, sweeps and W&B are `raybrew.distill`'s.
"""

import sys

from raybrew.textbrewer import data_utils, distillers, presets, utils
from raybrew.textbrewer.configurations import DistillationConfig, TrainingConfig
from raybrew.textbrewer.distiller_basic import BasicDistiller
from raybrew.textbrewer.distiller_train import BasicTrainer
from raybrew.textbrewer.distiller_utils import CustomMatch
from raybrew.textbrewer.distillers import (
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
)
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
    "distillers",
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

# TextBrewer's other modules, for scripts that import them.
for _name, _module in {
    "distiller_general": distillers,
    "distiller_multitask": distillers,
    "distiller_multiteacher": distillers,
    "projections": presets,
    "schedulers": presets,
}.items():
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _module
