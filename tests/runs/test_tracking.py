import json
import logging
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from raybrew.config import TrackingConfig
from raybrew.errors import ConfigError
from raybrew.runs.tracking import Tracker, without_secrets

JOB = {"tasks": [{"name": "mr"}], "training": {"learning_rate": 0.5}}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def offline_records(folder: Path, runs: int = 1) -> list:
    """Return what so many ended offline runs would send; W&B's own process writes it down."""
    until = time.monotonic() + 30
    while True:
        found = _written_records(folder)
        if sum(record.HasField("exit") for record in found) >= runs or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _written_records(folder: Path) -> list:
    # LevelDB logs of protobuf records.
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:  # the rest of a block that holds no header
                place += 32768 - place % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            if place + 7 + length > len(data):
                break  # being written
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record = Record()
                record.ParseFromString(parts)
                found.append(record)
                parts = b""
    return found


def run_python(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: W&B reads its environment once."""
    inherited = {key: value for key, value in os.environ.items() if "WANDB" not in key}
    merged = {**inherited, **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={key: value for key, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
    )


# metrics.jsonl


def test_every_record_is_a_line_that_can_be_read_at_once(tmp_path):
    with Tracker(tmp_path / "run", TrackingConfig(), JOB, "r") as tracker:
        tracker.log({"train/mr/loss": 0.5, "train/lr": torch.tensor(2.0)}, step=3)  # type: ignore[dict-item]
        (first,) = records(tmp_path / "run")
        tracker.summary({"eval/mr/accuracy": np.float32(0.25), "parameters": np.int64(7)})
    assert (first["step"], first["train/mr/loss"], first["train/lr"]) == (3, 0.5, 2.0)
    assert first["time"] > 1.7e9
    assert records(tmp_path / "run")[1]["summary"] == {"eval/mr/accuracy": 0.25, "parameters": 7}


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    values = {"a": float("nan"), "b": float("inf"), "c": -float("inf")}
    with Tracker(tmp_path, TrackingConfig(), JOB, "r") as tracker:
        tracker.log(values, step=1)
        tracker.summary({"d": np.float32("nan")})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record, final = (json.loads(line, parse_constant=refuse) for line in lines)
    assert [record[key] for key in "abc"] == ["nan", "inf", "-inf"]
    assert float(record["c"]) == values["c"]
    assert final["summary"] == {"d": "nan"}


@pytest.mark.parametrize("torn", ['{"step": 2, "ti', '{"step": 2, "time": 1.0}', ""])
def test_a_resumed_run_goes_on_after_the_last_whole_line(tmp_path, torn, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\n' + torn)
    with Tracker(tmp_path, TrackingConfig(), JOB, "r") as tracker:
        tracker.log({"x": 1.0}, step=3)
    assert [record["step"] for record in records(tmp_path)] == [1, 3]
    assert ("torn" in caplog.text) == bool(torn)


def test_finish_twice_is_finish_once(tmp_path):
    tracker = Tracker(tmp_path, TrackingConfig(), JOB, "r")
    tracker.finish()
    tracker.finish(1)


def test_secrets_are_masked_and_vocabulary_is_not():
    job = {
        "store": "s3://key:pass@bucket/labels",
        "model": "https://hub/model",
        "options": {"api_key": "k", "hf_token": "t", "token": "t", "pad_token": "[PAD]"},
        "batch_tokens": 4096,
        "list": [{"password": "p"}],
    }
    assert without_secrets(job) == {
        "store": "s3://***@bucket/labels",
        "model": "https://hub/model",
        "options": {"api_key": "***", "hf_token": "***", "token": "***", "pad_token": "[PAD]"},
        "batch_tokens": 4096,
        "list": [{"password": "***"}],
    }


# TensorBoard


def test_tensorboard_holds_every_value(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, TrackingConfig(tensorboard=True), JOB, "r") as tracker:
        tracker.log({"train/mr/loss": 0.5}, step=1)
        tracker.log({"train/mr/loss": 0.25}, step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/mr/loss")] == [(1, 0.5), (2, 0.25)]


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ConfigError, match=r"raybrew\[tensorboard\]"):
        Tracker(tmp_path, TrackingConfig(tensorboard=True), JOB, "r")


# W&B


def test_offline_run_holds_name_group_config_values_summary_and_exit(tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO, "raybrew")
    config = TrackingConfig(wandb=True, project="p", group="g")
    with Tracker(tmp_path, config, {**JOB, "api_key": "hush"}, "first run") as tracker:
        tracker.log({"train/mr/loss": 0.5}, step=5)
        tracker.log({"eval/mr/accuracy": 0.75}, step=2)
        tracker.summary({"eval/mr/accuracy": 0.875})
    assert [message for message in caplog.messages if "wandb sync" in message]
    assert capfd.readouterr() == ("", "")
    found = offline_records(tmp_path)
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.display_name, run.run_group, run.project) == ("first run", "g", "p")
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["training"] == {"learning_rate": 0.5}
    assert settings["api_key"] == "***"
    rows = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in found
        if r.HasField("history")
    ]
    kept = [{key: row[key] for key in row if not key.startswith("_")} for row in rows]
    assert kept == [{"step": 5, "train/mr/loss": 0.5}, {"step": 2, "eval/mr/accuracy": 0.75}]
    final = [item for r in found if r.HasField("summary") for item in r.summary.update]
    assert any(json.loads(item.value_json) == 0.875 for item in final)
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]
    assert not any(path.name == "wandb" for path in Path.cwd().iterdir())


def test_a_resumed_folder_is_the_same_run_and_a_crash_its_exit(tmp_path):
    config = TrackingConfig(wandb=True, run_name="mine")
    with Tracker(tmp_path, config, JOB, "r"):
        pass
    with pytest.raises(KeyError), Tracker(tmp_path, config, JOB, "r"):
        raise KeyError
    found = offline_records(tmp_path, runs=2)
    assert len({record.run.run_id for record in found if record.HasField("run")}) == 1
    assert {record.run.display_name for record in found if record.HasField("run")} == {"mine"}
    codes = [record.exit.exit_code for record in found if record.HasField("exit")]
    assert sorted(codes) == [0, 1]


SHOW = """
import json, sys
from pathlib import Path
import wandb
from raybrew.config import TrackingConfig
from raybrew.runs.tracking import Tracker
real, shown = wandb.init, []
def init(**options):
    run = real(**options)
    names = ("project", "name", "group", "id", "dir")
    shown.append({name: getattr(run, name) for name in names}
                 | {"resume": options["resume"], "timeout": run.settings.init_timeout})
    return run
wandb.init = init
config = TrackingConfig(wandb=True, **json.loads(sys.argv[2]))
for number in range(int(sys.argv[3])):
    trial = sys.argv[4] == "trial"
    Tracker(Path(sys.argv[1], str(number)), config, {}, "folder", is_trial=trial).finish()
print(json.dumps(shown))
"""
"""What W&B gets, as JSON; arguments: folder, settings of the job, how many runs, which kind."""


def shown_runs(folder: Path, settings: dict, env: dict[str, str], *, trials: int = 0) -> list:
    kind = "trial" if trials else "run"
    arguments = [str(folder), json.dumps(settings), str(trials or 1), kind]
    done = run_python(f"import sys; sys.argv[1:] = {arguments!r}\n" + SHOW, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_wandbs_own_variables_come_before_defaults(tmp_path):
    env = {
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": "mine",
        "WANDB_NAME": "my-run",
        "WANDB_RUN_GROUP": "ours",
        "WANDB_RUN_ID": "abc123",
        "WANDB_RESUME": "never",
        "WANDB_DIR": str(tmp_path / "elsewhere"),
        "WANDB_INIT_TIMEOUT": "7",
    }
    (tmp_path / "elsewhere").mkdir()
    (run,) = shown_runs(tmp_path, {}, env)
    named = {"project": "mine", "name": "my-run", "group": "ours", "id": "abc123"}
    assert {name: run[name] for name in named} == named
    assert (run["resume"], run["timeout"]) == ("never", 7)
    assert run["dir"].startswith(env["WANDB_DIR"])
    job = {"project": "p", "run_name": "r", "group": "g"}
    (run,) = shown_runs(tmp_path, job, env)
    assert (run["project"], run["name"], run["group"]) == ("p", "r", "g")
    # Trials are many runs of one process.
    runs = shown_runs(tmp_path / "sweep", {"run_name": "s/1"}, env, trials=2)
    assert [(run["project"], run["name"]) for run in runs] == [("mine", "s/1")] * 2
    assert len({*(run["id"] for run in runs), "abc123"}) == 3


def test_defaults_where_neither_the_job_nor_a_variable_names_anything(tmp_path):
    (run,) = shown_runs(tmp_path, {}, {"WANDB_MODE": "offline"})
    assert (run["project"], run["name"], run["group"]) == ("raybrew", "folder", "")
    assert (run["resume"], run["timeout"]) == ("allow", 60)
    assert run["dir"].startswith(str(tmp_path))


def test_wandb_lost_later_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    import wandb
    from wandb.errors import CommError

    def fail(*args, **kwargs):
        raise CommError("lost")

    with Tracker(tmp_path, TrackingConfig(wandb=True), JOB, "r") as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(wandb.Run, "log", fail)
            tracker.log({"x": 1.0}, step=1)
        tracker.log({"x": 2.0}, step=2)
    assert [record["x"] for record in records(tmp_path)] == [1.0, 2.0]
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert "lost" in caplog.text


OPEN = """
import sys, logging
from pathlib import Path
from raybrew.config import TrackingConfig
from raybrew.errors import ConfigError
from raybrew.runs.tracking import Tracker
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
try:
    with Tracker(Path(sys.argv[1]), TrackingConfig(wandb=True), {}, "r"):
        pass
except ConfigError as error:
    print("refused:", error)
"""


def test_bad_key_fails_at_the_start(tmp_path):
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    code = f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n" + OPEN
    done = run_python(code, WANDB_API_KEY="short", **home)
    assert done.returncode == 0, done.stderr
    assert "refused: tracking.wandb: expected W&B to accept the key" in done.stdout
    assert "WANDB_MODE=offline" in done.stdout
    assert not list(tmp_path.glob("wandb/*run-2*"))


def test_a_sweep_finds_a_bad_key_before_its_first_trial(tmp_path):
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    code = """
from ray import tune
import raybrew as rb
from tests.made import make_job
from pathlib import Path
tracking = rb.TrackingConfig(wandb=True)
job = make_job({"a": "nowhere"}, Path("store"), tracking=tracking)
try:
    rb.tune(job, {"training.seed": tune.choice([0, 1])})
except rb.ConfigError as error:
    print("refused:", error)
"""
    done = run_python(code, WANDB_API_KEY="short", **home)
    assert "refused: tracking.wandb: expected W&B to accept the key" in done.stdout, done.stderr


def test_without_a_key_the_run_is_offline_and_says_so(tmp_path):
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    code = f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n" + OPEN
    done = run_python(code, **home)
    assert done.returncode == 0, done.stderr
    assert "no key" in done.stdout
    assert f"wandb sync {tmp_path}" in done.stdout
    assert done.stderr == ""
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_variable_that_wandb_refuses_is_one_message(tmp_path):
    code = f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n" + OPEN
    done = run_python(code, WANDB_MODE="ofline")
    assert done.returncode == 0, done.stderr
    assert "refused: tracking.wandb: expected W&B to accept its variables" in done.stdout
    assert "'ofline'" in done.stdout


def test_disabled_wandb_leaves_nothing(tmp_path):
    code = f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n" + OPEN
    done = run_python(code, WANDB_MODE="disabled")
    assert "disabled by WANDB_MODE" in done.stdout
    assert not (tmp_path / "wandb").exists()


def test_neither_is_imported_unless_asked():
    code = "import sys, raybrew.runs.tracking; print({'wandb', 'tensorboard'} & set(sys.modules))"
    assert run_python(code).stdout.strip() == "set()"
