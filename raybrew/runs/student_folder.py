"""What a run adds to the folder of its student: the task, a model card, modes that others may read.

student/README.md       a card in the hub's form: metrics, teachers, data, how to load it
student/raybrew.json    task type, columns, longest input: what `raybrew predict` reads
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from raybrew.config import DistillJob, Task, TrainJob
from raybrew.data.sources import hub_in_reach
from raybrew.errors import ConfigError
from raybrew.evaluation.saved_models import save_task
from raybrew.models.pretrained import locate, read_config
from raybrew.models.students import task_folders
from raybrew.runs.report import RunResult

_PIPELINES = {
    "sequence-classification": "text-classification",
    "multi-label": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "causal-lm": "text-generation",
}
"""By task type, the hub's name of its pipeline."""
_CALLS = {
    "multi-label": 'model("A text.", top_k=None)  # the probability of each class',
    "regression": 'model("A text.", function_to_apply="none")',
    "question-answering": 'model(question="Who?", context="A passage.")',
}
_NO_PIPELINE = {"question-answering"}
"""Task types whose pipeline transformers 5 no longer has."""


def complete_student(folder: Path, job: DistillJob | TrainJob, result: RunResult) -> None:
    """Add to the folder of a saved student what its users need.

    Args:
        folder: as `save_student` writes it.
        job: that trained it.
        result: the run's.
    """
    places = task_folders(folder)
    for task in job.tasks:
        save_task(places.get(task.name, folder), task)
        if task.name in places:
            _card([task], job, result).save(places[task.name] / "README.md")
    _card(job.tasks, job, result, several=bool(places)).save(folder / "README.md")
    for file in folder.rglob("tokenizer_config.json"):
        _without_local_options(file)
    _open_modes(folder)


def _without_local_options(file: Path) -> None:
    """Take out of a tokenizer's settings how it was loaded here, which holds nowhere else."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if values.pop("local_files_only", None) is not None:
        file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_modes(folder: Path) -> None:
    """Give files the mode that new ones get: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _card(
    tasks: Any, job: DistillJob | TrainJob, result: RunResult, *, several: bool = False
) -> ModelCard:
    models = [teacher.model for teacher in _teachers(job) if teacher.model is not None]
    data = ModelCardData(
        license="other",
        license_name="to-be-chosen",
        library_name="transformers",
        tags=["raybrew", *(["knowledge-distillation"] if isinstance(job, DistillJob) else [])],
        pipeline_tag=None if several else _PIPELINES[tasks[0].kind],
        # Folders of this machine mean nothing elsewhere, and the hub refuses them.
        base_model=[model for model in models if _is_hub_id(model)] or None,
        datasets=[each.train for each in tasks if _is_hub_id(each.train)] or None,
        model_name=Path(result.folder).name,
        eval_results=[each for task in tasks for each in _results(task, result)] or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(tasks, job, result, several)}")


def _text(tasks: list[Task], job: DistillJob | TrainJob, result: RunResult, several: bool) -> str:
    name = Path(result.folder).name
    taught = isinstance(job, DistillJob)
    parts = [
        f"# {name}\n\n"
        + ("Distilled" if taught else "Trained on labels")
        + f" by [raybrew](https://pypi.org/project/raybrew/) for {_names(tasks)}.\n\n"
        "**Licence:** to be chosen by you: set `license:` above. Those of the teachers, of the "
        "model that it started from and of the data bind you.\n",
        f"## Load it\n\n{_loading(tasks, job, several)}",
    ]
    if rows := _scores(tasks, job, result):
        columns = list(dict.fromkeys(key for _, metrics in rows for key in metrics))
        cells = [[who, *(_cell(metrics.get(key)) for key in columns)] for who, metrics in rows]
        parts.append(f"## Scores\n\n{_table(['', *columns], cells)}")
    if taught:
        cells = [[t.name, t.task, str(t.model or f"column {t.logits}")] for t in _teachers(job)]
        parts.append(f"## Teachers\n\n{_table(['', 'task', 'model'], cells)}")
    cells = [[task.name, task.kind, _source(task.train), _evaluated(task)] for task in tasks]
    columns = ["task", "task type", "training data", "evaluated on"]
    parts.append(f"## Data\n\n{_table(columns, cells)}")
    parts.append(
        "## Limits\n\nIt was evaluated on the rows above alone. It reads at most "
        + ", ".join(f"{task.max_length} tokens ({task.name})" for task in tasks)
        + ".\n"
    )
    return "\n".join(parts)


def _loading(tasks: list[Task], job: DistillJob | TrainJob, several: bool) -> str:
    folder = f"FOLDER/{tasks[0].name}" if several else "FOLDER"
    task = tasks[0]
    lines = [f"raybrew predict {'FOLDER --task ' + task.name if several else folder} NEW.csv"]
    text = f"```sh\n{lines[0]} -o OUT.csv\n```\n"
    if task.kind in _NO_PIPELINE:
        return text
    student = job.student if isinstance(job, DistillJob) else job.model
    own = "import raybrew.models.bigru  # its class\n" if student.preset == "BiGRU" else ""
    call = _CALLS.get(task.kind, 'model("A text.")')
    return (
        f"```python\n{own}from transformers import pipeline\n\n"
        f'model = pipeline("{_PIPELINES[task.kind]}", "{folder}")\n{call}\n```\n\n{text}'
    )


def _results(task: Task, result: RunResult) -> list[EvalResult]:
    metrics = _metrics_of(task, result)
    return [
        EvalResult(
            task_type=_PIPELINES[task.kind],
            dataset_type="other",
            dataset_name=f"{task.name} ({_evaluated(task)})",
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in metrics.items()
        if name != "examples" and math.isfinite(value)
    ]


def _scores(
    tasks: list[Task], job: DistillJob | TrainJob, result: RunResult
) -> list[tuple[str, Mapping[str, float]]]:
    rows: list[tuple[str, Mapping[str, float]]] = []
    for task in tasks:
        ours = [t.name for t in _teachers(job) if t.task == task.name]
        rows += [(f"teacher {n}", result.teachers[n]) for n in ours if n in result.teachers]
        if len(ours) > 1 and task.name in result.ensembles:
            rows.append((f"teachers of {task.name}, mixed", result.ensembles[task.name]))
        if metrics := _metrics_of(task, result):
            rows.append((f"this model on {task.name}", metrics))
    return rows


def _metrics_of(task: Task, result: RunResult) -> dict[str, float]:
    prefix = f"eval/{task.name}/"
    return {k.removeprefix(prefix): v for k, v in result.metrics.items() if k.startswith(prefix)}


def _teachers(job: DistillJob | TrainJob) -> list[Any]:
    return list(job.teachers) if isinstance(job, DistillJob) else []


def _evaluated(task: Task) -> str:
    if task.eval_fraction is not None:
        return f"{task.eval_fraction:.0%} of the labelled rows"
    return "no rows" if task.eval is None else _source(task.eval)


def _source(source: Any) -> str:
    if not isinstance(source, str):
        return "a data set in memory"
    return Path(source).name if "/" in source and not _is_hub_id(source) else source


def _is_hub_id(source: Any) -> bool:
    path = isinstance(source, str) and not source.startswith((".", "/", "~"))
    return path and source.count("/") == 1 and not Path(source).exists() and "." not in source


def _names(tasks: list[Task]) -> str:
    return ", ".join(f"{task.name} ({task.kind})" for task in tasks)


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) and value > 1 else f"{value:.4f}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# The hub.


def push_to_hub(folder: str, repository: str, *, private: bool = False, api: Any = None) -> str:
    """Upload the folder of a student to a repository of the hub, which is made if there is none.

    The token is that of `hf auth login`, or of HF_TOKEN.

    Args:
        folder: of the student.
        repository: `owner/name`.
        private: whether a repository that is made is private.
        api: the hub's client; `HfApi()` if left out.

    Returns:
        Address of the repository.

    Raises:
        ConfigError: the folder holds no model, the hub is out of reach, or refuses.
    """
    read_config(locate(folder, "push", ("config.json",), "a model"), "push")
    if not Path(folder).is_dir():
        raise ConfigError(f"push: expected the folder of a student, got {folder!r}")
    if api is None and not hub_in_reach():
        raise ConfigError("push: expected the hub in reach, got none (offline, or HF_HUB_OFFLINE)")
    hub = HfApi() if api is None else api
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Student of raybrew"
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"push: expected {repository!r} to be written, got: {reason}; log in with "
            "`hf auth login`, or set HF_TOKEN to a token that may write"
        ) from error
    return str(address)
