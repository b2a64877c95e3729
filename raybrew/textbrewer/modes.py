"""The modes of the models of a script, while a distiller is used as a context."""

from collections.abc import Iterable

from torch import nn


class Modes:
    """Which models are in training mode; brings them back to it."""

    def __init__(self, models: Iterable[nn.Module]):
        self._modes = [(model, model.training) for model in models]

    def restore(self) -> None:
        """Put every model back into its mode."""
        for model, training in self._modes:
            model.train(training)
