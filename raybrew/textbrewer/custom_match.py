"""TextBrewer's `CustomMatch`: a loss between the outputs of any two modules, given as such."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn

from raybrew.errors import ConfigError


class CustomMatch:
    """A match of two modules.

    Args:
        module_T: the teacher's.
        module_S: the student's.
        weight: of the loss.
        loss: (output_S, output_T, mask_S, mask_T) → one number.
        proj_func: applied to the student's output; a module learns with the student.
        proj_group: options of its optimizer group.

    Raises:
        ConfigError: something that is no module, or a loss that can't be called.
    """

    def __init__(
        self,
        module_T: nn.Module,
        module_S: nn.Module,
        weight: float,
        loss: Callable[..., Tensor],
        proj_func: Callable[..., Any] | None = None,
        proj_group: Mapping[str, Any] | None = None,
    ):
        for name, module in (("module_T", module_T), ("module_S", module_S)):
            if not isinstance(module, nn.Module):
                raise ConfigError(
                    f"CustomMatch: {name}: expected a torch.nn.Module of the model, got "
                    f"{type(module).__name__}; raybrew.CustomMatch takes names"
                )
        if not callable(loss):
            raise ConfigError(f"CustomMatch: loss: expected a function, got {loss!r}")
        self.module_T, self.module_S = module_T, module_S
        self.weight, self.loss = weight, loss
        self.proj_func, self.proj_group = proj_func, dict(proj_group or {})

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Make a match from a dict of its arguments."""
        return cls(**dict_object)

    def to_dict(self) -> dict[str, Any]:
        """Return its arguments."""
        return dict(vars(self))

    @property
    def projection(self) -> nn.Module | None:
        """What learns with the student."""
        return self.proj_func if isinstance(self.proj_func, nn.Module) else None

    def compare(
        self, student: Any, teacher: Any, student_mask: Tensor | None, teacher_mask: Tensor | None
    ) -> Tensor:
        """Return the loss of the modules' outputs, given the real tokens of each side."""
        projected = student if self.proj_func is None else self.proj_func(student)
        value = self.loss(projected, teacher, student_mask, teacher_mask)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"CustomMatch: the loss returned {got}; expected one number")
        return value.reshape(())


class Tap:
    """Keeps what a module returned last; `close` takes it off the module."""

    def __init__(self, module: nn.Module):
        self._module, self._output = module, None
        self._handle = module.register_forward_hook(self._keep)

    def take(self) -> Any:
        """Return the last output, and forget it.

        Raises:
            ConfigError: the module was not called.
        """
        if self._output is None:
            raise ConfigError(
                f"CustomMatch: the forward pass didn't call {type(self._module).__name__}: give "
                "modules of the models that the distiller was given"
            )
        output, self._output = self._output, None
        return output

    def close(self) -> None:
        """Stop."""
        self._handle.remove()
        self._output = None

    def _keep(self, module: nn.Module, given: Any, output: Any) -> None:
        self._output = output
