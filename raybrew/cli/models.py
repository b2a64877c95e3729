"""Commands on models: `raybrew predict | evaluate | export | push | inspect`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raybrew.errors import ConfigError

model_commands = typer.Typer()

_SHOWN_CLASSES = 20
"""Of more classes no confusion matrix is printed."""

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. training.seed=1."),
]


@model_commands.command()
def evaluate(
    job: Annotated[
        Path,
        typer.Argument(help="A job's YAML file, or the folder of a run; with --data a model."),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to evaluate, folders or hub ids; if left out, the student of the run "
            "whose folder is given as JOB.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of the job, for models of one task among several.")
    ] = None,
    set_: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="File of labelled rows, for a model without its job.")
    ] = None,
    predictions: Annotated[
        str | None,
        typer.Option(metavar="OUT", help="File for the rows with what the (last) model predicts."),
    ] = None,
) -> None:
    """Evaluate models on the evaluation rows of a job's tasks, or on those of a file."""
    from raybrew.evaluation.saved_models import evaluate_rows
    from raybrew.runs.report import render_table

    loaded, models = _evaluated(job, models, task, set_, data)
    rows: dict[str, list[list[str]]] = {}
    names: dict[str, list[str]] = {}
    details = []
    for model in models:
        for name, found in evaluate_rows(loaded, model, task=task).items():
            metrics = found.metrics
            names.setdefault(name, list(metrics))
            rows.setdefault(name, []).append([model, *(_cell(metrics, n) for n in names[name])])
            details.append((name, model, found))
    for name, each in rows.items():
        print(render_table(name, ["", *names[name]], each))
    for name, model, found in details:
        _print_breakdown(f"{model} on {name}", found.breakdown)
    if predictions is not None:
        _write_evaluated(loaded, details, predictions)


def _evaluated(
    job: Path, models: list[str] | None, task: str | None, set_: list[str] | None, data: str | None
) -> tuple[Any, list[str]]:
    """Return the job whose tasks are evaluated, and the models."""
    from raybrew.config.job_file import load_job
    from raybrew.config.section import user_path

    if data is not None:
        from raybrew.evaluation.prediction_files import folder_of, with_columns
        from raybrew.evaluation.saved_models import job_for_file, saved_task

        if models or set_ or task:
            raise ConfigError("evaluate: expected --data with the folder of one task's model alone")
        folder = folder_of(str(job), None)
        return job_for_file(folder, with_columns(saved_task(folder), folder, None), data), [folder]
    path = user_path(job, "job")
    file = path / "job.yaml" if path.is_dir() else path
    if not models:
        if not path.is_dir() or not user_path(path / "student", "student").is_dir():
            raise ConfigError(
                f"evaluate: expected a model to evaluate, or the folder of a run with a student, "
                f"got {str(path)!r} alone"
            )
        models = [str(path / "student")]
    return load_job(_job_type(file), file, set_ or []).job, models


def _print_breakdown(title: str, found: Any) -> None:
    """Print a metric by class, bin or position, and which classes are taken for which."""
    from raybrew.runs.report import render_table

    if found is None:
        return
    counted = zip(found.groups, found.counts, found.scores, strict=True)
    rows = [[name, f"{count}", f"{score:.4f}"] for name, count, score in counted]
    print(render_table(f"{title}, by {found.by}", ["", "count", found.metric], rows))
    if found.confusion is not None and len(found.groups) <= _SHOWN_CLASSES:
        cells = [
            [name, *map(str, row)] for name, row in zip(found.groups, found.confusion, strict=True)
        ]
        print(render_table("rows: true class, columns: predicted", ["", *found.groups], cells))


def _write_evaluated(loaded: Any, details: list[Any], output: str) -> None:
    from raybrew.evaluation.prediction_files import BLOCK, write_predictions
    from raybrew.tasks.task_data import load_splits

    if len({name for name, *_ in details}) > 1:
        raise ConfigError("--predictions: expected --task to name one task, got several")
    name, _, found = details[-1]
    task = next(each for each in loaded.tasks if each.name == name)
    rows = load_splits(task, f"tasks[{name}]")[2]
    assert rows is not None, "evaluated rows"
    each = found.predictions
    blocks = (each[start : start + BLOCK] for start in range(0, len(each), BLOCK))
    write_predictions(rows, blocks, output, Path(output).suffix.lower())
    print(f"{len(each):,} rows with predictions: {output}")


@model_commands.command()
def predict(
    model: Annotated[str, typer.Argument(help="Folder of a model, or a hub id.")],
    file: Annotated[str, typer.Argument(help="CSV, TSV, JSONL or parquet; - for standard input.")],
    output: Annotated[
        str, typer.Option("-o", "--output", help="File of the same kinds; - for standard output.")
    ] = "-",
    task: Annotated[
        str | None, typer.Option(help="Which one, of a student of several tasks.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of the text, or both of a pair: first,second.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a forward.")] = 64,
) -> None:
    """Predict the rows of a file, and write them with the predictions."""
    from raybrew.evaluation.prediction_files import predict_file

    count = predict_file(model, file, output, task=task, text=text, batch_size=batch_size)
    print(f"{count:,} rows predicted", file=sys.stderr)


@model_commands.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder of a student, or a hub id.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, the one format there is.")] = True,
    int8: Annotated[bool, typer.Option("--int8", help="Write weights in int8 as well.")] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder; MODEL/onnx if left out.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="File of texts to compare with PyTorch on.")
    ] = None,
) -> None:
    """Export a student to ONNX; compare it with PyTorch, and time both."""
    from raybrew.config.section import user_path
    from raybrew.evaluation.onnx_export import export_onnx
    from raybrew.models.students import task_folders

    folders = task_folders(user_path(model, "model")) or {"": model}
    for name, folder in folders.items():
        place = output if output is None or not name else str(Path(output, name))
        _print_export(export_onnx(str(folder), place, int8=int8, data=data))


def _print_export(found: Any) -> None:
    from raybrew.runs.report import render_table

    columns = {
        "megabytes": "MB",
        "max_difference": "max |Δ logit|",
        "mean_difference": "mean",
        "agreement": "same answers",
        "ms_batch_1": "ms, batch 1",
        "ms_batch_32": "ms, batch 32",
    }
    rows = [
        [name, *(f"{row[key]:.3g}" if key in row else "–" for key in columns)]
        for name, row in found.rows.items()
    ]
    title = f"{found.folder}, on {found.texts}; timed on one thread, {found.length} tokens"
    print(render_table(title, ["", *columns.values()], rows))


@model_commands.command()
def push(
    student: Annotated[str, typer.Argument(help="Folder of a student.")],
    repository: Annotated[str, typer.Argument(help="Of the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private, if new.")] = False,
) -> None:
    """Upload a student to the model hub, with the token of `hf auth login` or HF_TOKEN."""
    from raybrew.runs.student_folder import push_to_hub

    print(push_to_hub(student, repository, private=private))


@model_commands.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder of a model, or a hub id.")],
    max_level: Annotated[int, typer.Option(min=0, help="Levels of the parameter tree.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a timed example.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a timed batch.")] = 32,
) -> None:
    """Show what a model is made of, and how fast it is on this machine."""
    from raybrew.models.parameters import inspect_model

    for found in inspect_model(model, max_level=max_level, length=length, batch_size=batch_size):
        print(found)


def _cell(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    return f"{metrics[name]:.0f}" if name == "examples" else f"{metrics[name]:.4f}"


def _job_type(file: Path) -> Any:
    """Return the type of job that a file holds; `load_job` reports what is wrong with it."""
    from raybrew.config import DistillJob, TrainJob
    from raybrew.config.job_file import parse_yaml

    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return DistillJob
    values = parse_yaml(text, str(file))
    trains = isinstance(values, dict) and "model" in values and "teachers" not in values
    return TrainJob if trains else DistillJob
