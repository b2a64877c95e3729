"""TextBrewer's dicts of methods: what its configs name, what scripts call, and what they add.

MATCH_LOSS_MAP["mine"] = function     register_new("kd_loss", "mine", function)
KD_LOSS_MAP["ce"](logits_S, logits_T, 4)     TEMPERATURE_SCHEDULER[["flsw", 1, 2]]

The names are those of the whole package: its other losses, schedules and projections can be used
in TextBrewer's configs as well. Scripts also find TextBrewer's `projections` and `schedulers` here.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from raybrew.errors import ConfigError, unknown_name
from raybrew.losses.schedules import linear_decay, linear_growth, make_temperature_scheduler
from raybrew.matches.spec import projection_builder
from raybrew.objective.extensions import KINDS
from raybrew.textbrewer.losses import kd_function, match_function

FEATURES = ["hidden", "attention"]
ADAPTOR_KEYS = ["logits", "logits_mask", "losses", "inputs_mask", "labels", *FEATURES]


class Registry(MutableMapping[str, Any]):
    """The methods of a kind by name, callable as TextBrewer's are.

    What is set is registered with the package as well, so that the jobs of this process know it. A
    built-in name that is set is replaced for TextBrewer's configs alone.

    Args:
        kind: of `raybrew.extensions`.
        build: makes a function with TextBrewer's arguments of a name of the package.
        adapt: makes a function with the package's arguments of one with TextBrewer's.
    """

    def __init__(
        self,
        kind: str,
        build: Callable[[str], Any],
        adapt: Callable[[Any], Any] = lambda function: function,
    ):
        self._kind, self._build, self._adapt = kind, build, adapt
        self._own: dict[str, Any] = {}
        self._built_in: dict[str, Any] = {}

    def is_own(self, name: str) -> bool:
        """Whether a name is of the script's own method."""
        return name in self._own

    def method(self, given: Any) -> Any:
        """Return the method that a config names, also by an import path, "package.module:name".

        Raises:
            ConfigError: there is none.
        """
        if given not in self and ":" not in given:
            raise unknown_name(self._kind, given, self)
        return self[given] if given in self else self._build(given)

    def __getitem__(self, name: str) -> Any:
        if name in self._own:
            return self._own[name]
        if name not in KINDS[self._kind].names:
            raise KeyError(name)
        if name in KINDS[self._kind].built_in:
            return self._built_in.setdefault(name, self._build(name))
        return self._build(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if not callable(value):
            raise ConfigError(
                f"{self._kind} {name!r}: expected a function, got {type(value).__name__}"
            )
        kind = KINDS[self._kind]
        if name not in kind.built_in:
            kind.names[name] = kind.accept(name, self._adapt(value))
        self._own[name] = value
        if value is self._built_in.get(name):
            # A script that replaced it puts it back.
            del self._own[name]

    def __delitem__(self, name: str) -> None:
        kind = KINDS[self._kind]
        if name in kind.built_in and name not in self._own:
            raise ConfigError(f"{self._kind} {name!r} is built in and can't be deleted")
        self._own.pop(name, None)
        if name not in kind.built_in:
            del kind.names[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**KINDS[self._kind].names, **self._own})

    def __len__(self) -> int:
        return sum(1 for _ in self)


class SchedulerRegistry(Registry):
    """Temperature schedulers: by name, or by [name, arguments…], which calls what is registered."""

    def __getitem__(self, key: str | Sequence[Any]) -> Any:
        name, *arguments = [key] if isinstance(key, str) else key
        if isinstance(key, str) or self.is_own(name):
            found = super().__getitem__(name)
        else:
            found = temperature_scheduler_builder(name)
        if isinstance(key, str):
            return found
        if len(arguments) == 1 and isinstance(arguments[0], Mapping):
            return found(**arguments[0])
        return found(*arguments)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key[0] if isinstance(key, list | tuple) else key)

    def method(self, given: Any) -> Any:
        """Return the schedule that a config names; one of the package's gets its arguments."""
        if given not in self:
            name = given[0] if isinstance(given, list | tuple) else given
            raise unknown_name(self._kind, str(name), self)
        return self[given if isinstance(given, list | tuple) or self.is_own(given) else [given]]


def _scheduler(name: str) -> Callable[..., Any]:
    # In TextBrewer `flsw` and `cwsm` are builders; whatever else has a name is a schedule.
    build = temperature_scheduler_builder(name)
    return build if name in ("flsw", "cwsm") else build()


def temperature_scheduler_builder(name: str) -> Callable[..., Any]:
    """Return what builds a scheduler of the package: (options…) → (logits_S, logits_T, T) → T.

    The options are taken in their order, or by name.
    """
    function = KINDS["temperature_scheduler"].names[name]
    parameters = inspect.signature(function).parameters.values()
    options = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]

    def build(*arguments: Any, **named: Any) -> Callable[[Tensor, Tensor, float], Any]:
        if len(arguments) > len(options):
            raise ConfigError(
                f"temperature_scheduler: {name} takes {', '.join(options) or 'no arguments'}, got "
                f"{list(arguments)}"
            )
        scheduler = make_temperature_scheduler(
            name, dict(zip(options, arguments, strict=False)) | named
        )

        def schedule(logits_S: Tensor, logits_T: Tensor, base_temperature: float) -> Any:
            return scheduler(logits_S, logits_T, base_temperature)

        return schedule

    return build


def _projection(name: str) -> Callable[[int, int], nn.Module]:
    return linear_projection if name == "linear" else projection_builder(name)


def linear_projection(dim_in: int, dim_out: int) -> nn.Module:
    """Return a linear map with TextBrewer's initial weights, N(0, 0.02²)."""
    mapped: Any = projection_builder("linear")(dim_in, dim_out)
    return mapped[0]


def projection_with_activation(act_fn: str | type[nn.Module]) -> Callable[[int, int], nn.Module]:
    """Return what builds a linear map with an activation after it, a class of `torch.nn`."""
    activation: Any = getattr(nn, act_fn) if isinstance(act_fn, str) else act_fn

    def projection(dim_in: int, dim_out: int) -> nn.Module:
        return nn.Sequential(linear_projection(dim_in, dim_out), activation())

    return projection


def _rows_of_number(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss with a value for each row of one that returns a number, the rows' mean."""

    def loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        value = function(student_logits, teacher_logits, temperature)
        return value.expand(student_logits.shape[0]) if value.dim() == 0 else value

    return loss


KD_LOSS_MAP = Registry("kd_loss", kd_function, _rows_of_number)
"""(logits_S, logits_T, temperature) → one number."""
MATCH_LOSS_MAP = Registry("match_loss", match_function)
"""(state_S, state_T, mask=None) → one number; lists of states where a match has several layers."""
PROJ_MAP = Registry("projection", _projection)
"""(student's size, teacher's size) → module."""
WEIGHT_SCHEDULER = Registry("weight_schedule", lambda name: KINDS["weight_schedule"].names[name])
"""Share of the training that is done → weight."""
TEMPERATURE_SCHEDULER = SchedulerRegistry("temperature_scheduler", _scheduler)
"""(logits_S, logits_T, temperature) → temperature, one or one a row; `flsw`, `cwsm`: builders."""

MAPS = {
    "kd_loss": KD_LOSS_MAP,
    "match_Loss": MATCH_LOSS_MAP,
    "match_loss": MATCH_LOSS_MAP,
    "projection": PROJ_MAP,
    "weight_scheduler": WEIGHT_SCHEDULER,
    "temperature_scheduler": TEMPERATURE_SCHEDULER,
}


def register_new(map_name: str, name: str, func: Callable[..., Any]) -> None:
    """Add a method under a name, or replace the one of that name.

    Args:
        map_name: kd_loss, match_loss (TextBrewer writes match_Loss), projection, weight_scheduler
            or temperature_scheduler.
        name: as configs have it.
        func: the method.

    Raises:
        ConfigError: an unknown map, or something that can't be called.
    """
    if map_name not in MAPS:
        raise unknown_name("map of methods", map_name, MAPS)
    MAPS[map_name][name] = func


linear_decay_weight_scheduler, linear_growth_weight_scheduler = linear_decay, linear_growth
flsw_temperature_scheduler_builder = temperature_scheduler_builder("flsw")
cwsm_temperature_scheduler_builder = temperature_scheduler_builder("cwsm")
constant_temperature_scheduler = temperature_scheduler_builder("constant")()
