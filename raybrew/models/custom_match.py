"""A match between the outputs of any two modules, with a loss and a projection of the user's."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raybrew.errors import ConfigError
from raybrew.losses.features.ragged import Axis
from raybrew.losses.match_spec import ProjectionSpec
from raybrew.losses.partial import Partial
from raybrew.models.importing import import_callable
from raybrew.models.projections import Projection

__all__ = ["CustomMatch", "import_callable"]


class CustomMatch(BaseModel):
    """A match between the outputs of two modules, named as in `model.named_modules()`.

    It holds values and callables alone, so it can be pickled to any worker; a callable that a
    config file has to name is given as its import path, "package.module:name".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module_T: str = Field(description="Teacher's module, as model.named_modules() names it.")
    module_S: str = Field(description="Student's module.")
    loss: Callable[..., Any] | str = Field(
        description="(output_S, output_T, mask_S, mask_T) → one number, or Partial of (B,) each."
    )
    weight: float = Field(default=1.0, description="Factor of this match in the total loss.")
    proj_func: ProjectionSpec | Callable[..., Any] | str | None = Field(
        default=None,
        description="Applied to the student's output: [kind, dim_S, dim_T, {options}], or what "
        "builds a module without arguments, as a callable or an import path.",
    )
    proj_group: dict[str, Any] = Field(
        default_factory=dict, description="Optimizer options of the projection."
    )
    teacher: str | None = Field(default=None, description="Name of the teacher.")
    output_index: int = Field(
        default=0, ge=0, description="Which entry is meant where a module returns a tuple."
    )
    axes: tuple[Axis, ...] = Field(
        default=("token", "hidden"),
        description="What each axis of the teacher's output after the batch is; padding is left "
        "out along token axes when it is shipped.",
    )

    @property
    def label(self) -> str:
        """How messages name this match."""
        whose = f"teacher {self.teacher!r}" if self.teacher else "teacher"
        return f"custom match ({whose} {self.module_T!r} → student {self.module_S!r})"

    @property
    def loss_path(self) -> str:
        """Import path of the loss, as a saved config records it."""
        return _path_of(self.loss)

    def build_projection(self, seed: int = 0) -> nn.Module | None:
        """Build the module to apply to the student's output; None where there is none.

        Args:
            seed: of the weights of a projection given as [kind, dim_S, dim_T].

        Raises:
            ConfigError: an import path that leads nowhere, or something that builds no module.
        """
        if self.proj_func is None:
            return None
        if isinstance(self.proj_func, tuple):
            generator = torch.Generator().manual_seed(seed)
            return _OfOneTensor(Projection(self.proj_func, 1, generator))
        module = import_callable(self.proj_func, f"{self.label}: proj_func")()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.label}: proj_func built a {type(module).__name__}; expected a "
                "torch.nn.Module, or give [linear | relu | tanh, dim_S, dim_T]."
            )
        return module

    def projection_options(self) -> dict[str, Any]:
        """Optimizer options of the projection's parameters, from wherever they were given."""
        own = self.proj_func[3] if isinstance(self.proj_func, tuple) else {}
        return {**own, **self.proj_group}

    def compute(
        self,
        student: Tensor,
        teacher: Tensor,
        student_mask: Tensor | None = None,
        teacher_mask: Tensor | None = None,
    ) -> Partial:
        """Call the loss and give its value numerators and denominators.

        Args:
            student: output of the student's module, projected.
            teacher: output of the teacher's.
            student_mask: (B, L) real tokens.
            teacher_mask: (B, L) real tokens.

        Returns:
            The loss's own Partial, or its one number as the mean over the batch's examples.

        Raises:
            ConfigError: the loss gave neither.
        """
        function = import_callable(self.loss, f"{self.label}: loss")
        value = function(student, teacher, student_mask, teacher_mask)
        if isinstance(value, Partial):
            return value
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"{self.label}: the loss returned {got}; expected one number, or "
                "raybrew.losses.partial.Partial of numerators and denominators, (B,) each."
            )
        present = torch.ones(student.shape[0], dtype=torch.bool, device=value.device)
        if student_mask is not None:
            present = student_mask.ne(0).any(dim=1).to(value.device)
        numerator = value.reshape(()).expand(present.shape).masked_fill(~present, 0.0)
        return Partial(numerator, present.to(value.dtype))


class _OfOneTensor(nn.Module):
    """A projection that takes a tensor rather than a list of layers."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, states: Tensor) -> Tensor:
        return self.projection([states])[0]


def _path_of(target: Callable[..., Any] | str) -> str:
    if isinstance(target, str):
        return target
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', type(target).__module__)}:{name}"
