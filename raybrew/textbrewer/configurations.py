"""TextBrewer's configs: made from arguments, a dict or a JSON file; printable.

Their attributes may change while a training runs: each batch reads them as they are then.
"""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError

from raybrew.config import DistillationConfig as Objective
from raybrew.errors import ConfigError, unknown_name
from raybrew.matches.presets import resolve_matches
from raybrew.matches.spec import MatchSpec
from raybrew.textbrewer.losses import build_match_loss, match_function
from raybrew.textbrewer.presets import (
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
)

_OPT_LEVELS = ("O0", "O1", "O2", "O3")
_SCHEDULERS = {
    "temperature_scheduler": TEMPERATURE_SCHEDULER,
    "hard_label_weight_scheduler": WEIGHT_SCHEDULER,
    "kd_loss_weight_scheduler": WEIGHT_SCHEDULER,
}
_NUMBERS = ("temperature", "kd_loss_weight", "hard_label_weight", "probability_shift")


class Config:
    """Base of `TrainingConfig` and `DistillationConfig`."""

    @classmethod
    def from_json_file(cls, json_filename: str | Path) -> Self:
        """Make a config from a JSON file.

        Raises:
            ConfigError: it can't be read, or holds an unknown key.
        """
        try:
            values = json.loads(Path(json_filename).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{cls.__name__}: expected a JSON file, got {str(json_filename)!r}: {error}"
            ) from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Make a config from a dict of its arguments.

        Raises:
            ConfigError: an unknown argument; names the nearest.
        """
        known = inspect.signature(cls).parameters
        for key in dict_object:
            if key not in known:
                raise unknown_name(f"argument of {cls.__name__}", key, known)
        return cls(**dict_object)

    def __str__(self) -> str:
        shown = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return "".join(f"{key} : {value}\n" for key, value in shown.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n{self}"


@dataclass(repr=False, eq=False)
class TrainingConfig(Config):
    """Settings of the training.

    Args:
        gradient_accumulation_steps: batches of one optimizer step.
        ckpt_frequency: checkpoints in an epoch.
        ckpt_epoch_frequency: epochs from one with checkpoints to the next.
        ckpt_steps: steps between checkpoints, where `train` is given `num_steps`; the last step
            alone if None.
        log_dir: of TensorBoard; None for none.
        output_dir: of the checkpoints.
        device: where batches are put; the models are put there by the script.
        fp16: mixed precision in float16; in bfloat16 on a device that has none.
        fp16_opt_level: O0 computes in full precision, the other levels of Apex are one.
        data_parallel: whether models are put into `torch.nn.DataParallel`.
        local_rank: of this process in distributed training; -1 where it is the only one.
        bf16: mixed precision in bfloat16; not of TextBrewer.
        label_store: folder or URI where labels are kept with `is_caching_logits`;
            `<output_dir>/labels` if None; not of TextBrewer.
        resume: whether a training that was stopped goes on from its last checkpoint in
            `output_dir`, if student, teachers, data and settings are the same; nothing is written
            for that if False; not of TextBrewer.

    Raises:
        ConfigError: a number below 1, or an unknown level.
    """

    gradient_accumulation_steps: int = 1
    ckpt_frequency: int = 1
    ckpt_epoch_frequency: int = 1
    ckpt_steps: int | None = None
    log_dir: str | os.PathLike[str] | None = None
    output_dir: str | os.PathLike[str] = "./saved_models"
    device: str | torch.device = "cuda"
    fp16: bool = False
    fp16_opt_level: str = "O1"
    data_parallel: bool = False
    local_rank: int = -1
    bf16: bool = False
    label_store: str | os.PathLike[str] | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("gradient_accumulation_steps", "ckpt_frequency", "ckpt_epoch_frequency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.ckpt_steps is not None and self.ckpt_steps < 1:
            raise ConfigError(f"ckpt_steps: expected 1 or more, or None, got {self.ckpt_steps}")
        if self.fp16_opt_level not in _OPT_LEVELS:
            raise ConfigError(
                f"fp16_opt_level: expected one of {', '.join(_OPT_LEVELS)}, got "
                f"{self.fp16_opt_level!r}"
            )
        if self.fp16 and self.bf16:
            raise ConfigError("fp16 and bf16: expected one precision, got both")
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)


@dataclass(repr=False, eq=False)
class IntermediateMatch:
    """One match between layers of a teacher and of the student.

    Args:
        layer_T: the teacher's layer, an index into what its adaptor gives; a list for several.
        layer_S: the student's layer or layers.
        weight: factor in the total loss.
        loss: a name of `MATCH_LOSS_MAP`.
        feature: hidden or attention.
        proj: [a name of `PROJ_MAP`, the student's size, the teacher's, options of its optimizer
            group]; the options may be left out.
        teacher: with several teachers the number of one, with several tasks the name of one; not
            of TextBrewer.
        options: of the loss; not of TextBrewer.

    Raises:
        ConfigError: a mistake in it, or an unknown name.
    """

    layer_T: int | list[int]
    layer_S: int | list[int]
    weight: float
    loss: str
    feature: str
    proj: list[Any] | None = None
    teacher: int | str | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.proj = [*self.proj, {}][:4] if self.proj else None
        self.teacher = None if self.teacher is None else str(self.teacher)
        _ = self.spec, self.reads_padding  # raise at mistakes

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Make a match from a dict of its arguments; the weight may be left out."""
        resolve_matches({**dict_object, "teacher": None})  # names unknown and missing keys
        return cls(**{"weight": 1, **dict_object})

    @cached_property
    def spec(self) -> MatchSpec:
        """The match in the package's form."""
        given = {key: value for key, value in self._arguments().items() if value is not None}
        return resolve_matches(given)[0]

    @property
    def function(self) -> Any:
        """The loss: (state_S, state_T, mask=None) → one number."""
        if self.options is None:
            return MATCH_LOSS_MAP.method(self.loss)
        return match_function(self.loss, self.options)

    @cached_property
    def reads_padding(self) -> bool:
        """Whether its value depends on how far a batch is padded."""
        is_own = MATCH_LOSS_MAP.is_own(self.loss)
        return is_own or build_match_loss(self.loss, self.options).padding_counts

    def _arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        return ", ".join(f"{key} : {value}" for key, value in self._arguments().items())

    def __repr__(self) -> str:
        return f"\n{type(self).__name__}: {self}"


@dataclass(repr=False, eq=False)
class DistillationConfig(Config):
    """Settings of the loss; the names of methods are those of `presets`.

    Args:
        temperature: softens the logits of both sides.
        temperature_scheduler: none, a name, or [name, arguments…].
        hard_label_weight: weight of the `losses` that the student's adaptor gives.
        hard_label_weight_scheduler: none, or the name of what replaces it after each step.
        kd_loss_type: loss on the logits.
        kd_loss_weight: its weight.
        kd_loss_weight_scheduler: none, or the name of what replaces it after each step.
        probability_shift: swap the true class's logit with the teacher's largest one.
        intermediate_matches: dicts of the arguments of `IntermediateMatch`.
        is_caching_logits: keep what teachers answer, by content, for every later epoch and run.

    Raises:
        ConfigError: an unknown name, or a match that can't be.
    """

    temperature: float = 4
    temperature_scheduler: Any = "none"
    hard_label_weight: float = 0
    hard_label_weight_scheduler: Any = "none"
    kd_loss_type: str = "ce"
    kd_loss_weight: float = 1
    kd_loss_weight_scheduler: Any = "none"
    probability_shift: bool = False
    intermediate_matches: Any = None
    is_caching_logits: bool = False

    def __post_init__(self) -> None:
        self._given = {name: str(getattr(self, name)) for name in _SCHEDULERS}
        for name, known in _SCHEDULERS.items():
            given = getattr(self, name)
            setattr(self, name, None if given in (None, "none") else known.method(given))
        matches: Sequence[Mapping[str, Any]] = self.intermediate_matches or ()
        self.intermediate_matches = [IntermediateMatch.from_dict(match) for match in matches]
        KD_LOSS_MAP.method(self.kd_loss_type)  # raises at unknown names
        try:
            Objective.model_validate(self.numbers())
        except ValidationError as error:
            mistakes = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}"
                for each in error.errors()
            )
            raise ConfigError(f"DistillationConfig: {mistakes}") from error

    def numbers(self) -> dict[str, Any]:
        """Return the values that may change while a training runs."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def settings(self) -> dict[str, str]:
        """Return what two trainings with the same losses have in common."""
        matches = {"intermediate_matches": str(self.intermediate_matches)}
        values = {name: str(value) for name, value in self.numbers().items()}
        return {"kd_loss_type": self.kd_loss_type, **values, **self._given, **matches}
