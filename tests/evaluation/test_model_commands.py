"""`raybrew evaluate` and `raybrew inspect`: metrics by hand, tables, mistakes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.models.parameters import inspect_model
from tests.commands import raybrew
from tests.made import make_data, make_model, make_yes_no_data
from tests.training.in_process import Recorder, build
from tests.training.test_several_tasks import job as two_task_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("a", 0), ("b", 1)):
        make_model(folder / name, seed)
    make_model(folder / "c", 2, labels=("no", "yes"))
    for split, seed in (("train", 0), ("eval", 1)):
        make_data(20, seed=seed).to_parquet(str(folder / f"sum-{split}.parquet"))
        make_yes_no_data(20, seed=seed).to_parquet(str(folder / f"among-{split}.parquet"))
    return folder


@pytest.fixture(scope="module")
def student(folder: Path) -> Path:
    """A student of two tasks as a run leaves it."""
    models = {name: str(folder / name) for name in "abc"}
    training, _ = build(two_task_job(models, folder / "store"), folder / "encoded")
    training.run(Recorder())
    (folder / "checkpoint").mkdir()
    training.save(folder / "checkpoint")
    return folder / "checkpoint" / "student"


def write(folder: Path, *tasks: str) -> str:
    known = {
        "sum": {"name": "sum", "max_length": 32},
        "among": {"name": "among", "max_length": 32, "text": "word", "text_pair": "sentence"},
    }
    values = {
        "tasks": [
            {**known[t], "train": f"{t}-train.parquet", "eval": f"{t}-eval.parquet"} for t in tasks
        ],
        "model": {"model": "a"},
        "training": {"num_steps": 1},
    }
    path = folder / f"{'-'.join(tasks)}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def accuracy(model: Path | str) -> float:
    data = make_data(20, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(model).eval()(**batch).logits
    return (logits.argmax(dim=-1) == torch.tensor(data["label"])).double().mean().item()


def test_evaluate_compares_models_on_a_jobs_rows(folder, capfd):
    paths = [str(folder / name) for name in "ab"]
    assert raybrew("evaluate", write(folder, "sum"), *paths) == 0
    lines = capfd.readouterr().out.splitlines()
    for path in paths:
        (line,) = [line for line in lines if line.startswith(path) and "│" in line]
        assert f" {accuracy(path):.4f} " in line
        assert "│       20 │" in line


def test_a_student_of_several_tasks_is_evaluated_on_each(folder, student):
    rows = [str(folder / f"sum-{split}.parquet") for split in ("train", "eval")]
    job = rb.TrainJob(
        tasks=[rb.Task(name="sum", max_length=32, train=rows[0], eval=rows[1])],
        model=rb.Student(model="a"),
        training=rb.TrainingConfig(num_steps=1),
    )
    found = rb.evaluate(job, student)
    assert found["sum"]["accuracy"] == pytest.approx(accuracy(student / "sum"))


def test_classes_go_by_their_names(folder, tmp_path, capfd):
    job, named = write(folder, "sum"), {}
    model = AutoModelForSequenceClassification.from_pretrained(folder / "a")
    for name, order in (("same", (0, 1, 2)), ("other", (2, 0, 1))):
        with torch.no_grad():
            for tensor in model.classifier.parameters():
                tensor.copy_(tensor[list(order)])
        labels = [("down", "level", "up")[n] for n in order]
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: n for n, label in enumerate(labels)}
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(folder / "a").save_pretrained(tmp_path / name)
        assert raybrew("evaluate", job, str(tmp_path / name)) == 0
        shown = capfd.readouterr().out.splitlines()
        (line,) = [s for s in shown if s.startswith(str(tmp_path)) and "│" in s]
        named[name] = line.removeprefix(str(tmp_path / name)).replace(" ", "")
    assert named["same"] == named["other"]
    assert f"{accuracy(folder / 'a'):.4f}" in named["other"]
    alien = make_model(tmp_path / "alien", 0, labels=("up", "down", "flat"))
    assert raybrew("evaluate", job, alien) == 2
    shown = " ".join(capfd.readouterr().err.split())
    assert "labels (down, level, up) in any order, got up, down, flat" in shown


def test_tables_of_several_tasks_and_what_is_unclear(folder, student, capfd):
    job = write(folder, "sum", "among")
    assert raybrew("evaluate", job, str(student)) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "sum"
    assert "among" in out.splitlines()
    assert raybrew("evaluate", job, str(folder / "a")) == 2
    assert "expected the task" in capfd.readouterr().err
    assert raybrew("evaluate", job, str(folder / "a"), "--task", "sum") == 0
    assert raybrew("evaluate", job, str(folder / "c"), "--task", "sum") == 2
    assert "expected 3 labels" in " ".join(capfd.readouterr().err.split())
    assert raybrew("evaluate", job) == 2
    assert "expected a model to evaluate" in capfd.readouterr().err
    assert raybrew("evaluate", str(folder / "nowhere.yaml"), "a") == 2
    assert raybrew("evaluate", job, "a", "--task", "other") == 2
    err = capfd.readouterr().err
    assert "expected one of sum, among" in err
    assert "Traceback" not in err


def test_inspect_shows_the_tree_and_the_figures(folder, student, capfd):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "a")
    count = sum(p.numel() for p in model.parameters())
    assert raybrew("inspect", str(folder / "a"), "--length", "16", "--batch-size", "4") == 0
    out = capfd.readouterr().out
    assert "(BertForSequenceClassification)" in out
    assert f"{count:,} parameters, {4 * count / 2**20:.1f} MB" in out
    assert "classifier" in out
    found = inspect_model(str(student), length=8, batch_size=2, repeats=2)
    assert [Path(each.name).name for each in found] == ["sum", "among"]
    assert all(each.latency_ms and each.examples_per_s > 0 for each in found)
    assert raybrew("inspect", str(folder / "a"), "--length", "1000") == 2
    assert raybrew("inspect", str(folder / "nowhere")) == 2
    err = capfd.readouterr().err
    assert "at most 64" in err
    assert "Traceback" not in err


def test_inspect_knows_the_positions_that_roberta_reserves(tmp_path, capfd):
    config = transformers.RobertaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=514,
    )
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    timed = ("--batch-size", "2")
    assert raybrew("inspect", str(tmp_path), "--length", "513", *timed) == 2
    assert "--length: expected at most 512" in capfd.readouterr().err
    assert raybrew("inspect", str(tmp_path), "--length", "512", *timed) == 0
    assert "examples of 512 tokens" in capfd.readouterr().out


class Trap:
    def __reduce__(self):
        return exec, ("raise AssertionError('code among weights was run')",)


BROKEN = {
    "half a list of tasks": ("tasks.json", b"{", "tasks.json: expected the tasks of a student"),
    "bytes as tasks": ("tasks.json", b"\xff\xfe", "tasks.json: expected the tasks of a student"),
    "a list as tasks": ("tasks.json", b"[]", r"tasks.json: expected {.*got \[\]"),
    "no tasks": ("tasks.json", b"{}", "tasks.json: expected {.*got {}"),
    "a number as tasks": (
        "tasks.json",
        b'{"tasks": 5}',
        "tasks.json: expected .*'tasks': 5}",
    ),
    "another width": ("config.json", {"hidden_size": 64}, "expected weights of the sizes"),
    "another vocabulary": ("config.json", {"vocab_size": 90}, "expected weights of the sizes"),
    "no vocabulary": ("config.json", {"vocab_size": 0}, "expected weights at"),
    "a number as a class": ("config.json", {"architectures": 5}, "architectures|configuration"),
    "a number among classes": (
        "config.json",
        {"architectures": [5]},
        "architectures|configuration",
    ),
    "another type's class": (
        "config.json",
        {"architectures": ["GPT2Model"]},
        "to name a class of models of type bert, got GPT2Model",
    ),
    "garbage as weights": ("pytorch_model.bin", b"garbage", "a file that is damaged"),
    "no weights": ("pytorch_model.bin", b"", "expected weights at"),
    "a list as weights": ("pytorch_model.bin", [1, 2], "expected weights at"),
    "code as weights": ("pytorch_model.bin", Trap(), "expected weights at"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_message(case, folder, tmp_path, capfd):
    name, content, message = BROKEN[case]
    broken = tmp_path / "broken"
    shutil.copytree(folder / "a", broken)
    if isinstance(content, dict):
        values = json.loads((broken / name).read_text()) | content
        (broken / name).write_text(json.dumps(values))
    elif isinstance(content, bytes):
        (broken / name).write_bytes(content)
    else:
        torch.save(content, broken / name)
    if name == "pytorch_model.bin":
        (broken / "model.safetensors").unlink()
    commands = [["inspect", str(broken)]]
    if name == "tasks.json" or "class" in case:
        commands.append(["evaluate", write(folder, "sum"), str(broken)])
    for command in commands:
        # What reads a class by the task type doesn't care which wrote the folder.
        assert raybrew(*command) == (0 if "type's" in case and command[0] == "evaluate" else 2)
        shown = " ".join(capfd.readouterr().err.split())
        assert "Traceback" not in shown
        assert shown == "" or re.search(message, shown), shown


SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
SMALLER = {**SMALL, "intermediate_size": 16}
OTHERS = {
    "T5ForConditionalGeneration": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1},
    "ViTForImageClassification": {**SMALLER, "image_size": 8, "patch_size": 4},
    "CLIPModel": {
        "text_config": {**SMALLER, "vocab_size": 50},
        "vision_config": {**SMALLER, "image_size": 8, "patch_size": 4},
    },
    "Wav2Vec2ForCTC": {
        **SMALLER,
        "conv_dim": [8],
        "conv_stride": [2],
        "conv_kernel": [2],
        "num_feat_extract_layers": 1,
        "num_conv_pos_embeddings": 2,
        "num_conv_pos_embedding_groups": 1,
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_more_than_a_text_are_shown_but_not_timed(name, tmp_path, capfd):
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**OTHERS[name]))
    model.save_pretrained(tmp_path)
    assert raybrew("inspect", str(tmp_path), "--length", "8", "--batch-size", "2") == 0
    out = capfd.readouterr().out
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters, " in out
    assert "it can't be timed on tokens alone: " in out.splitlines()[-2]
