"""Several tasks in one run: which comes up when, and how their losses are balanced."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raybrew.config.section import Section

__all__ = ["MixingConfig"]


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
