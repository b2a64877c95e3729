"""The objective of one task: mixes its teachers, combines the terms and normalises, in one place.

    logits of each teacher ─► shift ─► weights of each row ─► mixture ─► target ─┐
    student's logits ────────────────────────────────────────────────────────────┴─► kd
    student's logits, labels ──────────────────────────────────────────────────────► hard
    student's features, a teacher's statistic ─────────────────────────────────────► match/…
    total = Σ weight(progress) · numerator ÷ denominator

Every term is a sum over this rank's rows (the numerator) and a count over the whole global batch
(the denominator). The counts follow from what every rank knows of the whole batch, so nothing has
to be communicated for them, and neither ranks nor micro-batches change the loss.
"""

from raybrew.objective.objective import Objective, SoftLabels, TrainProgress

__all__ = ["Objective", "SoftLabels", "TrainProgress"]
