"""The tutorials of docs/: their files are written, their commands and scripts run, in order.

MiniLM is a tiny model here, and Ray is the tests' own: `ray start`, `ray stop` and the address of
a submission are left out, what is submitted runs; test_job_submission.py really submits.
"""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import BertConfig, BertModel

from tests.commands import raybrew
from tests.made import make_tokenizer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.beside,
    pytest.mark.long,
    pytest.mark.usefixtures("cluster"),
]

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
ORDER = ("own-csv", "several-teachers", "several-tasks", "sweep", "cluster")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    for match in _BLOCK.finditer((PAGES / f"{page}.md").read_text()):
        yield Block(*match.groups(default=""))


def run_python(text: str, name: str) -> None:
    exec(compile(text, name, "exec"), {"__name__": "__main__"})


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("--") + 1 :] if "--" in words else words
    words = words[1:] if words[0].startswith("RAY_ADDRESS=") else words
    program, *arguments = words
    if program == "python":
        run_python(Path(arguments[0]).read_text(), arguments[0])
    elif program == "raybrew":
        assert raybrew(*arguments) == 0, line
    else:
        assert program == "ray", f"what the tests can't run: {line}"
        assert arguments[0] in ("start", "stop"), line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session of the tutorials takes place, with what stands for MiniLM."""
    place = tmp_path_factory.mktemp("tutorials")
    script = next(each for each in blocks("own-csv") if each.title == "make_messages.py").text
    tokenizer = make_tokenizer(sorted(set(re.findall(r'"(\w+)"', script))))
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(place / "minilm")
    tokenizer.save_pretrained(str(place / "minilm"))
    return place


@pytest.mark.parametrize("page", ORDER)
def test_a_tutorial_runs_as_it_is_written(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for block in blocks(page):
        text = block.text.replace(MINILM, str(folder / "minilm"))
        if block.title:
            Path(block.title).write_text(text)
        elif block.language == "python":
            run_python(text, page)
        elif block.language == "sh":
            for line in text.strip().splitlines():
                run_command(line)
    CHECKS[page](folder)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as rows:
        return list(csv.DictReader(rows))


def report(folder: Path, run: str) -> dict:
    return json.loads((folder / "runs" / run / "report.json").read_text())


def check_own_csv(folder: Path) -> None:
    assert {row["predicted_label"] for row in rows_of(folder / "predicted.csv")} <= {
        *("billing", "delivery", "login")
    }
    labels = report(folder, "student")["labels"]
    assert labels["forwards"] == labels["needed"] > 500


def check_several_teachers(folder: Path) -> None:
    labels = report(folder, "two")["labels"]
    assert labels["forwards"] == labels["in_store"] == labels["needed"] / 2


def check_several_tasks(folder: Path) -> None:
    assert {row["predicted_label"] for row in rows_of(folder / "tones.csv")} <= {"calm", "angry"}


def check_sweep(folder: Path) -> None:
    assert len(rows_of(folder / "runs/sweep/results.csv")) == 4
    assert (folder / "runs/sweep/best.yaml").exists()


def check_cluster(folder: Path) -> None:
    for run in ("cluster", "submitted"):
        assert report(folder, run)["labels"]["forwards"] == 0


CHECKS = {
    "own-csv": check_own_csv,
    "several-teachers": check_several_teachers,
    "several-tasks": check_several_tasks,
    "sweep": check_sweep,
    "cluster": check_cluster,
}


def test_every_tutorial_is_run():
    assert {page.stem for page in PAGES.glob("*.md")} == set(ORDER) == CHECKS.keys()
