"""What a command imports before it finds a mistake: the seconds that a user waits for a message."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import raybrew as rb
from raybrew.config.job_file import absolute_plain, dump_yaml, load_job
from raybrew.runs.folder import RunFolder, finished_run
from tests.commands import raybrew

SLOW = ("torch", "transformers", "datasets", "ray", "wandb", "pandas", "scipy")


def slow_imports(code: str, folder: Path) -> list[str]:
    """Run code in a process of its own; return what it has imported of the packages above."""
    script = f"import sys\n{code}\nprint('slow:', *({SLOW!r} & sys.modules.keys()))"
    script = script.replace(repr(SLOW), f"set({SLOW!r})")
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    return shown.stdout.rpartition("slow:")[2].split()


def command(*arguments: str) -> str:
    return (
        f"from raybrew import cli\nsys.argv = {['raybrew', *arguments]!r}\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code in (0, 2), end.code"
    )


JOB = {
    "tasks": [{"name": "sum", "train": "train.parquet"}],
    "teachers": [{"name": "a", "task": "sum", "model": "teacher"}],
    "student": {"config": {}},
    "training": {"num_steps": 1},
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    (tmp_path / "train.parquet").write_text("rows")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    (tmp_path / "store").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "code",
    [
        "import raybrew.config, raybrew.config.job_file, raybrew.cli",
        "import raybrew as rb; dir(rb); rb.DistillJob, rb.__version__",
        command("--help"),
        command("--version"),
        command("distill", "--help"),
        command("distill", "none.yaml"),
        command("distill", "job.yaml", "--set", "training.sed=1"),
        command("distill", "job.yaml", "--set", "training.seed=x"),
        command("distill", "job.yaml", "--set", "tasks.sum.train=trian.parquet"),
        command("distill", "job.yaml", "--set", "teachers.a.model=./teacherr"),
        command("label", "job.yaml", "--set", "tasks.sum.train=trian.parquet"),
        command("tune", "job.yaml", "--set", "tasks.sum.train=trian.parquet"),
        command("train-teacher", "job.yaml"),
        command("store", "ls", "store"),
    ],
)
def test_neither_help_nor_a_mistake_waits_for_torch_and_ray(code, files):
    assert slow_imports(code, files) == []


def test_slow_imports_would_be_seen(tmp_path):
    assert slow_imports("import datasets", tmp_path) != []


def test_a_mistake_beside_a_section_of_rays_waits_for_ray_alone(files):
    found = slow_imports(command("distill", "job.yaml", "--set", "run.nam=x"), files)
    assert not {"torch", "transformers", "datasets"} & set(found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("tasks.sum.train=trian.parquet", "did you mean 'train.parquet'?"),
        ("tasks.sum.eval=trian.parquet", "tasks[sum].eval: expected a data set"),
        ("tasks.sum.transfer=[trian.parquet]", "tasks[sum].transfer[0]: expected a data set"),
        ("teachers.a.model=./teachr", "teachers[a].model: expected a folder with a config.json"),
        ("teachers.a.model=store", "teachers[a].model: expected a folder with a config.json"),
        ("student={model: ./teachr}", "student.model: expected a folder with a config.json"),
        ("student={layers_from: [./teachr, [0]]}", "student.layers_from: expected a folder"),
        ("student={layers_from: [teachr, [0]]}", "student.layers_from: expected a teacher"),
    ],
)
def test_files_that_are_not_there_are_named(wrong, message, files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    assert raybrew("distill", "job.yaml", "--set", wrong) == 2
    assert message in capfd.readouterr().err


def test_layers_may_come_from_a_folder_beside_the_job(files, monkeypatch):
    monkeypatch.chdir(files)
    values = JOB | {"student": {"layers_from": ["teacher", [0]]}}
    (files / "layers.yaml").write_text(yaml.safe_dump(values))
    found = load_job(rb.DistillJob, "layers.yaml").job.student.layers_from
    assert found == (str(files / "teacher"), (0,))
    # From Python, where a path is relative to the working directory.
    job = rb.DistillJob.model_validate(values)
    assert absolute_plain(job)["student"]["layers_from"] == [str(files / "teacher"), [0]]


def test_a_job_of_the_other_kind_is_named_with_its_command(files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    assert raybrew("train-teacher", "job.yaml") == 2
    assert (
        "a DistillJob (teachers, student), which `raybrew distill` runs" in capfd.readouterr().err
    )
    teacher = {name: JOB[name] for name in ("tasks", "training")} | {"model": {"model": "teacher"}}
    (files / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    assert raybrew("distill", "teacher.yaml") == 2
    assert "got a TrainJob (model), which `raybrew train-teacher` runs" in capfd.readouterr().err
    job = load_job(rb.TrainJob, "teacher.yaml").job
    with pytest.raises(rb.ConfigError, match=r"expected a DistillJob, got a TrainJob; rb\.train"):
        rb.distill(job)  # type: ignore[arg-type]


def finished(folder: Path, job: rb.DistillJob) -> RunFolder:
    run = RunFolder(str(folder / "runs"), "done")
    (run.path / "student").mkdir(parents=True)
    run.write("job.yaml", dump_yaml(absolute_plain(job)))
    result = {"folder": "/elsewhere", "student": "", "metrics": {"eval/score": 0.5}, "new": 1}
    rest = {"teachers": {}, "ensembles": {}, "labels": {}, "times": {"total": 1.0}}
    run.write("report.json", json.dumps(result | rest))
    run.write("report.txt", "The report\n")
    return run


def test_a_finished_run_shows_its_report_and_starts_nothing(files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    place = {"name": "done", "storage_path": str(files / "runs")}
    (files / "job.yaml").write_text(yaml.safe_dump(JOB | {"run": place}))
    job = load_job(rb.DistillJob, "job.yaml").job
    run = finished(files, job)
    resumed = command("distill", "job.yaml", "--resume")
    assert not {"torch", "transformers", "datasets"} & set(slow_imports(resumed, files))
    assert raybrew("distill", "job.yaml", "--resume") == 0
    shown = capfd.readouterr()
    assert shown.out == "The report\n"
    assert f"{run.path} holds a finished run" in shown.err
    # Another job doesn't get the results of this one.
    assert raybrew("distill", "job.yaml", "--resume", "--set", "training.seed=1") == 2
    assert "training.seed: the run has 0, the job 1" in capfd.readouterr().err
    (run.path / "report.txt").unlink()  # it was stopped as it wrote them
    assert finished_run(job, place) is None


def test_a_finished_run_returns_its_results_to_python(files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    job = load_job(rb.DistillJob, "job.yaml").job
    run = finished(files, job)
    from ray.train import RunConfig

    config = RunConfig(name="done", storage_path=str(files / "runs"))
    result = rb.distill(job, run_config=config, resume=True)
    assert (result.metrics, result.times) == ({"eval/score": 0.5}, {"total": 1.0})
    assert (result.folder, result.student) == (str(run.path), str(run.path / "student"))
