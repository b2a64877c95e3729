"""Names of a job that must lead somewhere, each said with its field."""

from collections.abc import Callable
from typing import Any

from raybrew.config import DistillJob, MatchPreset, Task, TrainJob
from raybrew.errors import ConfigError
from raybrew.kinds import kind_of
from raybrew.losses.mixture import make_mixture
from raybrew.losses.presets import MATCH_KINDS, resolve_matches
from raybrew.losses.schedules import make_weight_schedule
from raybrew.losses.soft import make_kd_loss
from raybrew.losses.temperature import make_temperature_scheduler
from raybrew.models.importing import import_callable

__all__ = ["check_adaptor_paths", "check_objective_names"]


def check_objective_names(job: DistillJob, task: Task) -> None:
    """Refuse methods and options of a task's objective that don't exist.

    Raises:
        ConfigError: names the field, the task's own where the task changes it.
    """
    config = job.objective_of(task.name)
    builders: dict[str, Callable[[str, dict[str, Any]], object]] = {
        "kd_loss": lambda name, options: make_kd_loss(name, options, scale_t2=config.scale_t2),
        "mixture": make_mixture,
        "temperature_scheduler": make_temperature_scheduler,
        "kd_loss_weight_scheduler": make_weight_schedule,
        "hard_label_weight_scheduler": make_weight_schedule,
    }
    for name, build in builders.items():
        given, options = getattr(config, name), getattr(config, f"{name}_options")
        given = kind_of(task.kind).kd_loss if given is None else given
        _said_with(_field(task, name, f"{name}_options"), build, given, options)
    for number, match in enumerate(config.matches):
        name = match.preset if isinstance(match, MatchPreset) else match
        # The rest takes the models' sizes.
        if isinstance(name, str) and name not in MATCH_KINDS:
            _said_with(f"{_field(task, 'matches')}[{number}]", resolve_matches, name)


def check_adaptor_paths(job: DistillJob | TrainJob) -> None:
    """Refuse import paths of adaptors that lead nowhere."""
    given = {f"tasks[{task.name}]": task.adaptor for task in job.tasks}
    if isinstance(job, TrainJob):
        given["model"] = job.model.adaptor
    else:
        given |= {f"teachers[{teacher.name}]": teacher.adaptor for teacher in job.teachers}
        given["student"] = job.student.adaptor
    for section, adaptor in given.items():
        if adaptor is not None:
            import_callable(adaptor, f"{section}.adaptor: adaptor")


def _field(task: Task, *names: str) -> str:
    """Return where the first of the names stands: with the task, if that says any of them."""
    own = task.distillation is not None and not task.distillation.model_fields_set.isdisjoint(names)
    return f"{f'tasks[{task.name}].' if own else ''}distillation.{names[0]}"


def _said_with(field: str, build: Callable[..., object], *given: Any) -> None:
    try:
        build(*given)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error
