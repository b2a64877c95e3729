"""TextBrewer's names: the methods that its configs call, and how a script adds its own.

MATCH_LOSS_MAP["mine"] = function     register_new("kd_loss", "mine", function)

The names are those of the whole package: its other losses, schedules and projections can be used
in TextBrewer's configs as well.
"""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from torch import Tensor

from raybrew.errors import ConfigError, unknown_name
from raybrew.objective.extensions import KINDS, register

FEATURES = ["hidden", "attention"]
ADAPTOR_KEYS = ["logits", "logits_mask", "losses", "inputs_mask", "labels", *FEATURES]


class MethodNames(MutableMapping[str, Any]):
    """The methods of a kind by name; what is set is registered.

    Args:
        kind: of `raybrew.objective.extensions`.
        adapt: brings a function as TextBrewer takes it into this package's form.
    """

    def __init__(self, kind: str, adapt: Callable[[Any], Any] = lambda value: value):
        self._kind, self._adapt = kind, adapt

    @property
    def added(self) -> frozenset[str]:
        """Names beyond the built-in ones."""
        return frozenset(self) - KINDS[self._kind].built_in

    def __getitem__(self, name: str) -> Any:
        return KINDS[self._kind].names[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not callable(value):
            raise ConfigError(
                f"{self._kind} {name!r}: expected a function, got {type(value).__name__}"
            )
        register(self._kind, name, self._adapt(value))

    def __delitem__(self, name: str) -> None:
        if name in KINDS[self._kind].built_in:
            raise ConfigError(f"{self._kind} {name!r} is built in and can't be deleted")
        del KINDS[self._kind].names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS[self._kind].names)

    def __len__(self) -> int:
        return len(KINDS[self._kind].names)


def _of_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have a loss that returns one number return it for each row: their mean is the number."""

    def loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        value = function(student_logits, teacher_logits, temperature)
        return value.expand(student_logits.shape[0]) if value.dim() == 0 else value

    return loss


KD_LOSS_MAP = MethodNames("kd_loss", _of_rows)
"""(student_logits, teacher_logits, temperature) → one number."""
MATCH_LOSS_MAP = MethodNames("match_loss")
"""(student, teacher, mask=None) → one number."""
PROJ_MAP = MethodNames("projection")
"""(student's size, teacher's size) → module."""
WEIGHT_SCHEDULER = MethodNames("weight_schedule")
"""Share of the training that is done → weight."""
TEMPERATURE_SCHEDULER = MethodNames("temperature_scheduler")
"""(student_logits, teacher_logits, temperature) → temperature; options are keyword-only."""

_MAPS = {
    "kd_loss": KD_LOSS_MAP,
    "match_Loss": MATCH_LOSS_MAP,
    "match_loss": MATCH_LOSS_MAP,
    "projection": PROJ_MAP,
    "weight_scheduler": WEIGHT_SCHEDULER,
    "temperature_scheduler": TEMPERATURE_SCHEDULER,
}


def register_new(map_name: str, name: str, func: Callable[..., Any]) -> None:
    """Add a method under a name.

    Args:
        map_name: kd_loss, match_loss (TextBrewer writes match_Loss), projection, weight_scheduler
            or temperature_scheduler.
        name: how a config calls it.
        func: the method.

    Raises:
        ConfigError: an unknown map, a name that is taken, or something that can't be called.
    """
    if map_name not in _MAPS:
        raise unknown_name("map of methods", map_name, _MAPS)
    _MAPS[map_name][name] = func
