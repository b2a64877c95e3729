"""What a wrong input gets: one message, exit code 2, no model loaded; and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from raybrew.config.job_file import load_job
from raybrew.errors import Terminated
from tests.commands import raybrew
from tests.made import STUDENT_CONFIG, make_data, make_model
from tests.traces import temporaries
from tests.training.in_process import Recorder, build


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_model(folder / "a", 0)
    make_model(folder / "two-labels", 1, labels=("no", "yes"))
    make_model(folder / "others", 1, labels=("up", "down", "flat"))
    make_model(folder / "words", 2, words=["other", "words"])
    make_data(40).to_parquet(str(folder / "train.parquet"))
    make_data(20, seed=1).to_parquet(str(folder / "eval.parquet"))
    Dataset.from_dict({"text": ["w1"], "label": [3]}).to_parquet(str(folder / "odd.parquet"))
    Dataset.from_dict({"text": [], "label": []}).to_parquet(str(folder / "none.parquet"))
    return folder


def job(folder: Path, **changes) -> dict:
    values = {
        "tasks": [
            {"name": "sum", "train": "train.parquet", "eval": "eval.parquet", "max_length": 32}
        ],
        "teachers": [{"name": "a", "task": "sum", "model": "a", "resources": {"CPU": 0.25}}],
        "student": {"config": STUDENT_CONFIG},
        "training": {"num_steps": 3},
        "labels": {"store": "store"},
        "run": {"name": "run", "storage_path": str(folder / "runs")},
    }
    return values | changes


def write(folder: Path, values: dict) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def message_of(shown: str) -> str:
    """Return what follows the lines that say how far a command is: its one message."""
    lines = shown.splitlines()
    while lines and re.match(r"\d{4}-\d\d-\d\d [\d:]{8} ", lines[0]):
        del lines[0]
    assert lines, shown
    assert lines[0].startswith("raybrew: "), shown
    return "\n".join(lines)


WRONG = {
    "unknown key": ({"--": "distillation.temprature=3"}, r"temprature.*temperature"),
    "value out of range": ({"--": "distillation.temperature=-1"}, r"distillation\.temperature.*-1"),
    "drop without another teacher": (
        {"--": "teachers.a.on_loss=drop"},
        r"teacher 'a': on_loss: drop needs another teacher of task 'sum'",
    ),
    "a worker's teacher with a pool's resources": (
        {"--": "teachers.a.placement=worker"},
        r"teachers\[0\].*placement: worker.*without resources",
    ),
    "unknown loss": ({"--": "distillation.kd_loss=kll"}, r"distillation\.kd_loss: .*kll.*kl"),
    "unknown loss of a task": (
        {"--": "tasks.sum.distillation.kd_loss=kll"},
        r"tasks\[sum\]\.distillation\.kd_loss: Unknown KD loss 'kll'",
    ),
    "unknown option": (
        {"--": "distillation.kd_loss_options={alpa: 1}"},
        r"distillation\.kd_loss: Unknown option of KD loss",
    ),
    "unknown temperature scheduler": (
        {"--": "distillation.temperature_scheduler=flws"},
        r"distillation\.temperature_scheduler: Unknown",
    ),
    "unknown mixture": ({"--": "distillation.mixture=mean"}, r"distillation\.mixture: Unknown"),
    "unknown weight schedule": (
        {"--": "distillation.hard_label_weight_scheduler=line"},
        r"distillation\.hard_label_weight_scheduler: Unknown weight schedule 'line'",
    ),
    "unknown match preset": (
        {"--": "distillation.matches=[L3_hidden_msee]"},
        r"distillation\.matches\[0\]: Unknown match preset",
    ),
    "adaptor that leads nowhere": (
        {"--": "teachers.a.adaptor=nope:x"},
        r"teachers\[a\]\.adaptor: adaptor 'nope:x' can't be imported",
    ),
    "unknown optimizer": (
        {"--": "training.optimizer=AdamWW"},
        r"training\.optimizer.*AdamWW.*AdamW",
    ),
    "missing data": ({"--": "tasks.sum.train=nowhere.parquet"}, r"tasks\[sum\]\.train.*nowhere"),
    "missing column": ({"--": "tasks.sum.text=txt"}, r"tasks\[sum\]\.train.*'txt'.*text, label"),
    "label outside": ({"--": "tasks.sum.eval=odd.parquet"}, r"tasks\[sum\]\.eval: row 0.*got 3"),
    "no rows": ({"--": "tasks.sum.train=none.parquet"}, r"tasks\[sum\]\.train.*empty data set"),
    "missing teacher": ({"--": "teachers.a.model=./nowhere"}, r"teachers\[a\]\.model.*nowhere"),
    "teacher with other labels": (
        {"--": "teachers.a.model=two-labels"},
        r"teachers\[a\]\.model: expected 3 labels.*down, level, up.*got a model with 2",
    ),
    "teacher of other classes": (
        {"--": "teachers.a.model=others"},
        r"teachers\[a\].*labels \(down, level, up\) in any order, got up, down, flat",
    ),
    "another vocabulary": (
        {"--": "student.tokenizer_from=words"},
        r"teachers\[a\]\.inputs.*vocabulary \(45 entries\).*\(7 entries\).*inputs: own",
    ),
    "unknown student key": (
        {"student": {"config": {"num_hiden_layers": 1}}},
        r"student\.config\.num_hiden_layers.*num_hidden_layers",
    ),
    "too long": (
        {"--": "tasks.sum.max_length=100"},
        r"tasks\[sum\]\.max_length.*at most 64.*got 100",
    ),
    "unknown task": ({"--": "teachers.a.task=summ"}, r"expected a task of this job.*sum.*summ"),
    "unknown Ray argument": ({"scaling": {"num_worker": 2}}, r"scaling\.num_worker.*num_workers"),
    "a number as a Ray argument": ({"scaling": {5: 2}}, r"scaling\.5: expected an argument"),
    "null as a Ray argument": ({"run": {None: 2}}, r"run\.None: expected an argument"),
    "resources that are none": ({"--": "scaling.resources_per_worker=5"}, r"mapping.*got 5"),
    "resources that are no numbers": (
        {"--": "scaling.resources_per_worker.CPU=x"},
        r"scaling\.resources_per_worker\.CPU: expected a valid number, got 'x'",
    ),
    "null resources": (
        {"--": "scaling.resources_per_worker.CPU=null"},
        r"CPU: expected a valid number, got null",
    ),
    "negative resources": (
        {"--": "scaling.resources_per_worker.CPU=-1"},
        r"greater than or equal to 0, got -1",
    ),
    "a GPU, perhaps": ({"--": "scaling.use_gpu=maybe"}, r"scaling\.use_gpu.*true.*'maybe'"),
    "unknown strategy": (
        {"--": "scaling.placement_strategy=FOO"},
        r"scaling\.placement_strategy: expected one of PACK, .*got 'FOO'",
    ),
    "a list as a name": ({"--": "run.name=[1]"}, r"run\.name: expected a text, got \[1\]"),
    "no name": ({"--": "run.name=''"}, r"run\.name: expected a name.*got ''"),
    "a name that leads away": ({"--": "run.name=../x"}, r"run\.name.*without slashes.*'\.\./x'"),
    "a number as a folder": ({"--": "run.storage_path=5"}, r"run\.storage_path.*text.*got 5"),
    "failures that are no number": (
        {"--": "run.failure_config.max_failures=x"},
        r"run\.failure_config\.max_failures: expected a valid integer, got 'x'",
    ),
    "no runtime environment": ({"--": "run.worker_runtime_env=5"}, r"worker_runtime_env.*mapping"),
    "callbacks": ({"--": "run.callbacks=5"}, r"run\.callbacks: expected a list, got 5$"),
    "what Ray once took": (
        {"--": "run.verbose=1"},
        r"run\.verbose: expected an argument of",
    ),
    "a store that is a file": ({"labels": {"store": "eval.parquet"}}, r"labels\.store.*is none"),
    "a store below a file": ({"labels": {"store": "eval.parquet/x"}}, r"labels\.store: expected a"),
    "a store nowhere": ({"labels": {"store": "/proc/x"}}, r"labels\.store.*can be made.*/proc/x"),
    "a store of no scheme": ({"labels": {"store": "foo://bar"}}, r"labels\.store.*foo://bar"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_gets_one_message_and_exit_code_2(case, files, monkeypatch, capfd):
    changes, message = WRONG[case]
    values = job(files, **{k: v for k, v in changes.items() if k != "--"})
    overrides = ["--set", changes["--"]] if "--" in changes else []

    def never(*_, **__):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", never)
    monkeypatch.chdir(files)
    assert raybrew("distill", write(files, values), *overrides) == 2
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err
    found = " ".join(message_of(shown.err).split())
    assert re.search(message, found), found
    assert not (files / "runs").exists()


@pytest.mark.parametrize(
    ("command", "error", "code", "message"),
    [
        ("distill", KeyboardInterrupt(), 130, "interrupted; --resume continues the run"),
        ("distill", Terminated(), 143, "terminated; --resume continues the run"),
        ("label", KeyboardInterrupt(), 130, "interrupted; what was computed is in the store"),
        ("distill", rb.TeacherError("lost"), 2, "lost"),
    ],
)
def test_what_ends_a_command_is_one_message_and_an_exit_code(
    command, error, code, message, files, tmp_path, monkeypatch, capfd
):
    def end(*_, **__):
        raise error

    monkeypatch.setattr(f"raybrew.api.{command}", end)
    monkeypatch.chdir(files)
    if isinstance(error, KeyboardInterrupt) and command == "distill":
        assert raybrew(command, write(files, job(files))) == code
        assert "nothing had begun yet" in capfd.readouterr().err
    values = job(tmp_path)
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "job.yaml").touch()
    assert raybrew(command, write(files, values)) == code
    assert message_of(capfd.readouterr().err).startswith(f"raybrew: {message}")


def test_every_mistake_of_a_file_is_reported_at_once(files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    wrong = {
        "training": {"num_steps": 0},
        "scaling": {"num_workers": 0, "use_gp": True},
        "run": {"name": "a/b", "failure_config": {"max_failures": "x"}},
    }
    assert raybrew("distill", write(files, job(files, **wrong))) == 2
    lines = message_of(capfd.readouterr().err).splitlines()
    assert lines[0] == f"raybrew: {files / 'job.yaml'}: expected a DistillJob, got"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "training.num_steps",
        "scaling.num_workers",
        "scaling.use_gp",
        "run.failure_config.max_failures",
        "run.name",
    ]


def test_a_run_to_resume_has_a_name(files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    values = job(files, run={"storage_path": str(files / "runs")})
    for changes in ({}, {"run": {}}):
        assert raybrew("distill", write(files, values | changes), "--resume") == 2
        assert "expected run.name to say which run" in capfd.readouterr().err


def test_labels_have_a_run_with_a_name_of_its_own(files, monkeypatch, capfd):
    names = []

    def fill(_, run_config):
        names.append(run_config.name)
        raise rb.ConfigError("enough")

    monkeypatch.setattr("raybrew.api.label", fill)
    for name in ("run", None, "x" * 200):
        assert raybrew("label", write(files, job(files, run={"name": name}))) == 2
    assert names[0].startswith("run-label-")
    assert names[1].startswith("label-")
    assert names[2].startswith("x" * 200 + "-label-")
    assert raybrew("label", write(files, job(files, run={"name": [1]}))) == 2
    assert "run.name: expected a text" in capfd.readouterr().err


SPACES = {
    "unknown path": (
        {"distillation.temprature": {"uniform": [1, 4]}},
        r"space\.distillation\.temprature.*did you mean 'temperature'",
    ),
    "out of range": (
        {"distillation.temperature": {"uniform": [0, 4]}},
        r"space\.distillation\.temperature: .*can give 0\.0.*greater than 0",
    ),
    "unknown function": (
        {"training.seed": {"choise": [0, 1]}},
        r"space\.training\.seed.*did you mean 'choice'",
    ),
    "names that don't go together": (
        {
            "distillation.mixture": {"choice": ["mean_logits", "mean_probs"]},
            "distillation.kd_loss": {"choice": ["mse", "ce"]},
        },
        r"space: with .*kd_loss = 'mse', .*mixture = 'mean_probs'",
    ),
    "no space": ({}, r"space: expected a mapping of paths"),
}


@pytest.mark.parametrize("case", SPACES)
def test_a_wrong_space_gets_one_message_before_anything_starts(case, files, monkeypatch, capfd):
    space, message = SPACES[case]

    def never(*_, **__):
        raise AssertionError("Ray was started before the mistake was found")

    monkeypatch.setattr("ray.init", never)
    monkeypatch.chdir(files)
    values = job(files, space=space, run={"name": "sweep", "storage_path": str(files / "runs")})
    assert raybrew("tune", write(files, values)) == 2
    shown = " ".join(message_of(capfd.readouterr().err).split())
    assert "Traceback" not in shown
    assert re.search(message, shown), shown


def test_a_missing_file_and_a_bad_file(tmp_path, capfd):
    assert raybrew("distill", str(tmp_path / "none.yaml")) == 2
    (tmp_path / "bad.yaml").write_text("tasks: [")
    assert raybrew("train-teacher", str(tmp_path / "bad.yaml")) == 2
    assert raybrew("distil") == 2
    shown = capfd.readouterr().err
    assert "none.yaml" in shown
    assert "bad.yaml" in shown
    assert "Traceback" not in shown


def ray_processes(session: int) -> list[str]:
    """Ray's processes of the session of processes that this one leads."""
    listing = subprocess.run(
        ["ps", "-eo", "sid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    mine = [line.split(None, 1) for line in listing]
    words = ("raylet", "gcs_server", "ray::")
    return [
        line[1].strip()
        for line in mine
        if line[0] == str(session) and any(w in line[1] for w in words)
    ]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
AGENTS_S = 100.0


class Distilling:
    """`raybrew distill` in a session of its own, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, ray: Path, job: str, *arguments: str):
        self._output, self._metrics = (
            folder / "output.txt",
            folder / "runs" / "run" / "metrics.jsonl",
        )
        self._before = len(self.steps())
        with self._output.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raybrew", "distill", job, *arguments],
                stderr=log,
                stdout=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "RAY_ADDRESS": "local",
                    "RAY_TMPDIR": str(ray),
                    "TMPDIR": str(folder / "tmp"),
                },
            )

    def steps(self) -> list[int]:
        """Return the steps that were recorded, as they came."""
        lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
        read = [json.loads(line) for line in lines if line.endswith("}")]
        return [line["step"] for line in read if "train/sum/loss" in line]

    def wait_for(self, step: int) -> None:
        """Wait until it has taken a step."""

        def there() -> bool:
            assert self._process.poll() is None, self._output.read_text()
            return max(self.steps()[self._before :], default=0) >= step

        wait_until(there, 200, f"the run didn't get to step {step}")

    def stop(self, signal_: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code and the output."""
        assert ray_processes(self._process.pid)
        self._process.send_signal(signal_)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the output. No other process of it is left."""
        code = self._process.wait(timeout=120)
        # Killed, it can't end Ray's two agents, which wait a minute for a node that has stopped.
        late = AGENTS if code == -signal.SIGKILL else ()
        wait_until(lambda: set(self.left()) <= set(late), 20, "Ray was left behind")
        return code, self._output.read_text()

    def give_up(self) -> None:
        """End it, if it is still there."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=120)

    def left(self) -> list[str]:
        """Return the processes of Ray that live."""
        return ray_processes(self._process.pid)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its session: a short path, for the names of its sockets."""
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def runs() -> Iterator[list[Distilling]]:
    """Runs that a test starts; none of them outlives it."""
    started: list[Distilling] = []
    yield started
    for run in started:
        run.give_up()


@pytest.mark.ray
@pytest.mark.long
def test_a_run_that_is_stopped_three_ways_goes_on_and_ends_in_the_same_weights(
    files, tmp_path, runs, ray_folder
):
    every = 4
    values = job(
        tmp_path,
        # Dropout is on; the adaptor takes its time, so that signals find the run at work.
        student={"config": STUDENT_CONFIG, "adaptor": "tests.integration.slow_adaptors:slow"},
        training={
            **{"num_steps": 50, "batch_size": 8, "checkpoint_every": every, "num_threads": 1},
            "keep": "last",
        },
        tracking={"log_every": 1},
        labels={"store": str(tmp_path / "store"), "when": "ahead"},
    )
    file = write(files, values)
    (tmp_path / "tmp").mkdir()
    stops = (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    )
    run = Distilling(tmp_path, ray_folder, file)
    runs.append(run)
    run.wait_for(7)
    for number, (signal_, expected, word) in enumerate(stops):
        begin = time.monotonic()
        code, output = run.stop(signal_)
        assert code == expected, output
        assert word in output
        assert "Traceback" not in output
        if signal_ != signal.SIGKILL:
            assert "--resume continues the run" in output
            assert temporaries(tmp_path) == []
        taken = run.steps()
        run = Distilling(tmp_path, ray_folder, file, "--resume")
        runs.append(run)
        run.wait_for(1)
        again = run.steps()[len(taken)]
        # From the newest checkpoint: one may have been on its way to the disk.
        assert again % every == 1
        # A driver that is killed doesn't record the last steps that were reported to it.
        unsaid = 2 * every if signal_ == signal.SIGKILL else 0
        assert taken[-1] - 2 * every < again - 1 <= taken[-1] + unsaid
        seconds, steps = time.monotonic() - begin, max(taken[-1] - again + 1, 0)
        print(f"{signal_.name} and --resume: {seconds:.1f} s, {steps} steps")
        run.wait_for(18 + 10 * number)
    code, output = run.end()
    assert code == 0, output
    assert temporaries(tmp_path) == []
    assert not list((tmp_path / "tmp").iterdir())
    # What one process makes of it, without any Ray.
    plain = load_job(rb.DistillJob, file).job
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, _ = build(plain, tmp_path / "whole")
    whole.run(Recorder())
    torch.set_num_threads(threads)
    found = load_file(tmp_path / "runs" / "run" / "student" / "model.safetensors")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(found[name], value), name
    wait_until(lambda: not any(run.left() for run in runs), AGENTS_S, "Ray was left behind")


@pytest.mark.ray
@pytest.mark.long
def test_labelling_goes_on_where_ctrl_c_stopped_it(files, tmp_path):
    log, most = tmp_path / "forwards.txt", 48
    teacher = {
        "name": "a",
        "task": "sum",
        "model": "a",
        "batch_tokens": most,
        "adaptor": "tests.integration.slow_adaptors:slow_teacher",
    }
    values = job(tmp_path, teachers=[teacher])
    values["labels"] = {"store": str(tmp_path / "store")}
    values["tasks"][0]["train"] = "many.parquet"
    make_data(300).to_parquet(str(files / "many.parquet"))
    env = {**os.environ, "RAY_ADDRESS": "local", "RAYBREW_TEST_FORWARDS": str(log)}

    def label(name: str) -> subprocess.Popen:
        values["run"] = {"name": name, "storage_path": str(tmp_path / "runs")}
        return subprocess.Popen(
            [sys.executable, "-m", "raybrew", "label", write(files, values)],
            env=env,
            start_new_session=True,
        )

    def forwards() -> list[int]:
        return [int(line) for line in log.read_text().splitlines()] if log.exists() else []

    first = label("first")
    deadline = time.monotonic() + 100
    while len(forwards()) < 4:
        assert first.poll() is None
        assert time.monotonic() < deadline, "no teacher computed anything"
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    before = sum(forwards())
    assert label("second").wait(timeout=100) == 0
    (folder,) = (tmp_path / "runs").glob("second-label-*")
    report = json.loads((folder / "report.json").read_text())["labels"]
    assert 0 < report["in_store"] < report["needed"]
    # What a forward that was under way would have given is all that may be lost.
    assert 0 <= before - report["in_store"] <= 2 * most
    assert report["forwards"] == report["needed"] - report["in_store"]
