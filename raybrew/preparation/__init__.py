"""From a job to what its processes need: data read and checked, models known, examples encoded.

    job ──► read data, labels ──► read configs, tokenizers ──► check ──► encode ──► folders, plans

Nothing here loads a model's weights, so that a mistake costs seconds. No Ray.
"""

from raybrew.preparation.prepare import (
    fit_together,
    prepare,
    prepare_supervised,
    read_tables,
)
from raybrew.preparation.prepared import Fitting, Preparation, PreparedTask, PreparedTeacher
from raybrew.preparation.readings import Readings

__all__ = [
    "Fitting",
    "Preparation",
    "PreparedTask",
    "PreparedTeacher",
    "Readings",
    "fit_together",
    "prepare",
    "prepare_supervised",
    "read_tables",
]
