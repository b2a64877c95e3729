"""Training, mixing of tasks, the label store and tracking."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raybrew.config.section import Bytes, Dtype, ImportPath, Many, ModelPath, Section


class MixingConfig(Section):
    """How a run with several tasks draws its batches and balances their losses."""

    sampling: Literal["proportional", "t5", "annealed", "fixed", "every"] = Field(
        default="proportional",
        description="Which task a batch is drawn from. `proportional`: ∝ size^tau. `t5`: "
        "∝ min(size, limit)^(1 / temperature). `annealed`: ∝ size^τ, τ going from tau to tau_end "
        "over the epochs. `fixed`: by `probabilities`. `every`: each in turn, one batch of each "
        "in every step.",
    )
    tau: float = Field(default=1.0, ge=0, le=4, description="Exponent of the sizes.")
    tau_end: float = Field(
        default=0.2, ge=0, le=4, description="Exponent in the last epoch, for `annealed`."
    )
    limit: int = Field(
        default=2**19, ge=1, description="Size above which a task counts no more, for `t5`."
    )
    temperature: float = Field(default=1.0, ge=1, le=1000, description="That of `t5`.")
    probabilities: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="Share of the batches by task, for `fixed`; they need not add up."
    )
    batches_per_step: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Batches, each of a task of its own drawing, whose gradients one optimizer "
        "step averages; with `every` as many as there are tasks.",
    )

    balancing: Literal["none", "uncertainty", "dwa", "pcgrad"] = Field(
        default="none",
        description="What weighs the tasks' losses besides their `weight`. `uncertainty`: learnt "
        "variances. `dwa`: how fast each falls from epoch to epoch. `pcgrad`: gradients of the "
        "shared trunk that conflict are projected onto each other's normal plane.",
    )
    dwa_temperature: float = Field(
        default=2.0, gt=0, le=1000, description="Softens the weights of `dwa`."
    )
    uncertainty_learning_rate: float = Field(
        default=1e-2,
        gt=0,
        description="Learning rate of the variances of `uncertainty`, which are few and far away.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "MixingConfig":
        if (self.sampling == "fixed") != (self.probabilities is not None):
            raise ValueError(
                "expected `probabilities` with sampling `fixed` and with no other, got "
                f"sampling {self.sampling!r} and probabilities {self.probabilities}"
            )
        if self.sampling == "every" and self.batches_per_step != 1:
            raise ValueError(
                "expected batches_per_step left out with sampling `every`, which takes one batch "
                f"of each task in every step, got {self.batches_per_step}"
            )
        if self.balancing == "pcgrad" and self.sampling != "every":
            raise ValueError(
                "expected sampling `every` with balancing `pcgrad`, which compares the tasks' "
                f"gradients in each step, got {self.sampling!r}"
            )
        return self


def _as_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {value!r}: {error}") from error
    return value


class ParameterGroup(Section):
    """Options of the optimizer for the student's parameters of some names."""

    parameters: Many[Annotated[str, AfterValidator(_as_pattern)]] = Field(
        description="Regular expressions; a parameter is meant if one is found in its name.",
        min_length=1,
    )
    learning_rate: float | None = Field(
        default=None, ge=0, description="Peak learning rate; that of the training if left out."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the optimizer besides lr: `weight_decay`."
    )


class TrainingConfig(Section):
    """Steps, optimizer, seed. Batch sizes are global: they don't depend on the workers."""

    num_epochs: int | None = Field(
        default=None,
        ge=1,
        description="Passes over the data; chosen by how the student starts and by the number of "
        "rows where neither this nor `num_steps` is given.",
    )
    num_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps, instead of epochs."
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations in a row without a higher score after which training stops; "
        "never before its end if left out.",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="Which student is kept: that of the evaluation with the highest score, or "
        "that of the last step; without evaluation rows it is always the last.",
    )
    keep_checkpoints: bool = Field(
        default=False,
        description="Keep the checkpoints of a run that is finished: each is some four times as "
        "large as the student.",
    )
    batch_size: int = Field(default=32, ge=1, description="Examples of one step, over all workers.")
    group_by_length: bool = Field(
        default=False,
        description="Put examples of similar length into one batch, which saves padding; batches "
        "still come in an order that is drawn.",
    )
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
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Peak learning rate; chosen by how the student starts if left out.",
    )
    parameter_groups: Many[ParameterGroup] = Field(
        default=(),
        description="Parameters with options of their own, such as no weight decay for biases or a "
        "lower learning rate for lower layers; of a parameter in several groups each option is "
        "that of the last group that has it.",
    )
    lr_scheduler: str = Field(default="linear", description="Name of a transformers scheduler.")
    warmup_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Share of the steps that warm up."
    )
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="Clips the gradient's norm.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Autocast of the student; with fp16 its losses are scaled, and steps whose "
        "gradient overflows are left out while the scale is found.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute the student's layers again in the backward pass instead of keeping "
        "them: less memory, about a third more time.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Order of the data, weights, dropout.")
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between evaluations; at each epoch's end if left out.",
    )
    prefetch: int = Field(
        default=2,
        ge=0,
        le=1024,
        description="Batches that are made ready, with their labels, while the student computes; "
        "0 makes each when its step comes.",
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between checkpoints; at each evaluation if neither this nor "
        "`checkpoint_every_minutes` is set. The last step and the best evaluation always have one.",
    )
    checkpoint_every_minutes: float | None = Field(
        default=None, gt=0, description="Minutes between checkpoints, besides `checkpoint_every`."
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="What a gradient that is not finite does: `stop` ends the run with an error, "
        "`skip` leaves the step out, on all workers alike.",
    )
    evaluations_per_epoch: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations in each epoch, evenly spread, instead of `evaluate_every`.",
    )
    evaluate_every_epochs: int | None = Field(
        default=None, ge=1, description="Epochs between evaluations, instead of `evaluate_every`."
    )
    callbacks: Many[ImportPath] = Field(
        default=(),
        description="Called as callback(model, step) after each evaluation, on rank 0, with the "
        "model in evaluation mode: callables or `package.module:name`.",
    )
    batch_postprocessors: Many[ImportPath] = Field(
        default=(),
        description="Change what the student reads in training, one after the other: (batch) -> "
        "batch, a dict of tensors with `labels`, of as many rows. Teachers answer to the examples "
        "as they are.",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="PyTorch threads a worker; its share of CPUs if left out."
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        if self.num_epochs is not None and self.num_steps is not None:
            raise ValueError("expected one of `num_epochs` and `num_steps`, got both")
        cadences = [self.evaluate_every, self.evaluations_per_epoch, self.evaluate_every_epochs]
        if sum(each is not None for each in cadences) > 1:
            raise ValueError(
                "expected one of `evaluate_every`, `evaluations_per_epoch` and "
                "`evaluate_every_epochs`, got several"
            )
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"expected gradient_accumulation_steps to divide batch_size {self.batch_size}, "
                f"got {self.gradient_accumulation_steps}"
            )
        return self


class LabelConfig(Section):
    """Where soft labels are kept, in which precision, and when they are computed."""

    store: ModelPath = Field(
        default="~/.cache/raybrew/labels",
        min_length=1,
        description="Folder of the store, or a URI that pyarrow reads (s3://, gs://, abfs://); "
        "share it between runs.",
    )
    max_bytes: Bytes | None = Field(
        default=None,
        gt=0,
        description="Greatest size of a store in a folder, e.g. 50GB; labels that were read "
        "least recently are deleted first, none that was used since the run began. Any size if "
        "left out.",
    )
    on_full: Literal["stop", "go_on"] = Field(
        default="stop",
        description="When the disk is full, or the store has its greatest size: `stop` with an "
        "error, or `go_on` without storing, which is counted and logged.",
    )
    cache: ModelPath = Field(
        default="~/.cache/raybrew/remote-labels",
        description="Folder on each machine for what is read of a store behind a URI.",
    )
    cache_max_bytes: Bytes | None = Field(
        default=None,
        gt=0,
        description="Greatest size of the cache, e.g. 50GB, by the rule of max_bytes.",
    )
    dtype: Dtype = Field(default="float32", description="Precision that labels are kept in.")
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Keep only so many of the largest logits, with the logsumexp of all, for large "
        "numbers of classes; all logits if left out.",
    )
    top_k_temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(),
        description="Temperatures whose logsumexp is kept with top-k logits, such as those of a "
        "sweep; the job's own always is.",
    )
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

    @model_validator(mode="after")
    def _full_store(self) -> "LabelConfig":
        if self.on_full == "go_on" and self.when == "ahead":
            raise ValueError(
                "expected on_full: stop with when: ahead (the teachers have stopped by the time "
                "that a label that was not stored is needed), got on_full: go_on"
            )
        if self.max_bytes is not None and "://" in self.store:
            raise ValueError(
                "expected max_bytes for a store in a folder only (a bucket doesn't record when "
                "a file was last read; `raybrew store prune --max-size` bounds it by age), got it "
                f"with {self.store.partition('://')[0]}://"
            )
        return self


class TrackingConfig(Section):
    """Where the run is logged. `metrics.jsonl` is always written."""

    wandb: bool = Field(default=False, description="Log the run to W&B; offline without a key.")
    tensorboard: bool = Field(default=False, description="Write TensorBoard events.")
    project: str | None = Field(
        default=None, description="W&B project; WANDB_PROJECT, or else raybrew, if left out."
    )
    run_name: str | None = Field(
        default=None,
        description="W&B run name; WANDB_NAME, or else the run folder's, if left out.",
    )
    group: str | None = Field(
        default=None, description="W&B group; WANDB_RUN_GROUP, or else none, if left out."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between two records of the losses.")
    progress: bool = Field(
        default=True, description="Progress bars on the driver, and the report's tables at the end."
    )
    baseline: ModelPath | None = Field(
        default=None,
        description="Folder of a finished run whose evaluation report.html shows beside this "
        "one's: the same student trained on labels alone, by `train-teacher`.",
    )
