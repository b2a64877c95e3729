"""TextBrewer's `TrainingConfig`: how a script trains, where it writes, on which device."""

import os
from pathlib import Path

import torch

from raybrew.errors import ConfigError
from raybrew.textbrewer.config import Config

_OPT_LEVELS = ("O0", "O1", "O2", "O3")


class TrainingConfig(Config):
    """Settings of the training.

    Args:
        gradient_accumulation_steps: batches of one optimizer step.
        ckpt_frequency: checkpoints in an epoch.
        ckpt_epoch_frequency: epochs from one with checkpoints to the next.
        ckpt_steps: steps between checkpoints, where `train` is given `num_steps`; the last step
            alone if None.
        log_dir: of TensorBoard; None for none.
        output_dir: of the checkpoints.
        device: where batches are put; the models are put there by the script.
        fp16: mixed precision in float16; in bfloat16 on a device that has none.
        fp16_opt_level: O0 computes in full precision, the other levels of Apex are one.
        data_parallel: whether models are put into `torch.nn.DataParallel`.
        local_rank: of this process in distributed training; -1 where there is one alone.
        bf16: mixed precision in bfloat16; not of TextBrewer.
        label_store: folder or URI where labels are kept with `is_caching_logits`;
            `<output_dir>/labels` if None; not of TextBrewer.
        resume: whether a training that was stopped goes on from its last checkpoint in
            `output_dir`; not of TextBrewer.

    Raises:
        ConfigError: a number below 1, or an unknown level.
    """

    def __init__(
        self,
        gradient_accumulation_steps: int = 1,
        ckpt_frequency: int = 1,
        ckpt_epoch_frequency: int = 1,
        ckpt_steps: int | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        output_dir: str | os.PathLike[str] = "./saved_models",
        device: str | torch.device = "cuda",
        fp16: bool = False,
        fp16_opt_level: str = "O1",
        data_parallel: bool = False,
        local_rank: int = -1,
        bf16: bool = False,
        label_store: str | os.PathLike[str] | None = None,
        resume: bool = True,
    ):
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.ckpt_frequency = ckpt_frequency
        self.ckpt_epoch_frequency = ckpt_epoch_frequency
        self.ckpt_steps = ckpt_steps
        self.log_dir = log_dir
        self.output_dir = output_dir
        self.device = device
        self.fp16 = fp16
        self.fp16_opt_level = fp16_opt_level
        self.data_parallel = data_parallel
        self.local_rank = local_rank
        self.bf16 = bf16
        self.label_store = label_store
        self.resume = resume
        self._check()
        Path(output_dir).mkdir(parents=True, exist_ok=True)

    def _check(self) -> None:
        for name in ("gradient_accumulation_steps", "ckpt_frequency", "ckpt_epoch_frequency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.ckpt_steps is not None and self.ckpt_steps < 1:
            raise ConfigError(f"ckpt_steps: expected 1 or more, or None, got {self.ckpt_steps}")
        if self.fp16_opt_level not in _OPT_LEVELS:
            raise ConfigError(
                f"fp16_opt_level: expected one of {', '.join(_OPT_LEVELS)}, got "
                f"{self.fp16_opt_level!r}"
            )
        if self.fp16 and self.bf16:
            raise ConfigError("fp16 and bf16: expected one precision, got both")
