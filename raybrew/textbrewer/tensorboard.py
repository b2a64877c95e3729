"""TensorBoard, where a script names a `log_dir`."""

from pathlib import Path
from typing import Any

from raybrew.errors import ConfigError


class NoWriter:
    """Writes nothing."""

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Pass a figure over."""

    def flush(self) -> None:
        """Have nothing to write."""


def writer_of(log_dir: Any, rank: int) -> Any:
    """Return a `SummaryWriter`, or what stands in for it.

    Raises:
        ConfigError: TensorBoard isn't installed.
    """
    if log_dir is None or rank != 0:
        return NoWriter()
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "log_dir: expected the package tensorboard, got none installed; pip install "
            "'raybrew[tensorboard]', or set log_dir to None"
        ) from error
    return SummaryWriter(log_dir=str(Path(log_dir)))
