"""The matches of a job's tasks against the models that they compare, without weights."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

from raybrew.config import DistillJob, Student, Task, Teacher
from raybrew.kinds import kind_of
from raybrew.losses.match_spec import MatchSpec
from raybrew.matching.made_batch import check_adaptor
from raybrew.matching.modules import check_modules
from raybrew.matching.plan import TaskMatch, TeacherFacts, geometry_of, plan_matches
from raybrew.matching.reader import Side
from raybrew.models.adaptors import adaptor_of
from raybrew.models.custom_match import CustomMatch
from raybrew.preparation.checks import TeacherModel

__all__ = ["check_architectures", "task_matches"]


def check_architectures(job: DistillJob) -> None:
    """Refuse classes of models that lead nowhere."""
    tasks = {task.name: task for task in job.tasks}
    for teacher in job.hosts().values():
        kind = tasks[teacher.task].kind
        # Also has transformers know the configurations of the user's models before one is read.
        kind_of(kind, teacher.architecture, f"teachers[{teacher.name}].architecture")
    for task in job.tasks:
        kind_of(task.kind, job.student.architecture, "student.architecture")


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
            _check_model(job, task, mine, models[teacher.name].config, teacher)
    every = [match.spec for match in planned]
    _check_model(job, task, every, student, job.student)
    return planned


def _check_model(
    job: DistillJob,
    task: Task,
    matches: Sequence[MatchSpec | CustomMatch],
    config: PreTrainedConfig,
    whose: Teacher | Student,
) -> None:
    side: Side = "teacher" if isinstance(whose, Teacher) else "student"
    kind = kind_of(task.kind, whose.architecture)
    # A student of several tasks isn't a model of one of its kinds.
    if side == "teacher" or len(job.tasks) == 1:
        check_modules(matches, kind.model_class, config, side)
    adaptor = whose.adaptor or task.adaptor
    if adaptor is None and whose.architecture is None:
        return
    layered = [match for match in matches if isinstance(match, MatchSpec)]
    check_adaptor(
        layered, adaptor_of(task.kind, adaptor), kind, config, side, config.num_labels or 1
    )
