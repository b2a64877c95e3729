"""The matches of a job's tasks against the models that they compare, without weights."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

from raybrew.config import DistillJob, Task
from raybrew.kinds import kind_of
from raybrew.losses.match_spec import MatchSpec
from raybrew.matching.made_batch import check_adaptor
from raybrew.matching.modules import check_modules
from raybrew.matching.plan import TaskMatch, TeacherFacts, geometry_of, plan_matches
from raybrew.matching.reader import Side
from raybrew.models.adaptors import Adaptor, adaptor_of
from raybrew.models.custom_match import CustomMatch
from raybrew.preparation.checks import TeacherModel

__all__ = ["check_adaptors", "task_matches"]


def check_adaptors(job: DistillJob) -> None:
    """Refuse import paths of adaptors that lead nowhere."""
    tasks = {task.name: task for task in job.tasks}
    for teacher in job.hosts().values():
        adaptor_of(tasks[teacher.task].kind, teacher.adaptor, tasks[teacher.task].adaptor)
    for task in job.tasks:
        adaptor_of(task.kind, job.student.adaptor, task.adaptor)


def task_matches(
    job: DistillJob,
    task: Task,
    models: Mapping[str, TeacherModel],
    student: PreTrainedConfig,
) -> tuple[TaskMatch, ...]:
    """Spell out the matches of a task, and check that its models and adaptors give them.

    Args:
        job: whose task it is.
        task: which.
        models: of the teachers that are models, by name.
        student: configuration of the student.

    Raises:
        ConfigError: names the match.
    """
    teachers = {
        teacher.name: TeacherFacts(
            geometry_of(models[teacher.name].config) if teacher.name in models else None,
            teacher.inputs == "shared",
        )
        for teacher in job.teachers_of(task.name)
    }
    planned = plan_matches(
        job.objective_of(task.name).matches,
        task.name,
        teachers,
        [teacher.name for teacher in job.teachers],
        geometry_of(student),
        job.labels.dtype,
    )
    for teacher in job.teachers_of(task.name):
        if teacher.name in models:
            mine = [match.spec for match in planned if match.teacher == teacher.name]
            given = teacher.adaptor or task.adaptor
            _check_model(task, mine, models[teacher.name].config, given, "teacher", job)
    every = [match.spec for match in planned]
    _check_model(task, every, student, job.student.adaptor or task.adaptor, "student", job)
    return planned


def _check_model(
    task: Task,
    matches: Sequence[MatchSpec | CustomMatch],
    config: PreTrainedConfig,
    adaptor: Adaptor | str | None,
    side: Side,
    job: DistillJob,
) -> None:
    kind = kind_of(task.kind)
    # A student of several tasks isn't a model of one of its kinds.
    if side == "teacher" or len(job.tasks) == 1:
        check_modules(matches, kind.model_class, config, side)
    if adaptor is None:
        return
    layered = [match for match in matches if isinstance(match, MatchSpec)]
    check_adaptor(
        layered, adaptor_of(task.kind, adaptor), kind, config, side, config.num_labels or 1
    )
