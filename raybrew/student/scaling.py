"""Autocast of the student, and fp16's loss scale: without it small gradients would be 0.

loss ──× scale──► backward ──► gradients ──÷ scale──► clip ──► step
                                   └ not finite, though the losses are ──► smaller scale, no step
"""

import torch
from torch.amp.grad_scaler import GradScaler

__all__ = ["AUTOCAST", "loss_scaler"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a job's `training.precision` computes in; fp32 is computed as it is."""
FIRST_SCALE = 2.0**16


def loss_scaler(precision: str, device: torch.device) -> GradScaler:
    """Return what scales the losses; with other precisions than fp16 it leaves all as it is."""
    return GradScaler(device.type, init_scale=FIRST_SCALE, enabled=precision == "fp16")
