"""The job: what to distil, from whom, into what. Values only, frozen, unknown keys refused.

    DistillJob ── tasks ─────── Task              one per data set
               ├─ teachers ──── Teacher           one per fine-tuned model, each names its task
               ├─ student ───── Student           where the student comes from
               ├─ distillation  DistillationConfig  temperature, losses, weights, mixture
               ├─ training ──── TrainingConfig    steps, optimizer, seed
               ├─ labels ────── LabelConfig       the store
               └─ tracking ──── TrackingConfig    W&B, TensorBoard, how often

A live `datasets.Dataset` may stand where a path may; `to_plain` records it by its fingerprint.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from datasets import Dataset
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

__all__ = [
    "DataSource",
    "DistillJob",
    "DistillationConfig",
    "LabelConfig",
    "Student",
    "Task",
    "Teacher",
    "TrackingConfig",
    "TrainJob",
    "TrainingConfig",
]


def _as_source(value: Any) -> Any:
    if isinstance(value, (str, Dataset)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ValueError(
        "expected a path, a hub id or a datasets.Dataset" + f", got {type(value).__name__}"
    )


def _source_to_plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return f"datasets.Dataset:{value._fingerprint}"


DataSource = Annotated[Any, BeforeValidator(_as_source), PlainSerializer(_source_to_plain)]
"""A path (parquet, jsonl, csv, a saved data set), `hub/id[:config][@split]`, or a live Dataset."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Dtype = Literal["float32", "float16", "bfloat16"]
Options = dict[str, float | bool]
ModelPath = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]


class _Section(BaseModel):
    """A frozen part of a job."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True
    )


class Task(_Section):
    """One data set and what is to be learnt from it."""

    name: Name = Field(description="Name of the task; heads, labels and metrics carry it.")
    kind: Literal["sequence-classification"] = Field(
        default="sequence-classification", description="What a prediction is."
    )
    train: DataSource = Field(description="Rows to learn from.")
    eval: DataSource | None = Field(default=None, description="Rows to evaluate on.")
    text: str = Field(default="text", description="Column of the (first) text.")
    text_pair: str | None = Field(default=None, description="Column of the second text of a pair.")
    label: str = Field(
        default="label", description="Column of the class: an integer or a class name."
    )
    label_names: tuple[str, ...] | None = Field(
        default=None,
        min_length=2,
        description="Classes in the order of the logits; read from the data if left out.",
    )
    max_length: int = Field(default=128, ge=4, le=131072, description="Longest input, in tokens.")


class Teacher(_Section):
    """One fine-tuned model and how it is hosted."""

    name: Name = Field(description="Name of the teacher; matches and metrics refer to it.")
    task: str = Field(description="Name of the task that it teaches.")
    model: ModelPath = Field(description="Folder that transformers can load, or a hub id.")
    weight: float = Field(
        default=1.0, ge=0, description="Share in the mixture of its task's teachers."
    )
    replicas: int = Field(default=1, ge=1, le=1024, description="Ray actors that host it.")
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"CPU": 1.0},
        description="Ray resources of one replica, e.g. {GPU: 0.5}.",
    )
    dtype: Dtype = Field(default="float32", description="Precision that the teacher computes in.")
    batch_tokens: int = Field(
        default=4096, ge=16, description="Most tokens of one forward, padding included."
    )
    inputs: Literal["shared", "own"] = Field(
        default="shared",
        description="`shared`: reads the student's token ids. `own`: each example is encoded "
        "for it by its own tokenizer.",
    )


class Student(_Section):
    """Where the student comes from: one of three ways, or `model` with `layers_from`."""

    model: ModelPath | None = Field(
        default=None, description="Folder or hub id of pretrained weights."
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="Changes to the configuration of `tokenizer_from` (by default of the first "
        "teacher); the student starts from random weights.",
    )
    layers_from: tuple[str, tuple[int, ...]] | None = Field(
        default=None,
        description="Teacher and its layers (from 0) to start from; embeddings and the head "
        "come along where sizes match.",
    )
    tokenizer_from: str | None = Field(
        default=None, description="Folder, hub id or teacher whose tokenizer the student uses."
    )
    freeze: tuple[str, ...] = Field(
        default=(), description="Parameters that stay as they are: prefixes or parts of names."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        if self.model is None and self.config is None and self.layers_from is None:
            raise ValueError("expected one of `model`, `config` or `layers_from`, got none")
        if self.config is not None and (self.model or self.layers_from):
            raise ValueError(
                "`config` starts from random weights: expected it alone, got it together with "
                + ("`model`" if self.model else "`layers_from`")
            )
        if self.layers_from is not None and not self.layers_from[1]:
            raise ValueError("expected at least one layer in `layers_from`, got none")
        return self


class DistillationConfig(_Section):
    """The objective. Field names follow TextBrewer where it has the thing."""

    temperature: float = Field(
        default=4.0, gt=0, le=1000, description="Softens both sides' logits."
    )
    temperature_scheduler: str = Field(default="constant", description="How rows change it.")
    temperature_scheduler_options: Options = Field(
        default_factory=dict, description="Options of the temperature scheduler."
    )
    kd_loss: str = Field(
        default="ce", description="Loss on the logits: a name, or `package.module:name`."
    )
    kd_loss_options: Options = Field(default_factory=dict, description="Options of the loss.")
    scale_t2: bool = Field(default=False, description="Multiply the loss on the logits by T².")
    kd_loss_weight: float = Field(
        default=1.0, ge=0, description="Weight of the loss on the logits."
    )
    kd_loss_weight_scheduler: str = Field(
        default="constant", description="Its factor over the steps."
    )
    kd_loss_weight_scheduler_options: Options = Field(
        default_factory=dict, description="Options of that schedule."
    )
    hard_label_weight: float = Field(
        default=0.0, ge=0, description="Weight of the loss on the labels."
    )
    hard_label_weight_scheduler: str = Field(
        default="constant", description="Its factor over the steps."
    )
    hard_label_weight_scheduler_options: Options = Field(
        default_factory=dict, description="Options of that schedule."
    )
    probability_shift: bool = Field(
        default=False, description="Swap the true class's logit with the teacher's largest one."
    )
    mixture: str = Field(
        default="mean_logits", description="How several teachers become one target."
    )
    mixture_options: dict[str, Any] = Field(
        default_factory=dict, description="What differs from the named mixture."
    )


class TrainingConfig(_Section):
    """Steps, optimizer, seed. Batch sizes are global: they don't depend on the workers."""

    num_epochs: int | None = Field(default=None, ge=1, description="Passes over the data.")
    num_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps, instead of epochs."
    )
    batch_size: int = Field(default=32, ge=1, description="Examples of one step, over all workers.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Forward passes that one step's batch is split into."
    )
    eval_batch_size: int = Field(
        default=64, ge=1, description="Examples of one forward in evaluation."
    )
    optimizer: str = Field(default="AdamW", description="Class of torch.optim.")
    optimizer_options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the optimizer besides lr."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate.")
    lr_scheduler: str = Field(default="linear", description="Name of a transformers scheduler.")
    warmup_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Share of the steps that warm up."
    )
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="Clips the gradient's norm.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Autocast of the student."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Order of the data, weights, dropout.")
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between evaluations; at each epoch's end if left out.",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="PyTorch threads a worker; its share of CPUs if left out."
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        if (self.num_epochs is None) == (self.num_steps is None):
            got = "none" if self.num_epochs is None else "both"
            raise ValueError(f"expected one of `num_epochs` and `num_steps`, got {got}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"expected gradient_accumulation_steps to divide batch_size {self.batch_size}, "
                f"got {self.gradient_accumulation_steps}"
            )
        return self


class LabelConfig(_Section):
    """Where soft labels are kept, in which precision, and when they are computed."""

    store: ModelPath = Field(
        default="~/.cache/raybrew/labels", description="Folder of the store; share it between runs."
    )
    dtype: Dtype = Field(default="float32", description="Precision that labels are kept in.")
    when: Literal["along", "ahead"] = Field(
        default="along",
        description="`along`: during the first epoch. `ahead`: before training, after which the "
        "teachers give their resources back.",
    )
    window: int = Field(
        default=8, ge=1, le=4096, description="Steps whose labels are asked for in one request."
    )
    max_windows: int = Field(
        default=2, ge=1, le=64, description="Requests in flight ahead of the step that needs them."
    )


class TrackingConfig(_Section):
    """Who follows the run. `metrics.jsonl` is always written."""

    wandb: bool = Field(default=False, description="Follow the run in W&B; offline without a key.")
    tensorboard: bool = Field(default=False, description="Write TensorBoard events.")
    project: str = Field(default="raybrew", description="W&B project.")
    run_name: str | None = Field(
        default=None, description="W&B run name; the run folder's if left out."
    )
    group: str | None = Field(default=None, description="W&B group.")
    log_every: int = Field(default=10, ge=1, description="Steps between two records of the losses.")
    progress: bool = Field(default=True, description="Progress bars on the driver.")


class _Job(_Section):
    """What training with and without teachers have in common."""

    tasks: tuple[Task, ...] = Field(min_length=1, description="Tasks of the student.")
    training: TrainingConfig = Field(description="Steps, optimizer, seed.")
    tracking: TrackingConfig = Field(
        default_factory=lambda: TrackingConfig(), description="Who follows the run."
    )

    @field_validator("tasks")
    @classmethod
    def _task_names(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        _unique("tasks", [task.name for task in tasks])
        return tasks

    def to_plain(self) -> dict[str, Any]:
        """Return the job as values that YAML and JSON can hold."""
        return self.model_dump(mode="json")


class TrainJob(_Job):
    """Supervised training of one model, without teachers: how teachers are made."""

    model: Student = Field(description="The model to train.")


class DistillJob(_Job):
    """Distillation of teachers into one student."""

    teachers: tuple[Teacher, ...] = Field(min_length=1, description="Who teaches.")
    student: Student = Field(description="Who learns.")
    distillation: DistillationConfig = Field(
        default_factory=lambda: DistillationConfig(), description="The objective."
    )
    labels: LabelConfig = Field(default_factory=lambda: LabelConfig(), description="The store.")

    @model_validator(mode="after")
    def _references(self) -> "DistillJob":
        names = [teacher.name for teacher in self.teachers]
        _unique("teachers", names)
        tasks = [task.name for task in self.tasks]
        for teacher in self.teachers:
            if teacher.task not in tasks:
                raise ValueError(
                    f"teacher {teacher.name!r}: expected a task of this job "
                    f"({', '.join(tasks)}), got {teacher.task!r}"
                )
        for task in tasks:
            if not any(t.task == task and t.weight > 0 for t in self.teachers):
                raise ValueError(
                    f"task {task!r}: expected a teacher with a weight above 0, got none"
                )
        if self.student.layers_from and self.student.layers_from[0] not in names:
            raise ValueError(
                f"student.layers_from: expected a teacher of this job ({', '.join(names)}), "
                f"got {self.student.layers_from[0]!r}"
            )
        return self

    def teachers_of(self, task: str) -> tuple[Teacher, ...]:
        """Return the teachers of a task, in the job's order."""
        return tuple(teacher for teacher in self.teachers if teacher.task == task)


def _unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what}: expected different names, got {', '.join(twice)} twice")
