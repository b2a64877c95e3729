"""Matches of a job, from their configuration to numbers.

config, sizes of the models ──► plan    ── TaskMatch ─┬─► signals  what the teacher ships
├─► reader   what a model has to give
teacher's features ──► teacher_side ──► payload ─ ─ store ─ ─► student_side ◄── student's
"""

from raybrew.matching.plan import TaskMatch, plan_matches
from raybrew.matching.reader import FeatureReader, Reading

__all__ = ["FeatureReader", "Reading", "TaskMatch", "plan_matches"]
