from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raybrew.config import DistillJob, Task, TrainJob
from raybrew.config.job import set_path
from raybrew.config.job_file import absolute_plain, dump_yaml, load_job, validate
from raybrew.config.mistakes import explain
from raybrew.errors import ConfigError
from raybrew.runs.folder import check_resumable

JOB = """
tasks:
  - {name: mr, train: train.parquet, label_names: [no, yes]}
teachers:
  - {name: a, task: mr, model: runs/a}
  - {name: b.2, task: mr, model: org/b, weight: 0.5}
student: {config: {num_hidden_layers: 2}, tokenizer_from: a}
training: {num_steps: 3, learning_rate: 1e-4, optimizer_options: {eps: 1e-8}}
scaling: {num_workers: 2}
run: {name: 2024-01-02}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def refusal(path: Path, text: str, *overrides: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_job(DistillJob, path, overrides)
    return str(caught.value)


# reading


def test_a_file_becomes_a_job_and_rays_arguments(file):
    loaded = load_job(DistillJob, file)
    assert loaded.job.tasks[0].label_names == ("no", "yes")
    assert loaded.job.training.optimizer_options == {"eps": 1e-8}
    assert (loaded.scaling, loaded.run) == ({"num_workers": 2}, {"name": "2024-01-02"})


def test_what_is_dumped_is_loaded_again(file, tmp_path):
    first = load_job(DistillJob, file)
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(first.plain))
    second = load_job(DistillJob, again)
    assert (second.job, second.scaling, second.run) == (first.job, first.scaling, first.run)
    assert yaml.safe_load(dump_yaml(first.job)) == first.job.to_plain()


def test_a_job_without_teachers(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "tasks: [{name: t, train: x}]\nmodel: {model: m}\ntraining: {num_epochs: 1}"
    )
    (tmp_path / "m").mkdir()
    assert load_job(TrainJob, tmp_path / "t.yaml").job.model.model == str(tmp_path / "m")


def test_a_split_of_a_folder_beside_the_file(file, tmp_path, monkeypatch):
    for folder in ("saved", "at@1"):
        (tmp_path / folder).mkdir()
    (tmp_path / "at@1" / "train.csv").touch()
    file.write_text(
        "tasks: [{name: t, train: saved@dev, eval: at@1/train.csv, transfer: [saved@a, no@a]}]\n"
        "teachers: [{name: a, task: t, model: m}]\nstudent: {model: m}\ntraining: {num_epochs: 1}"
    )
    monkeypatch.chdir("/")
    task = load_job(DistillJob, file).job.tasks[0]
    assert (task.train, task.eval) == (f"{tmp_path}/saved@dev", f"{tmp_path}/at@1/train.csv")
    assert task.transfer == (f"{tmp_path}/saved@a", "no@a")


def test_paths_of_the_file_that_exist_beside_it_are_taken_from_there(file, tmp_path, monkeypatch):
    for folder in ("runs/a", "a", "org", "store"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train.parquet").touch()
    file.write_text(
        JOB.replace("name: 2024-01-02", "storage_path: my runs") + "labels: {store: store}\n"
    )
    monkeypatch.chdir("/")
    loaded = load_job(DistillJob, file, ["tasks.mr.eval=train.parquet"])
    job = loaded.job
    assert loaded.run == {"storage_path": str(tmp_path / "my runs")}
    assert job.tasks[0].train == str(tmp_path / "train.parquet")
    assert job.tasks[0].eval == "train.parquet"  # of the command line, not of the file
    assert [teacher.model for teacher in job.teachers] == [str(tmp_path / "runs/a"), "org/b"]
    assert job.student.tokenizer_from == "a"  # a teacher, though a folder of that name exists
    assert job.labels.store == str(tmp_path / "store")


@pytest.mark.parametrize("path", ["/abs", "~/runs", "file:///runs", "s3://bucket/runs"])
def test_places_that_are_not_relative_stay(path, file):
    file.write_text(
        JOB.replace("name: 2024-01-02", f"storage_path: '{path}'")
        + f"labels: {{store: '{path}'}}\n"
    )
    loaded = load_job(DistillJob, file)
    assert (loaded.job.labels.store, loaded.run["storage_path"]) == (path, path)
    assert load_job(DistillJob, file, ["run.storage_path=x"]).run["storage_path"] == "x"


def test_the_job_of_a_run_can_be_read_in_any_folder(file, tmp_path, monkeypatch):
    """What a script gave relative to its working directory is saved as absolute paths."""
    for name in ("data/saved", "teacher", "student"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/train.csv").touch()
    job = DistillJob(
        tasks=[{"name": "t", "train": "data/train.csv", "eval": "data/saved@dev"}],  # type: ignore[list-item]
        teachers=[{"name": "a", "task": "t", "model": "teacher"}],  # type: ignore[list-item]
        student={"model": "student", "tokenizer_from": "a"},  # type: ignore[arg-type]
        training={"num_steps": 1},  # type: ignore[arg-type]
        labels={"store": "labels"},  # type: ignore[arg-type]
    )
    monkeypatch.chdir(tmp_path)
    saved = yaml.safe_load(dump_yaml(absolute_plain(job)))
    monkeypatch.chdir("/")
    file.write_text(dump_yaml(saved))
    read = load_job(DistillJob, file).job
    assert read.tasks[0].train == f"{tmp_path}/data/train.csv"
    assert read.tasks[0].eval == f"{tmp_path}/data/saved@dev"
    assert read.teachers[0].model == f"{tmp_path}/teacher"
    assert (read.student.model, read.student.tokenizer_from) == (f"{tmp_path}/student", "a")
    assert read.labels.store == f"{tmp_path}/labels"
    monkeypatch.chdir(tmp_path)
    check_resumable(saved, job)
    check_resumable(job.to_plain(), job)  # as runs were saved before
    assert saved["labels"]["store"] == f"{tmp_path}/labels"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping (tasks, training, …), got an empty file"),
        ("- a\n- b\n", "expected a mapping (tasks, training, …), got list"),
        ("a: [1\nb: 2\n", "job.yaml: line 2, column 2: expected YAML, got:"),
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2, column 11: expected YAML, got: the key 'c' stands in"),
        ("a: 1\na: 2\n", "the key 'a' stands in line 1 already"),
        ("a: !!python/object/apply:os.system ['false']\n", "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "expected YAML, got: but found another document"),
        ('a: 1\nx: !!int ""\n', "line 2, column 4: expected YAML, got: '', which is no !!int"),
        ('x: !!float ""\n', "got: '', which is no !!float"),
        ("x: !!bool foo\n", "got: 'foo', which is no !!bool"),
        ("x: !!int foo\n", "got: 'foo', which is no !!int"),
        ("x: !!timestamp foo\n", "got: 'foo', which is no !!timestamp"),
        ("x: !!map [1, 2]\n", "line 1, column 4: expected YAML, got: expected a mapping node"),
        ("x: !!set [1]\n", "expected a mapping node, but found sequence"),
        ("x: !!map foo\n", "expected a mapping node, but found scalar"),
        ("a: \x07\n", "expected YAML, got: unacceptable character"),
    ],
)
def test_what_is_no_yaml_of_a_job_is_reported_in_one_line(tmp_path, text, message):
    refused = refusal(tmp_path / "job.yaml", text)
    assert message in refused
    assert "\n" not in refused


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="got no such file"):
        load_job(DistillJob, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="got a folder"):
        load_job(DistillJob, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="in UTF-8"):
        load_job(DistillJob, tmp_path / "latin.yaml")


def test_python_tags_run_nothing(tmp_path):
    target = tmp_path / "made"
    refusal(tmp_path / "job.yaml", f"a: !!python/object/apply:os.mkdir ['{target}']\n")
    assert not target.exists()


def test_merge_keys_still_work(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "tasks: [{name: t, train: x}]\nmodel: {model: m}\n"
        "training: &t {num_epochs: 1}\ntracking: {<<: {wandb: true}, project: p}"
    )
    assert load_job(TrainJob, tmp_path / "t.yaml").job.tracking.wandb


# mistakes


def test_every_mistake_is_reported_at_once(tmp_path):
    text = """
tasks: [{name: mr, txt: sentence, label: 3, max_length: 2}]
teachers: [{name: "a b", task: mr, model: m, dtype: float23, weight: -1, replicas: two}]
student: {layers_from: [a, [0, x]]}
distillation: {temprature: 4}
training: {num_epochs: 1, batch_size: 0, optimizer_options: 3}
tracking: {wandb: perhaps}
scalling: {num_workers: 2}
run: 3
"""
    lines = refusal(tmp_path / "job.yaml", text).splitlines()
    assert lines[0] == f"{tmp_path / 'job.yaml'}: expected a DistillJob, got"
    lines_by_path = {line.split(": ")[0]: line for line in lines[1:]}
    task_keys = ", ".join(sorted(Task.model_fields))
    expected = {
        "tasks[0].train": "expected a value (Rows to learn from), got none",
        "tasks[0].txt": f"unknown key, expected one of {task_keys}; did you mean 'text'?",
        "tasks[0].label": "expected a text, got 3",
        "tasks[0].max_length": "expected a number greater than or equal to 4, got 2",
        "teachers[0].name": "expected a name that matches "
        "'^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$', got 'a b'",
        "teachers[0].dtype": "expected one of float32, float16, bfloat16; did you mean 'float32'?"
        ", got 'float23'",
        "teachers[0].weight": "expected a number greater than or equal to 0, got -1",
        "teachers[0].replicas": "expected a valid integer, got 'two'",
        "student.layers_from[1][1]": "expected a valid integer, got 'x'",
        "training.batch_size": "expected a number greater than or equal to 1, got 0",
        "training.optimizer_options": "expected a mapping, got 3",
        "tracking.wandb": "expected true or false, got 'perhaps'",
        "run": "expected a mapping, got 3",
    }
    for path, text in expected.items():
        assert lines_by_path.pop(path) == f"{path}: {text}"
    assert "did you mean 'temperature'" in lines_by_path.pop("distillation.temprature")
    assert "did you mean 'scaling'?" in lines_by_path.pop("scalling")
    assert not lines_by_path


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "training.num_epochs=2",
            "training: expected one of `num_epochs` and `num_steps`, got both",
        ),
        ("teachers.a.task=rm", "teacher 'a': expected a task of this job (mr), got 'rm'"),
        ("teachers=[]", "teachers: expected at least 1 element, got []"),
        ("student=3", "student: expected a mapping, got 3"),
        ("tasks=x", "tasks: expected a list, got 'x'"),
        ("tasks.mr.text=null", "tasks[0].text: expected a text, got null"),
        (
            "teachers.a.model=null",
            "teachers[0]: expected one of `model` and `logits`, got neither",
        ),
        (
            "distillation.kd_loss_options.alpha=x",
            "distillation.kd_loss_options.alpha: expected a number, or true or false, got 'x'",
        ),
        ("student.config={5: 1}", "student.config: expected texts as keys, got 5"),
        (
            "tasks=[{name: mr, train: x}, {name: mr, train: y}]",
            "tasks: expected different names, got mr twice",
        ),
    ],
)
def test_mistakes_between_fields_and_of_whole_sections(file, override, line):
    with pytest.raises(ConfigError) as caught:
        load_job(DistillJob, file, [override])
    assert str(caught.value).splitlines()[1:] == [line]


def test_validate_and_explain_agree_and_name_no_address():
    with pytest.raises(ConfigError) as refused:
        validate(DistillJob, {"tasks": []})
    with pytest.raises(ValidationError) as raw:
        DistillJob.model_validate({"tasks": []})
    assert str(refused.value) == explain(raw.value, DistillJob)
    assert "http" not in str(refused.value)
    assert refused.value.__cause__ is None


# --set


def test_overrides_reach_every_kind_of_place(file):
    overrides = [
        "distillation.temperature=2",  # a section that the file lacks
        "teachers.0.weight=0.25",
        "teachers.b.2.weight=3",  # a name with a dot
        "tasks.mr.text=sentence",
        "student.config.hidden_size=8",  # a mapping of any keys
        "teachers.a.resources.GPU=0.5",
        "training.optimizer_options={betas: [0.9, 0.98]}",
        "scaling.resources_per_worker.CPU=2",
        "run.name=x=y",
        "labels.when=ahead",
    ]
    loaded = load_job(DistillJob, file, overrides)
    job = loaded.job
    assert job.distillation.temperature == 2
    assert [teacher.weight for teacher in job.teachers] == [0.25, 3]
    assert job.tasks[0].text == "sentence"
    assert job.student.config == {"num_hidden_layers": 2, "hidden_size": 8}
    assert job.teachers[0].resources == {"GPU": 0.5}
    assert job.training.optimizer_options == {"betas": [0.9, 0.98]}
    assert loaded.scaling == {"num_workers": 2, "resources_per_worker": {"CPU": 2}}
    assert (loaded.run["name"], job.labels.when) == ("x=y", "ahead")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.temprature=2", "did you mean 'temperature'"),
        ("distilation.temperature=2", "did you mean 'distillation'?"),
        ("teachers.c.weight=2", "expected an element of teachers, which has 2 (a, b.2), got 'c'"),
        ("teachers.2.weight=2", "which has 2 (a, b.2), got '2'"),
        ("tasks.mr.txt=2", "expected a key of tasks.mr ("),
        ("tasks.mr.text.x=2", "expected a mapping at tasks.mr.text, got str"),
        ("scalling.num_workers=2", "did you mean 'scaling'?"),
        ("training.=2", "expected a key of training"),
        ("distillation.temperature", "expected path=value, got 'distillation.temperature'"),
        ("=2", "expected path=value"),
        ("tasks.mr.text=[", "--set tasks.mr.text: line 1"),
    ],
)
def test_overrides_of_nothing_are_refused(file, override, message):
    if "tasks.mr.text.x" in override:
        file.write_text(JOB.replace("name: mr,", "name: mr, text: sentence,"))
    with pytest.raises(ConfigError) as caught:
        load_job(DistillJob, file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_set_path_changes_values_in_place():
    values: dict[str, Any] = {
        "teachers": [{"name": "a", "weight": 1}],
        "student": {"config": {"y": 1}},
    }
    set_path(values, "teachers.0.weight", 2, DistillJob)
    set_path(values, "teachers.a.weight", values["teachers"][0]["weight"] + 1, DistillJob)
    set_path(values, "student.config.y", None, DistillJob)
    assert values == {
        "teachers": [{"name": "a", "weight": 3}],
        "student": {"config": {"y": None}},
    }
    with pytest.raises(ConfigError, match="did you mean 'weight'"):
        set_path(values, "teachers.0.wieght", 2, DistillJob)
