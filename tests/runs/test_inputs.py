"""Malformed inputs of every kind: one of our errors or a success, never anything else.

Jobs go the whole way to where models would be loaded; data, stores and checkpoints are damaged
byte by byte, and what is read back from them is right or is not there.
"""

import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raybrew as rb
from raybrew import cli
from raybrew.config.job_file import dump_yaml, load_job
from raybrew.data.payload import Payload, Signal
from raybrew.labels.store import LabelStore
from raybrew.runs.ray_config import run_config_from, scaling_config_from
from raybrew.runs.resolve import resolve_job
from raybrew.tasks.task_data import read_task_data
from raybrew.training.checkpoints import Checkpoints
from tests.made import CLASSES, STUDENT_CONFIG, make_data, make_job, make_model
from tests.training.in_process import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
JOBS = 520
"""Mutations of a valid job that are tried."""

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**40, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", " ",
    "x", "no", "a", "sum", "1", "../..", "/", "~", "\x07", "é\u202e\U0001f600", "w" * 3000,
    "os:system", "json:loads", "a:b:c", [], [1], ["a"], [None], [[]], {}, {"a": 1}, {"name": {}},
    {"name": "a"}, "[1, 2", "{a: b}", "!!int x",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "a", 0)
    make_model(folder / "b", 1)
    make_data(24).to_parquet(str(folder / "train.parquet"))
    make_data(12, seed=1).to_parquet(str(folder / "eval.parquet"))
    return folder


def valid() -> dict[str, Any]:
    teachers = [
        {"name": name, "task": "sum", "model": name, "weight": 1.0, "resources": {"CPU": 0.25}}
        for name in "ab"
    ]
    return {
        "tasks": [
            {"name": "sum", "train": "train.parquet", "eval": "eval.parquet", "max_length": 32}
        ],
        "teachers": teachers,
        "student": {"config": dict(STUDENT_CONFIG)},
        "distillation": {
            "temperature": 2.0,
            "kd_loss": "ce",
            "hard_label_weight": 0.5,
            "mixture": "mean_logits",
            "matches": [
                {
                    "layer_T": [1, 1],
                    "layer_S": [1, 1],
                    "feature": "hidden",
                    "loss": "mmd",
                    "weight": 1.0,
                    "teacher": "a",
                }
            ],
        },
        "training": {"num_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "seed": 1},
        "labels": {"store": "store", "when": "along"},
        "tracking": {"log_every": 1, "progress": False},
        "scaling": {"num_workers": 1},
        "run": {"name": "run"},
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def mutated(seed: int) -> dict[str, Any]:
    """One to three random changes of the valid job."""
    draw = random.Random(seed)
    values = valid()
    # The matches of a valid job come later than everything else that can be wrong: half without.
    if draw.random() < 0.5:
        del values["distillation"]["matches"]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = list(places(values))
        if not found:
            break
        *way, last = draw.choice(found)
        place = values
        for key in way:
            place = place[key]
        match draw.randrange(6):
            case 0:
                del place[last]
            case 1:
                place[last] = [copy.deepcopy(place[last])] * draw.choice([1, 2])
            case 2 if isinstance(place, dict):
                place[str(last) + draw.choice(["s", "_", "é"])] = place.pop(last)
            case 3 if isinstance(place, list):
                place.append(copy.deepcopy(place[last]))
            case _:
                place[last] = copy.deepcopy(draw.choice(ODD))
    return values


def refusal(call: Callable[[], Any]) -> str | None:
    """Return the message of our own error; anything else that is raised stays raised."""
    try:
        call()
    except rb.RaybrewError as error:
        return str(error).strip()
    return None


def whole_way(files: Path, values: dict[str, Any], folder: Path) -> str | None:
    """Go the whole way of a job up to its models' weights; return the error, if it is one."""
    path = files / "job.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True))

    def go() -> None:
        file = load_job(rb.DistillJob, path)
        scaling_config_from(file.scaling)
        run_config_from(file.run)
        resolve_job(file.job, folder)
        again = files / "again.yaml"
        again.write_text(dump_yaml(file.plain))
        assert load_job(rb.DistillJob, again).job == file.job

    return refusal(go)


@pytest.mark.long
def test_mutated_jobs_are_an_error_of_ours_or_a_success(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    assert whole_way(files, valid(), tmp_path / "0") is None
    refused = 0
    for seed in range(JOBS):
        try:
            message = whole_way(files, mutated(seed), tmp_path / "data")
        except BaseException as error:
            error.add_note(f"seed {seed}: {mutated(seed)}")
            raise
        if message is not None:
            refused += 1
            assert message
            assert "Traceback" not in message
    print(f"{JOBS} mutations: {refused} refused, {JOBS - refused} successes")
    # A test of nothing but refusals, or of none, would show little.
    assert JOBS // 3 < refused < JOBS - JOBS // 20


@pytest.mark.parametrize("seed", range(12))
def test_refused_jobs_end_the_command_with_2(seed, files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(files)
    refused = [s for s in range(40 * seed, 40 * seed + 40) if _refused(files, s)]
    path = files / "cli.yaml"
    path.write_text(yaml.safe_dump(mutated(refused[0])))
    monkeypatch.setattr(sys, "argv", ["raybrew", "distill", str(path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    shown = capfd.readouterr().err
    assert "raybrew: " in shown
    assert "Traceback" not in shown


def _refused(files: Path, seed: int) -> bool:
    path = files / "candidate.yaml"
    path.write_text(yaml.safe_dump(mutated(seed)))
    return refusal(lambda: load_job(rb.DistillJob, path)) is not None


@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_damaged_texts_of_a_job_are_an_error_of_ours_or_a_success(files, data):
    text = yaml.safe_dump(valid())
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 40)))
    text = text[:start] + data.draw(st.text(max_size=20)) + text[stop:]
    path = files / "text.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refusal(lambda: load_job(rb.DistillJob, path)) != ""


CELL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-4, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["w1 w2", *CLASSES, "sideways", ""]),
    st.lists(st.integers(0, 3), max_size=2),
)
ROW = st.dictionaries(st.sampled_from(["text", "label", "other", "text\n"]), CELL, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(rows=st.lists(ROW, max_size=5), cut=st.integers(0, 30), named=st.booleans())
def test_malformed_rows_are_a_data_error_or_read_as_they_are(files, rows, cut, named):
    lines = "\n".join(json.dumps(row) for row in rows)
    path = files / "rows.jsonl"
    path.write_text(lines[: len(lines) - cut] if cut > 20 else lines)
    task = rb.Task(
        name="sum", train=str(path), label_names=CLASSES if named else None, max_length=32
    )
    message = refusal(lambda: read_task_data(task))
    if message is not None:
        assert "tasks[sum]" in message
        return
    table = read_task_data(task)
    assert len(table.train.labels) == len(table.train)
    assert set(np.unique(table.train.labels)) <= {-1, *range(len(table.label_names))}
    # Whatever was a text stayed what it was.
    if cut <= 20 and all(isinstance(row.get("text"), str) for row in rows):
        assert list(table.train.texts) == [row["text"] for row in rows]


def damaged(data: bytes, draw: Any) -> bytes:
    """Flip, cut, insert or repeat some bytes."""
    start = draw(st.integers(0, max(0, len(data) - 1)))
    stop = draw(st.integers(start, min(len(data), start + 24)))
    return data[:start] + draw(st.binary(max_size=24)) + data[stop:]


@settings(max_examples=200, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_a_damaged_store_gives_the_right_labels_or_none(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    signal = Signal(dtype="float32")
    keys = np.arange(40, dtype=np.uint64).reshape(20, 2)
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    store = LabelStore(folder).signal("f" * 32, signal)
    store.append(keys, Payload(values))
    store.flush()
    (path,) = folder.rglob("shard-*.arrow")
    before = path.read_bytes()
    after = damaged(before, data.draw)
    path.write_bytes(after)
    found, payload = LabelStore(folder).signal("f" * 32, signal).read(keys)
    if payload is None:
        assert not found.any()
        assert after != before
    else:
        np.testing.assert_array_equal(payload.values, values[found])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("checkpoint")
    job = make_job({"a": make_model(folder / "a", 0)}, folder / "store")
    training, _ = build(job, folder / "data")
    training.save(folder / "saved")
    return training, folder / "saved"


FILES = ["state.json", "optimizer.safetensors", "student/model.safetensors"]


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_damaged_checkpoint_is_never_used(data, name, checkpoint, tmp_path_factory):
    training, saved = checkpoint
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.write(step, lambda to: _copied(saved, to))
    path = folder / "step-00000002" / name
    before = path.read_bytes()
    path.write_bytes(damaged(before, data.draw))
    newest = checkpoints.newest(lambda _: None)
    whole = (folder / "step-00000002" / name).exists()
    assert newest == folder / ("step-00000002" if whole else "step-00000001")
    assert whole == (path.exists() and path.read_bytes() == before)
    # Without its checksums, reading it still ends in our error or in what was written.
    aside = folder / ("step-00000002" if whole else "step-00000002.damaged")
    message = refusal(lambda: training.resume(aside))
    assert message is None or str(aside) in message


def _copied(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
