"""Commands that write job files and what editors need for them: `raybrew init | schema | plan`."""

import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from raybrew.errors import ConfigError, RaybrewError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from raybrew.data.inspection import FileGuess

job_commands = typer.Typer()

_ENGLISH, _MULTILINGUAL = (
    "google-bert/bert-base-uncased",
    "google-bert/bert-base-multilingual-cased",
)
_PRESETS = ("T6", "T3", "T3-small", "T4-tiny", "T12-nano", "Electra-small", "BiGRU")
_SCHEMA_FOLDER = ".raybrew"
_EVAL_FRACTION = 0.1
_STEPS, _BATCH = 400, 32


class InitOptions(NamedTuple):
    """What `raybrew init` takes."""

    data: Annotated[
        str | None,
        typer.Argument(
            help="CSV, TSV, JSONL, parquet, … or a hub id; asked for on a terminal if left out.",
            show_default=False,
        ),
    ] = None
    target: Annotated[
        str | None, typer.Option(help="Column to predict; guessed, and asked on a terminal.")
    ] = None
    text: Annotated[
        str | None, typer.Option(help="Column of the text, or both of a pair: first,second.")
    ] = None
    task_type: Annotated[str | None, typer.Option(help="Task type; guessed if left out.")] = None
    teacher: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a model: fine-tuned for the task, or to be."),
    ] = None
    student: Annotated[
        str | None,
        typer.Option(help="A preset, a folder or a hub id; layers of the teacher if left out."),
    ] = None
    for_teacher: Annotated[
        bool, typer.Option("--for-teacher", help="Write the job that trains a teacher, no other.")
    ] = False
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The job file; its folder gets the others.")
    ] = Path("distill.yaml")


def _takes(options: type[InitOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a class, as the one value that it takes."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        @wraps(run)
        def command(**given: Any) -> None:
            run(options(**given))

        command.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]
        command.__annotations__ = dict(options.__annotations__)
        return command

    return decorate


@job_commands.command()
@_takes(InitOptions)
def init(options: InitOptions) -> None:
    """Look at a file of rows, and write the job files that distil a model for it."""
    from raybrew.data.inspection import guess_target, inspect_rows
    from raybrew.data.sources import load_source

    data = options.data or _asked("Data file", None, "the data file, as `raybrew init FILE`")
    rows = load_source(data, "init")
    target = options.target
    if target is None and options.task_type != "causal-lm":
        target = guess_target(rows)
        if sys.stdin.isatty():
            print(f"{len(rows):,} rows, columns: {', '.join(rows.column_names)}")
            target = typer.prompt("Column to predict (- for none)", default=target or "-")
            target = None if target == "-" else target
    guess = inspect_rows(rows, label=target, text=options.text, kind=options.task_type)
    plan = _Plan(options, data, guess, _teacher_of(options, rows, guess))
    length, most = _length_of(plan, rows)
    files = plan.files(length, most)
    for path in files:
        if path.exists():
            raise ConfigError(
                f"init: expected a new file, got {path}, which exists; choose another (-o), or "
                "delete it"
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    plan.write_schemas()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    plan.describe(list(files), length, most)


@job_commands.command()
def schema(
    train: Annotated[
        bool, typer.Option("--train", help="Of jobs of `raybrew train-teacher`.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File; printed if left out.")
    ] = None,
) -> None:
    """Print the JSON schema of the job file, by which editors complete and check it."""
    text = _schema_text(train=train)
    if output is None:
        print(text, end="")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"{output}; the editor's line: # yaml-language-server: $schema={output}")


@job_commands.command()
def plan(
    job: Annotated[Path, typer.Argument(help="The job, a YAML file.", show_default=False)],
) -> None:
    """Show what a distillation takes: models, memory, labels; check it, and start nothing."""
    from raybrew.config import DistillJob
    from raybrew.config.job_file import load_job
    from raybrew.runs.job_plan import plan as run

    print(run(load_job(DistillJob, job).job), end="")


def _schema_text(*, train: bool) -> str:
    from raybrew.config import DistillJob, TrainJob
    from raybrew.config.job_file import job_schema

    return json.dumps(job_schema(TrainJob if train else DistillJob), indent=1) + "\n"


def _asked(question: str, default: str | None, expected: str) -> str:
    if default is None and not sys.stdin.isatty():
        raise ConfigError(f"init: expected {expected}, got none, and no terminal to ask on")
    return typer.prompt(question, default=default) if sys.stdin.isatty() else str(default)


def _teacher_of(options: InitOptions, rows: Any, guess: "FileGuess") -> str:
    from raybrew.data.inspection import is_latin

    default = _ENGLISH if is_latin(rows, guess.text) else _MULTILINGUAL
    if options.teacher is not None:
        return options.teacher
    return _asked("Teacher model (folder or hub id)", default, "a teacher")


def _length_of(plan: "_Plan", rows: Any) -> tuple[int, int]:
    from raybrew.data.inspection import suggest_length
    from raybrew.models.pretrained import read_tokenizer

    tokenizer = None if plan.config is None else read_tokenizer(plan.teacher, "--teacher")
    length, most = suggest_length(rows, plan.guess, tokenizer)
    limit = getattr(plan.config, "max_position_embeddings", None)
    return min(length, limit) if isinstance(limit, int) and limit > 8 else length, most


class _Plan:
    """The job files for a file of rows, and what their comments say."""

    def __init__(self, options: InitOptions, data: str, guess: "FileGuess", teacher: str):
        from raybrew.config.section import user_path

        self.guess, self.teacher, self._options = guess, teacher, options
        folder = options.output.parent
        self._folder = folder
        path = user_path(data, "init")
        self._data = _from(folder, data)
        self._model = _from(folder, teacher)
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-._") or "task"
        self.config, self.unread = _read(teacher)
        self.is_tuned = _is_tuned(self.config, guess)

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher has to be fine-tuned first."""
        return self._options.for_teacher or not self.is_tuned

    def files(self, length: int, most: int) -> dict[Path, str]:
        """Return the text of each job file."""
        task = self._task(length, most)
        output = self._options.output
        teacher = output.with_name(
            "teacher.yaml" if output.stem == "distill" else f"{output.stem}-teacher.yaml"
        )
        if self._options.for_teacher:
            return {output if output.name != "distill.yaml" else teacher: self._train_job(task)}
        first = {teacher: self._train_job(task)} if self.trains_teacher else {}
        return first | {output: self._distill_job(task)}

    def write_schemas(self) -> None:
        """Write the schemas that the files' first lines name."""
        folder = self._folder / _SCHEMA_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name, train in (("distill", False), ("train", True)):
            (folder / f"{name}.schema.json").write_text(_schema_text(train=train))

    def describe(self, files: list[Path], length: int, most: int) -> None:
        """Print what was guessed, and the commands that follow."""
        guess = self.guess
        print(f"{self._data}: {guess.num_rows:,} rows, columns {', '.join(guess.columns)}")
        texts = guess.text if guess.text_pair is None else f"{guess.text} and {guess.text_pair}"
        print(f"task type: {guess.kind} ({guess.why}), texts in {texts}")
        if guess.labels:
            print(f"classes: {_counted(guess)}")
        if guess.num_unlabelled:
            print(f"without label: {guess.num_unlabelled:,} rows, which the teacher labels")
        if guess.num_textless:
            print(
                f"WITHOUT TEXT: {guess.num_textless:,} rows; a run refuses them: delete them, or "
                "fill them in"
            )
        print(f"99 % of the texts have at most {most} tokens: max_length {length}")
        if self.unread:
            print(f"teacher: {self.unread}; lengths are counted by words")
        elif self.trains_teacher:
            print(f"teacher: {self.teacher} has to be trained for this task first")
        print("written: " + ", ".join(map(str, files)) + "\nnext:")
        for line in self._next_commands(files):
            print(f"  {line}")

    def _next_commands(self, files: list[Path]) -> list[str]:
        lines = [f"raybrew train-teacher {files[0]}"] if self.trains_teacher else []
        if not self._options.for_teacher:
            student = self._folder / "runs" / self.name / "student"
            lines += [
                f"raybrew distill {files[-1]}",
                f"raybrew predict {student} NEW_ROWS.csv -o OUT.csv",
            ]
        return lines

    def _task(self, length: int, most: int) -> str:
        guess, lines = self.guess, ["tasks:", f"  - name: {_yaml(self.name)}"]
        lines.append(f"    kind: {guess.kind}  # guessed: {guess.why}")
        lines.append(f"    train: {_yaml(self._data)}  # {guess.num_rows:,} rows")
        lines += [
            f"    # Set apart to evaluate on: {_EVAL_FRACTION:.0%} of the labelled rows, drawn by",
            "    # a hash of their texts. With a file of such rows, write `eval: FILE` instead.",
            f"    eval_fraction: {_EVAL_FRACTION}",
            f"    text: {_yaml(guess.text)}",
        ]
        if guess.text_pair is not None:
            lines.append(f"    text_pair: {_yaml(guess.text_pair)}")
        if guess.label is not None:
            if guess.labels:
                lines.append(f"    # classes: {_counted(guess)}")
            if guess.num_unlabelled:
                lines.append(
                    f"    # {guess.num_unlabelled:,} rows have no label: only the teacher labels "
                    "them"
                )
            lines.append(f"    label: {_yaml(guess.label)}")
        lines.append(f"    max_length: {length}  # tokens; 99 % of the texts have at most {most}")
        if guess.num_textless:
            lines.append(f"    # {guess.num_textless:,} rows have no text: delete or fill them")
        return "\n".join(lines) + "\n"

    def _train_job(self, task: str) -> str:
        labelled = self.guess.num_rows - self.guess.num_unlabelled
        return (
            f"# yaml-language-server: $schema={_SCHEMA_FOLDER}/train.schema.json\n"
            f"# Fine-tunes a teacher on the labels of {self._data}: raybrew train-teacher\n"
            f"# It leaves the teacher in runs/{self.name}-teacher/student.\n"
            f"{task}"
            "model: # a larger one, and more rows with labels, make a better teacher\n"
            f"  model: {_yaml(self._model)}  # pretrained; it gets a new head for the task\n"
            "training:\n"
            f"  num_epochs: {_epochs(labelled)}  # about {_STEPS} steps, but 3 to 20 epochs\n"
            f"  batch_size: {_BATCH}\n"
            "  learning_rate: 5.0e-5  # usual for fine-tuning; 2.0e-5 for large models\n"
            "run: # its folder, storage_path/name\n"
            f"  name: {_yaml(self.name + '-teacher')}\n"
            "  storage_path: runs\n"
        )

    def _distill_job(self, task: str) -> str:
        model = f"runs/{self.name}-teacher/student" if self.trains_teacher else self._model
        unlabelled = "    # transfer: [more_texts.csv]  # further rows that only teachers label\n"
        return (
            f"# yaml-language-server: $schema={_SCHEMA_FOLDER}/distill.schema.json\n"
            f"# Distils a small model for {self._data}: raybrew distill\n"
            f"# It leaves the student in runs/{self.name}/student.\n"
            f"{task}"
            f"{'' if self.guess.kind == 'causal-lm' else unlabelled}"
            "teachers: # one or more; `weight:` sets the share of each\n"
            "  - name: teacher\n"
            f"    task: {_yaml(self.name)}\n"
            f"    model: {_yaml(model)}\n"
            f"student:\n{self._student()}"
            "training:\n"
            f"  num_epochs: {_epochs(self.guess.num_rows)}  # the teacher reads each row once\n"
            f"  batch_size: {_BATCH}\n"
            "distillation:\n"
            "  temperature: 2  # softens the teacher's answers\n"
            "  scale_t2: true\n"
            "  hard_label_weight: 0.5  # of the labels; rows without one learn from the teacher\n"
            "run: # its folder, storage_path/name\n"
            f"  name: {_yaml(self.name)}\n"
            "  storage_path: runs\n"
        )

    def _student(self) -> str:
        given = self._options.student
        if given in _PRESETS:
            return f"  preset: {given}  # sizes of TextBrewer's paper; from random weights\n"
        if given is not None:
            return f"  model: {_yaml(given)}\n"
        layers = getattr(self.config, "num_hidden_layers", None) or 6
        taken = list(range(max(2, layers // 3)))
        return (
            f"  # It starts from the first {len(taken)} of the teacher's layers.\n"
            f"  layers_from: [teacher, {taken}]\n"
        )


def _epochs(rows: int) -> int:
    return min(max(3, math.ceil(_STEPS * _BATCH / rows)), 20)


def _from(folder: Path, given: str) -> str:
    """Return a path as it is named in a job file of this folder; what is no path as it is."""
    from raybrew.config.section import user_path

    path = user_path(given, "init")
    return given if path.is_absolute() or not path.exists() else os.path.relpath(path, folder)


def _read(model: str) -> tuple["PreTrainedConfig | None", str]:
    """Return a model's configuration, or why it can't be read here."""
    from raybrew.models.pretrained import read_config

    try:
        return read_config(model, "--teacher"), ""
    except RaybrewError as error:
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise  # a path, which has to be there
        return None, str(error).removeprefix("--teacher: ")


def _is_tuned(config: "PreTrainedConfig | None", guess: "FileGuess") -> bool:
    """Return whether a model has a head for the task, with the classes of the rows."""
    if config is None:
        return False
    heads = {
        "token-classification": "ForTokenClassification",
        "question-answering": "ForQuestionAnswering",
        "causal-lm": "LM",
    }
    head = heads.get(guess.kind, "ForSequenceClassification")
    if head not in (config.architectures or [""])[0]:
        return False
    names = set((config.id2label or {}).values())
    if guess.kind == "regression":
        return config.num_labels == 1
    return not guess.labels or {*guess.labels} <= names


def _counted(guess: "FileGuess") -> str:
    shown = [f"{_one_line(name)} ({count:,})" for name, count in list(guess.labels.items())[:8]]
    return ", ".join(shown) + (f", … {len(guess.labels)} in all" if len(guess.labels) > 8 else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _yaml(text: str) -> str:
    """Return a text as YAML reads it back."""
    plain = re.fullmatch(r"[A-Za-z_.][\w./-]*", text, re.ASCII)
    words = {"true", "false", "null", ".nan", ".inf"}
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)
