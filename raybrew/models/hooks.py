"""The outputs of named modules, by forward hooks; what custom matches compare.

with ModuleCapture(student, ["encoder.layer.1.output"]) as captured:
    student(**batch)
    outputs = captured.take()          # {"encoder.layer.1.output": tensor}
"""

import difflib
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from raybrew.errors import ConfigError

__all__ = ["ModuleCapture", "find_module"]


class ModuleCapture:
    """Keeps the last output of each named module until it is taken.

    Args:
        model: the model, not wrapped (give `ddp.module`).
        names: modules as `model.named_modules()` names them.
        output_indices: which entry is meant where a module returns a tuple; 0 where not given.

    Raises:
        ConfigError: a name the model hasn't got, with the nearest ones.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        output_indices: dict[str, int] | None = None,
    ) -> None:
        self._outputs: dict[str, Tensor] = {}
        indices = output_indices or {}
        # All names are looked up before the first hook, so that an error leaves none behind.
        modules = {name: find_module(model, name) for name in names}
        self._handles = [
            module.register_forward_hook(self._hook(name, indices.get(name, 0)))
            for name, module in modules.items()
        ]
        self._names = list(modules)

    def take(self) -> dict[str, Tensor]:
        """Give the outputs of the last forward, and forget them.

        Raises:
            ConfigError: a module that the forward didn't call.
        """
        missing = [name for name in self._names if name not in self._outputs]
        if missing:
            raise ConfigError(
                f"The forward didn't call {', '.join(missing)}: no output to match. Name modules "
                "that this model's forward runs, and run it before each take()."
            )
        outputs = dict(self._outputs)
        self._outputs.clear()
        return outputs

    def remove(self) -> None:
        """Take the hooks off the model; may be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _hook(self, name: str, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep_output(module: nn.Module, arguments: Any, output: Any) -> None:
            self._outputs[name] = _chosen_tensor(name, output, index)

        return keep_output


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Look a module up by its dotted name.

    Raises:
        ConfigError: the model has no such module; names the nearest ones.
    """
    modules = dict(model.named_modules())
    if name in modules:
        return modules[name]
    nearest = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    raise ConfigError(
        f"{type(model).__name__} has no module {name!r}.{hint} model.named_modules() lists them."
    )


def _chosen_tensor(name: str, output: Any, index: int) -> Tensor:
    chosen = output
    if isinstance(output, tuple | list):
        if index >= len(output):
            raise ConfigError(
                f"Module {name!r} returns {len(output)} outputs; none at output_index {index}."
            )
        chosen = output[index]
    if not isinstance(chosen, Tensor):
        raise ConfigError(
            f"Module {name!r} returns a {type(chosen).__name__}; a custom match takes a tensor, or "
            "a tuple with one at output_index."
        )
    return chosen
