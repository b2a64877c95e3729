"""Methods of a user's own, by import path, as a job file would name them."""

import torch


def halved(student_logits, teacher_logits, temperature):
    return temperature / 2


def by_half(progress, *, low=0.5):
    return 1.0 if progress < 0.5 else low


def second_teacher(teacher_logits):
    weights = torch.zeros(teacher_logits.shape[:-1])
    weights[1] = 1.0
    return weights


def deep(student_size, teacher_size):
    return torch.nn.Sequential(
        torch.nn.Linear(student_size, 3), torch.nn.GELU(), torch.nn.Linear(3, teacher_size)
    )


def of_a_wrong_shape(teacher_logits):
    return torch.ones(len(teacher_logits))


def asks_for_the_moon(moon):
    return moon
