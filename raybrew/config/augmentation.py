"""Training rows that are read changed as well: which changes, how many copies, how often anew."""

from typing import Any, Literal

from pydantic import Field, model_validator

from raybrew.config.section import Many, Section

__all__ = ["Augmentation", "Operation"]

_CASES = 5
_DEFAULTS: dict[str, dict[str, Any]] = {
    "masking": {"p": 0.1},
    "deleting": {"p": 0.1},
    "n_gram_sampling": {"p_ng": (0.2,) * 5, "l_ng": (1, 2, 3, 4, 5)},
    "short_disorder": {"p": (0.9, 0.1, 0.0, 0.0, 0.0)},
    "long_disorder": {"p": 0.1, "length": 20.0},
}


class Operation(Section):
    """One change of a list of tokens; names, options and defaults are TextBrewer's."""

    name: Literal["masking", "deleting", "n_gram_sampling", "short_disorder", "long_disorder"] = (
        Field(description="Which change.")
    )
    p: float | Many[float] | None = Field(
        default=None,
        description="Chance of each token (masking, deleting: 0.1) or span (long_disorder: 0.1); "
        "for short_disorder those of abc, bac, cba, cab and bca (0.9, 0.1, 0, 0, 0).",
    )
    p_ng: Many[float] | None = Field(
        default=None, description="n_gram_sampling: chance of each of `l_ng`; 0.2 each."
    )
    l_ng: Many[int] | None = Field(
        default=None, description="n_gram_sampling: lengths of the span that is kept; 1 to 5."
    )
    length: float | None = Field(
        default=None,
        gt=0,
        description="long_disorder: tokens of a span whose halves change places (20); up to 1 it "
        "is a share of the tokens.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the change, with its defaults."""
        given = self.model_dump(exclude={"name"}, exclude_none=True)
        return {**_DEFAULTS[self.name], **given}

    @model_validator(mode="after")
    def _fits(self) -> "Operation":
        given = self.model_dump(exclude={"name"}, exclude_none=True)
        unknown = sorted(given.keys() - _DEFAULTS[self.name].keys())
        if unknown:
            raise ValueError(
                f"{self.name} takes {', '.join(_DEFAULTS[self.name])}, got {', '.join(unknown)}"
            )
        options = self.options
        if self.name == "short_disorder":
            _check_distribution("short_disorder: p", options["p"], _CASES)
        elif "p" in options and not (
            isinstance(options["p"], float | int) and 0 <= options["p"] <= 1
        ):
            raise ValueError(f"{self.name}: expected p in [0, 1], got {options['p']}")
        if self.name == "n_gram_sampling":
            if min(options["l_ng"], default=0) < 1:
                raise ValueError(f"expected lengths of 1 or more in l_ng, got {options['l_ng']}")
            _check_distribution("n_gram_sampling: p_ng", options["p_ng"], len(options["l_ng"]))
        return self


def _check_distribution(what: str, given: Any, count: int) -> None:
    values = given if isinstance(given, tuple) else (given,)
    if len(values) != count or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"expected {count} numbers ≥ 0 with the sum 1 in {what}, got {given}")


class Augmentation(Section):
    """Changed copies of a task's training rows; teachers label them like any other row."""

    operations: Many[Operation] = Field(
        min_length=1, description="Changes, one after another, of each copy."
    )
    copies: int = Field(
        default=1, ge=1, le=1000, description="Changed copies of each row in an epoch."
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Epochs whose changes are drawn anew; then they come again.",
    )
    originals: bool = Field(default=True, description="Read the unchanged rows too.")
    hard_labels: bool = Field(
        default=False, description="Copies keep the label of their row; else they have none."
    )
    unit: Literal["word", "character"] = Field(
        default="word",
        description="What a token of a text is: between white space, or each character, for "
        "writing without spaces.",
    )
    mask: str = Field(
        default="[MASK]",
        min_length=1,
        description="What masking writes; the mask token of all that read the task.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of all changes.")
