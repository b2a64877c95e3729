"""From a job to what its processes need: data read and checked, models known, examples encoded.

    job ──► read data, labels ──► read configs, tokenizers ──► check ──► encode ──► folders, plans

Nothing here loads a model's weights, so that a mistake costs seconds. No Ray.
"""

from raybrew.preparation.prepare import prepare, prepare_supervised
from raybrew.preparation.prepared import Preparation, PreparedTask, PreparedTeacher

__all__ = ["Preparation", "PreparedTask", "PreparedTeacher", "prepare", "prepare_supervised"]
