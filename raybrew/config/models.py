"""Teachers and the student: which models, how they are hosted, adapted and initialised."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raybrew.config.section import (
    Dtype,
    ImportPath,
    Many,
    ModelPath,
    Name,
    Section,
    Trust,
    changed_fields,
)


class Lora(Section):
    """Adapters that learn in place of the trunk's weights, by the library peft."""

    rank: int = Field(default=8, ge=1, le=65536, description="Width of an adapter, in numbers.")
    alpha: float = Field(
        default=16.0, gt=0, description="What adapters add is multiplied by alpha / rank."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of an adapter's inputs left out in training."
    )
    target_modules: Many[str] | None = Field(
        default=None,
        min_length=1,
        description="Linear layers of the trunk that get one: their names, or how these end, e.g. "
        "query; all of its linear layers if left out.",
    )


Architecture = Annotated[
    ImportPath,
    Field(
        description="Class of yours, a transformers.PreTrainedModel, or its import path; that of "
        "transformers for the task type if left out."
    ),
]


class Teacher(Section):
    """One fine-tuned model and how it is hosted, or its logits as a column of the data."""

    name: Name = Field(description="Name of the teacher; matches and metrics refer to it.")
    task: str = Field(description="Name of the task that it teaches.")
    model: ModelPath | None = Field(
        default=None, description="Folder that transformers can load, or a hub id."
    )
    logits: str | None = Field(
        default=None,
        description="In place of a model, the column of the task's data with logits that were "
        "computed before: in each row a list of numbers, one for each of the task's label_names, "
        "in their order; for token-classification a list of such lists, one a word.",
    )
    weight: float = Field(
        default=1.0, ge=0, description="Share in the mixture of its task's teachers."
    )
    placement: Literal["pool", "worker"] = Field(
        default="pool",
        description="`pool`: Ray actors of its own host it. `worker`: each student worker hosts it "
        "in its process, so that nothing is carried, e.g. on one GPU.",
    )
    replicas: int = Field(default=1, ge=1, le=1024, description="Ray actors that host it.")
    resources: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        default=None,
        description="Ray resources of one replica, e.g. {GPU: 0.5}: it computes on the GPU that "
        "they name, at most one, and on the CPU without one. A CPU and, where the cluster has "
        "GPUs, one of them if left out.",
    )
    dtype: Dtype = Field(default="float32", description="Precision that the teacher computes in.")
    batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Most tokens of one forward, padding included; 512 on a CPU, where larger "
        "batches are no faster and hold more padding, else 4096, if left out.",
    )
    on_loss: Literal["fail", "wait", "drop"] = Field(
        default="fail",
        description="What happens when no replica answers any longer, and Ray can't bring one "
        "back: the run fails, waits, or goes on with the task's other teachers alone.",
    )
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="Longest forward in seconds; a replica that takes longer hangs, is killed and "
        "restarted, and its requests go to another one.",
    )
    lost_after_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds without any replica after which the teacher counts as lost.",
    )
    inputs: Literal["shared", "own"] = Field(
        default="shared",
        description="`shared`: reads the student's token ids, which takes tokenizers that make the "
        "same of every text. `own`: each example is encoded for it by its own tokenizer.",
    )
    architecture: Architecture = None
    adaptor: ImportPath = Field(
        default=None, description="What its outputs mean; the task's adaptor if left out."
    )
    trust_remote_code: Trust = False

    @property
    def model_path(self) -> str:
        """Its model, of a teacher that is one."""
        assert self.model is not None, f"teacher {self.name} is a column of the data"
        return self.model

    @model_validator(mode="after")
    def _one_origin(self) -> "Teacher":
        if (self.model is None) == (self.logits is None):
            got = "neither" if self.model is None else "both"
            raise ValueError(f"expected one of `model` and `logits`, got {got}")
        idle = sorted({*changed_fields(self)} - {"name", "task", "logits", "weight", "model"})
        if self.logits is not None and idle:
            raise ValueError(
                f"`logits` {self.logits!r} is a column of the data, which isn't hosted: expected "
                f"it without {', '.join(idle)}"
            )
        return self

    @model_validator(mode="after")
    def _hosting(self) -> "Teacher":
        of_pool = {"replicas", "resources", "on_loss", "deadline_s", "lost_after_s"}
        idle = sorted(of_pool.intersection(changed_fields(self)))
        if self.placement == "worker" and idle:
            raise ValueError(
                f"placement: worker lives in the student's workers, with their resources: expected "
                f"it without {', '.join(idle)}"
            )
        gpus = (self.resources or {}).get("GPU", 0)
        if gpus > 1:
            raise ValueError(
                f"resources: a replica computes on one GPU: expected GPU: 1 or a part of it, got "
                f"{gpus:g}; for more of them set replicas"
            )
        return self


class Student(Section):
    """Where the student comes from: one of four ways, or `model` with `layers_from`."""

    preset: (
        Literal["T6", "T3", "T3-small", "T4-tiny", "T12-nano", "Electra-small", "BiGRU"] | None
    ) = Field(
        default=None,
        description="A student of the TextBrewer paper: its sizes with the vocabulary of "
        "`tokenizer_from` (by default of the first teacher); it starts from random weights.",
    )
    model: ModelPath | None = Field(
        default=None, description="Folder or hub id of pretrained weights."
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="Changes to the configuration of `tokenizer_from` (by default of the first "
        "teacher); the student starts from random weights.",
    )
    layers_from: tuple[str, Many[int]] | None = Field(
        default=None,
        description="A teacher, or the folder of a model, and its layers (from 0) to start from; "
        "embeddings and the head come along where sizes match.",
    )
    tokenizer_from: str | None = Field(
        default=None, description="Folder, hub id or teacher whose tokenizer the student uses."
    )
    freeze: Many[str] = Field(
        default=(), description="Parameters that stay as they are: prefixes or parts of names."
    )
    lora: Lora | None = Field(
        default=None,
        description="Adapters that learn in place of the trunk's weights; heads learn whole. The "
        "saved student has them merged.",
    )
    architecture: Architecture = None
    adaptor: ImportPath = Field(
        default=None, description="What its outputs mean; the task's adaptor if left out."
    )
    trust_remote_code: Trust = False

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        if not (self.model or self.config is not None or self.layers_from or self.preset):
            raise ValueError("expected one of `model`, `config`, `layers_from`, `preset`, got none")
        if self.preset is not None and (self.model or self.config or self.layers_from):
            raise ValueError(
                f"`preset` {self.preset} defines the whole student: expected it without `model`, "
                "`config` and `layers_from`"
            )
        if self.config is not None and (self.model or self.layers_from):
            raise ValueError(
                "`config` starts from random weights: expected it alone, got it together with "
                + ("`model`" if self.model else "`layers_from`")
            )
        if self.layers_from is not None and not self.layers_from[1]:
            raise ValueError("expected at least one layer in `layers_from`, got none")
        return self
