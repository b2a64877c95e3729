"""Mistakes in a job, in words: what was expected, what was got, what may have been meant.

Also what arguments of Hugging Face's, TRL's and TextBrewer's are called here.
"""

import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from raybrew.errors import did_you_mean


def section_of(hint: Any) -> type[BaseModel] | None:
    """Return the model that an annotation holds: `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    for part in typing.get_args(hint):
        found = section_of(part)
        if found is not None:
            return found
    return None


# What pydantic calls things, in the words of a YAML file.
_WORDS = (
    (r"^Input should be (?=greater|less|a multiple)", "expected a number "),
    (r"^Input should be callable", "expected a function"),
    (r"^Input should be ", "expected "),
    (r"^(Tuple|List) should have (.*) item(s?) after validation.*", r"expected \2 element\3"),
    (r"^String should have ", "expected a text with "),
    (r"^Dictionary should have (.*) item(s?) after validation.*", r"expected \1 key\2"),
    (r"^String should match pattern ", "expected a name that matches "),
    (r"a valid dictionary or instance of \w+", "a mapping"),
    (r"a valid (dictionary|mapping)", "a mapping"),
    (r"a valid (tuple|list|array)", "a list"),
    (r"a valid string", "a text"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid (integer|number), .*", r"a valid \1"),
)
_FORMS = ("float", "bool")
"""Of a value of `Options`."""


def explain(
    error: ValidationError,
    root_model: type[BaseModel],
    extra: Iterable[str] = (),
    between: str = "\n",
) -> str:
    """Return one line for each mistake: `tasks[0].txt: unknown key …, did you mean 'text'?`.

    Args:
        error: What pydantic found.
        root_model: The model that refused the values.
        extra: Keys of the top level that are known besides the model's.
        between: What separates the mistakes.
    """
    mistakes: list[dict[str, Any]] = [dict(each) for each in error.errors(include_url=False)]
    places = {tuple(mistake["loc"]) for mistake in mistakes}
    lines: dict[str, None] = {}
    for mistake in mistakes:
        place = tuple(mistake["loc"])
        # Pydantic counts a list with wrong elements as too short; report the elements alone.
        inner = (len(other) > len(place) and other[: len(place)] == place for other in places)
        if mistake["type"] == "too_short" and any(inner):
            continue
        _leave_out_forms(mistake, places)
        lines[_line(mistake, root_model, tuple(extra))] = None
    return between.join(lines)


def explain_arguments(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return the mistakes in the arguments of a section that a script makes: a line for each."""
    lines = explain(error, kind).splitlines()
    if len(lines) == 1:
        return f"{kind.__name__}: {lines[0]}"
    return "\n".join([f"{kind.__name__}: {len(lines)} mistakes", *(f"  {each}" for each in lines)])


def expectation(mistake: Mapping[str, Any], *, got: bool = True) -> str:
    """Return what pydantic expected of a value, in the words of a YAML file.

    Args:
        mistake: One of the errors of a `ValidationError`.
        got: Whether to add the value.
    """
    if mistake["type"] == "value_error":  # our own, which has both
        return mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
        text = f"expected {_one_of(mistake['input'], options)}"
    else:
        text = mistake["msg"]
        for pattern, words in _WORDS:
            text = re.sub(pattern, words, text)
        text = text if text.startswith("expected ") else f"expected otherwise: {text}"
    return f"{text}, got {shown(mistake['input'])}" if got else text


def path_of(place: Sequence[int | str]) -> str:
    """Return a place in a job as `--set` writes it, with a leading dot: `.tasks[0].text`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)


def shown(value: Any) -> str:
    """Return a value as a YAML file has it, cut to 80 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _leave_out_forms(mistake: dict[str, Any], places: set[tuple[int | str, ...]]) -> None:
    """Take out of a place what only pydantic knows of: a key, the forms of a value."""
    *above, last = mistake["loc"] or ("",)
    if last == "[key]":
        mistake |= {"loc": above[:-1], "type": "form", "msg": "expected texts as keys"}
    elif last in _FORMS and {(*above, form) for form in _FORMS} <= places:
        words = "expected a number, or true or false"
        mistake |= {"loc": above, "type": "form", "msg": words}


def _line(mistake: dict[str, Any], root: type[BaseModel], extra: Sequence[str]) -> str:
    place = tuple(mistake["loc"])
    prefix = f"{path_of(place).removeprefix('.')}: " if place else ""
    parent = _section(root, place[:-1])
    if mistake["type"] == "extra_forbidden":
        known = sorted(parent.model_fields) if parent else []
        known += extra if len(place) == 1 else ()
        return f"{prefix}unknown key{_meant(str(place[-1]), known, root)}"
    if mistake["type"] == "missing":
        field = parent.model_fields.get(str(place[-1])) if parent else None
        meaning = f" ({field.description.rstrip('.')})" if field and field.description else ""
        return f"{prefix}expected a value{meaning}, got none"
    return prefix + expectation(mistake)


def _meant(key: str, known: Sequence[str], root: type[BaseModel]) -> str:
    """Return what an unknown key of a section stands for, or which keys are known there."""
    if key in OTHER_NAMES:
        return f": {other_name(key)}"
    fields = {name: section_of(field.annotation) for name, field in root.model_fields.items()}
    homes = [name for name, model in fields.items() if model and key in model.model_fields]
    if homes and not did_you_mean(key, known):
        return f" here; it is a key of {' and of '.join(sorted(homes))}"
    return f", expected {_one_of(key, known)}"


def _section(root: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that holds the values at a place."""
    model: type[BaseModel] | None = root
    for key in place:
        if isinstance(key, str):
            known = model.model_fields.get(key) if model else None
            model = section_of(known.annotation) if known else None
    return model


def _one_of(got: Any, known: Sequence[str]) -> str:
    listed = f"one of {', '.join(known)}" if len(known) != 1 else repr(known[0])
    return listed + (did_you_mean(got, known, count=1) if isinstance(got, str) else "")


# What other packages call what a job has.


class OtherName(NamedTuple):
    """What an argument of another package is called in a job.

    Args:
        whose: the package.
        here: the path in a job, and what differs; a package's argument that a job has no
            counterpart of starts with a dash.
    """

    whose: str
    here: str


_HF, _TRL, _TB, _OTHERS = "Hugging Face's", "TRL's", "TextBrewer's", "other packages'"
_STEP = "over all workers and accumulated passes"
_OPTION = "training.optimizer_options"
OTHER_NAMES: dict[str, OtherName] = {
    name: OtherName(whose, here)
    for whose, names in {
        _HF: {
            "per_device_train_batch_size": f"training.batch_size, {_STEP}",
            "per_gpu_train_batch_size": f"training.batch_size, {_STEP}",
            "train_batch_size": f"training.batch_size, {_STEP}",
            "per_device_eval_batch_size": "training.eval_batch_size",
            "per_gpu_eval_batch_size": "training.eval_batch_size",
            "num_train_epochs": "training.num_epochs",
            "max_steps": "training.num_steps",
            "warmup_steps": "training.warmup_ratio, a share of all steps",
            "optim": "training.optimizer, a class of torch.optim such as AdamW",
            "optim_args": _OPTION,
            "weight_decay": f"{_OPTION}, e.g. {{weight_decay: 0.01}}",
            "adam_beta1": f"{_OPTION}, e.g. {{betas: [0.9, 0.999]}}",
            "adam_beta2": f"{_OPTION}, e.g. {{betas: [0.9, 0.999]}}",
            "adam_epsilon": f"{_OPTION}, e.g. {{eps: 1e-8}}",
            "lr_scheduler_type": "training.lr_scheduler",
            "fp16": "training.precision, with the value fp16",
            "bf16": "training.precision, with the value bf16",
            "activation_checkpointing": "training.gradient_checkpointing",
            "eval_steps": "training.evaluate_every, in steps",
            "eval_strategy": "training.evaluate_every (steps) or evaluate_every_epochs",
            "evaluation_strategy": "training.evaluate_every (steps) or evaluate_every_epochs",
            "save_steps": "training.checkpoint_every, in steps",
            "save_strategy": "training.checkpoint_every (steps) or checkpoint_every_minutes",
            "logging_steps": "tracking.log_every",
            "report_to": "tracking.wandb or tracking.tensorboard, true or false",
            "disable_tqdm": "tracking.progress, true or false",
            "output_dir": "run.storage_path, and run.name for the folder in it",
            "logging_dir": "run.storage_path, and run.name for the folder in it",
            "data_seed": "training.seed",
            "dataloader_num_workers": "training.prefetch, in batches",
            "dataloader_prefetch_factor": "training.prefetch, in batches",
            "length_column_name": "training.group_by_length",
            "resume_from_checkpoint": "- give --resume, or resume=True in Python",
            "use_cpu": "scaling.use_gpu, true or false",
            "no_cuda": "scaling.use_gpu, true or false",
            "local_rank": "scaling.num_workers; Ray starts the processes",
            "deepspeed": "scaling.num_workers; each worker holds the whole student",
            "fsdp": "scaling.num_workers; each worker holds the whole student",
            "max_seq_length": "tasks.max_length, in tokens",
            "train_file": "tasks.train",
            "train_dataset": "tasks.train",
            "validation_file": "tasks.eval",
            "eval_dataset": "tasks.eval",
            "model_name_or_path": "teachers.model, and student.model for the student",
            "tokenizer_name": "student.tokenizer_from",
            "torch_dtype": "teachers.dtype",
        },
        _TRL: {
            "teacher_model_name_or_path": "teachers.model",
            "teacher_model": "teachers.model",
            "dataset_text_field": "tasks.text",
            "lmbda": "- a student doesn't learn on text of its own",
            "seq_kd": "- write the teacher's text into the data, and train on it",
            "max_new_tokens": "- no text is generated",
        },
        _TB: {
            "kd_loss_type": "distillation.kd_loss",
            "intermediate_matches": "distillation.matches",
            "is_caching_logits": "labels.store, where labels are always kept",
            "ckpt_frequency": "training.evaluations_per_epoch",
            "ckpt_epoch_frequency": "training.evaluate_every_epochs",
            "ckpt_steps": "training.evaluate_every, in steps",
            "log_dir": "run.storage_path, and run.name for the folder in it",
            "fp16_opt_level": "training.precision",
            "data_parallel": "scaling.num_workers",
            "device": "scaling.use_gpu, true or false",
            "scheduler_class": "training.lr_scheduler, a name of transformers",
            "callback": "training.callbacks",
            "batch_postprocessor": "training.batch_postprocessors",
            "adaptor_T": "teachers.adaptor",
            "adaptor_S": "student.adaptor",
            "model_T": "teachers.model",
            "model_S": "student.model",
            "train_config": "training",
            "distill_config": "distillation",
        },
        _OTHERS: {
            "lr": "training.learning_rate",
            "epochs": "training.num_epochs",
            "steps": "training.num_steps",
            "T": "distillation.temperature",
            "alpha": "distillation.kd_loss_weight, and hard_label_weight for the labels",
            "num_gpus": "teachers.resources, e.g. {GPU: 1}, and scaling.use_gpu for the student",
        },
    }.items()
    for name, here in names.items()
}
"""By name, arguments of other packages that have another name in a job."""


def other_name(name: str) -> str:
    """Return what a job calls an argument of another package; empty if it isn't known.

    Args:
        name: of an argument, as the other package has it.
    """
    if name not in OTHER_NAMES:
        return ""
    whose, here = OTHER_NAMES[name]
    place = here.removeprefix("- ") if here.startswith("-") else f"here it is {here}"
    return f"`{name}` is {whose} name: {place}"
