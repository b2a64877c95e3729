"""The precision that a script trains in: full, or mixed by PyTorch's own autocast.

fp16  float16 with a scaled loss, where the device computes in it; bfloat16 elsewhere, said aloud
bf16  bfloat16
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.textbrewer.training_config import TrainingConfig

logger = logging.getLogger(__name__)


class Precision:
    """How forward passes compute, and how gradients are taken.

    Args:
        config: of the script.
        device: that it trains on.
    """

    def __init__(self, config: TrainingConfig, device: torch.device):
        self._device = device.type
        self._dtype = _dtype_of(config, device)
        scaled = self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(self._device, enabled=scaled)

    @property
    def name(self) -> str:
        """What teachers compute in."""
        return str(self._dtype or torch.float32).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        dtype = self._dtype or torch.bfloat16
        return torch.autocast(self._device, dtype, enabled=self._dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""
        self._scaler.scale(loss).backward()

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        clipped: Sequence[nn.Parameter],
        max_grad_norm: float,
    ) -> None:
        """Take a step.

        Args:
            optimizer: whose.
            clipped: parameters whose gradient is clipped, those of the student.
            max_grad_norm: norm that it is clipped to; not above 0 for none.
        """
        if max_grad_norm > 0:
            self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(clipped, max_grad_norm)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self._scaler.load_state_dict(state)


def _dtype_of(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    if config.bf16:
        return torch.bfloat16
    if not config.fp16:
        return None
    if config.fp16_opt_level == "O0":
        logger.info("fp16_opt_level O0: full precision")
        return None
    if config.fp16_opt_level != "O1":
        logger.warning(
            "fp16_opt_level %s: weights stay in full precision and autocast chooses for each "
            "operation, as O1 does",
            config.fp16_opt_level,
        )
    if device.type == "cuda":
        return torch.float16
    logger.warning("fp16: no float16 on %s, computing in bfloat16 instead", device.type)
    return torch.bfloat16
