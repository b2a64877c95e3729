import json

import pytest
from datasets import Dataset, DatasetDict
from datasets import config as datasets_config

from raybrew.config import Task
from raybrew.data.classes import read_labels
from raybrew.data.columns import read_column, read_rows
from raybrew.data.sources import load_source
from raybrew.errors import DataError

ROWS = {"text": ["good film", "bad film", "fine"], "label": [1, 0, 1]}


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_dict(ROWS)


def load(source) -> dict[str, list]:
    return load_source(source, "tasks[t].train").to_dict()  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "saved", "dict", "live"])
def test_every_form_gives_the_same_rows(kind, data, tmp_path):
    path = str(tmp_path / f"rows.{kind}")
    if kind == "parquet":
        data.to_parquet(path)
    elif kind == "jsonl":
        data.to_json(path)
    elif kind in ("csv", "tsv"):
        data.to_csv(path, sep="\t" if kind == "tsv" else ",")
    elif kind == "saved":
        data.save_to_disk(path)
    elif kind == "dict":
        DatasetDict({"dev": data}).save_to_disk(path)
        path += "@dev"
    assert load(data if kind == "live" else path) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("row.parquet", None, r"tasks\[t\].train.*row\.parquet.*no such file.*rows\.parquet"),
        ("bad.parquet", b"nonsense", r"bad\.parquet can't be read as \.parquet"),
        ("bad.jsonl", b'{"a": 1}\n{"b":', r"bad\.jsonl can't be read"),
        ("empty.csv", b"", "empty file"),
        ("none.csv", b"text,label\n", "empty data set"),
        ("latin.json", '[{"text": "é"}]'.encode("latin-1"), r"latin\.json can't be read as \.json"),
        (
            "squad.json",
            '{"data":[{"paragraphs":[{"context":"é","qas":[]}]}]}'.encode("latin-1"),
            "expected questions in SQuAD's form.*utf-8",
        ),
        ("noqas.json", b'{"data":[{"paragraphs":[]}]}', r"expected questions, got none in .*noqas"),
        ("rows.xlsx", b"a", r"or a file of the type \.parquet, .*\.txt, got .*rows\.xlsx"),
    ],
)
def test_a_file_that_cant_be_used(name, content, message, data, tmp_path, capfd):
    data.to_parquet(str(tmp_path / "rows.parquet"))
    capfd.readouterr()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_a_format_of_tensors_changes_nothing(form, data, tmp_path):
    shaped = data.with_format(form)
    names, labels, _ = read_labels(task(), load_source(shaped, "t"), None)
    assert (names, labels.tolist()) == (("0", "1"), ROWS["label"])
    assert read_rows(task(), load_source(shaped, "t"), "t").texts == ROWS["text"]
    assert shaped.format["type"] == form
    shaped.save_to_disk(str(tmp_path / "saved"))
    assert read_column(load_source(str(tmp_path / "saved"), "t"), "label", "t") == ROWS["label"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_words_for_missing_numbers_are_texts_among_texts(kind, tmp_path):
    rows = ["text,tag,score,n", "null,None,1.5,1", "nan,NA,nan,", "c,null,NA,3", "d,,,NULL"]
    path = tmp_path / f"rows.{kind}"
    path.write_text("\n".join(rows).replace(",", "\t" if kind == "tsv" else ","))
    assert load(str(path)) == {
        "text": ["null", "nan", "c", "d"],
        "tag": ["None", "NA", "null", None],
        "score": [1.5, None, None, None],
        "n": [1, None, 3, None],
    }


def test_classes_of_a_csv_file_may_be_called_none(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,None\nb,NA\nc,yes\nd,\n")
    names, labels, _ = read_labels(task(), load_source(str(path), "t"), None)
    assert names == ("NA", "None", "yes")
    assert labels.tolist() == [1, 0, 2, -1]


@pytest.mark.parametrize("code", ["latin-1", "utf-16"])
def test_a_json_file_of_another_encoding_is_a_data_error(code, tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes('[{"text": "é"}]'.encode(code))
    with pytest.raises(DataError, match=r"rows\.json can't be read"):
        load(str(path))


def test_texts_that_arent_utf8_are_a_data_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "é", "label": 1}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="w: expected text in UTF-8 in 'text', got: 'utf-8' codec"):
        read_column(load_source(str(path), "w"), "text", "w")


def test_a_split_of_a_file_is_refused_and_a_path_as_it_is_written_wins(data, tmp_path):
    folder = tmp_path / "at@1"
    data.to_csv(str(folder / "rows@2.csv"))
    assert load(str(folder / "rows@2.csv")) == ROWS
    with pytest.raises(DataError, match=r"train: expected a file without split.*got @test of the"):
        load(str(folder / "rows@2.csv@test"))
    with pytest.raises(DataError, match=r"data set at .*at@1/row\.csv, got no such file; .*rows@2"):
        load(str(folder / "row.csv"))
    DatasetDict({"dev": data}).save_to_disk(str(folder / "saved"))
    assert load(str(folder / "saved@dev")) == ROWS


@pytest.mark.parametrize("path", ["~nosuch/x.csv", "~nosuch/x", "x" * 300, "x" * 300 + ".csv"])
def test_paths_that_cant_be_looked_up(path):
    with pytest.raises(DataError, match=r"tasks\[t\]\.train: expected a path, got '[x~]"):
        load(path)


@pytest.mark.parametrize("content", ["{}", "[]"])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_saved_data_set_with_a_damaged_description(name, content, data, tmp_path):
    folder = tmp_path / "saved"
    if name == "state.json":
        data.save_to_disk(str(folder))
    else:
        DatasetDict({"dev": data}).save_to_disk(str(folder))
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=r"expected a folder that `save_to_disk`.*can't be read"):
        load(str(folder))


def test_folders_and_ids_that_cant_be_used(data, tmp_path):
    DatasetDict({"dev": data, "test": data}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="holds the splits dev, test"):
        load(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"splits dev, test.*'tset'"):
        load(str(tmp_path / "d") + "@tset")
    with pytest.raises(DataError, match="expected a folder that `save_to_disk` wrote"):
        load(str(tmp_path))
    with pytest.raises(DataError, match="no file or folder here, and as a hub id it can't be had"):
        load("no-such-user/nothing")
    with pytest.raises(DataError, match="there is no folder"):
        load(str(tmp_path / "x" / "y.csv"))


def test_a_hub_out_of_reach_is_reported_at_once(monkeypatch, capfd):
    def no_such_name(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("raybrew.data.sources.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", no_such_name)
    # Its client would retry five times, in 23 seconds, and say so each time.
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited for the hub"))
    with pytest.raises(DataError, match="as a hub id it can't be had"):
        load("org/set:zh@dev")
    assert capfd.readouterr() == ("", "")
    assert datasets_config.HF_HUB_OFFLINE is False


def test_sets_that_are_made_by_scripts_are_read_from_the_hubs_parquet_files(data, monkeypatch):
    asked = []

    def load_dataset(name, config=None, **options):
        asked.append((name, config, options))
        if "revision" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found set.py")
        return data

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load("org/set:zh@dev") == ROWS
    branch = {"data_dir": "zh", "split": "dev", "revision": "refs/convert/parquet"}
    assert asked == [("org/set", "zh", {"split": "dev"}), ("org/set", None, branch)]
    with pytest.raises(DataError, match=r"can't be had: it is made by a script.*org/set:<config>"):
        load("org/set")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what we know nothing of is not hidden
        load("org/set:zh")


def task(**changes) -> Task:
    return Task(**{"name": "t", "train": "x", **changes})


def made(labels, **columns) -> Dataset:
    return Dataset.from_dict({"text": ["a"] * len(labels), "label": labels, **columns})


def test_classes_come_from_the_job_the_feature_the_strings_or_the_numbers(data):
    names, train, evaluation = read_labels(task(), made(["pos", "neg", None]), made(["neg"]))
    assert names == ("neg", "pos")
    assert train.tolist() == [1, 0, -1]
    assert evaluation is not None
    assert evaluation.tolist() == [0]
    names, train, _ = read_labels(task(), made([2, 0, -100]), None)
    assert names == ("0", "1", "2")
    assert train.tolist() == [2, 0, -1]
    names, train, _ = read_labels(task(label_names=["x", "y", "z"]), made(["z", "x"]), None)
    assert names == ("x", "y", "z")
    assert train.tolist() == [2, 0]
    names, train, _ = read_labels(task(), made([2.0, None, 0.0, float("nan")]), None)
    assert names == ("0", "1", "2")
    assert train.tolist() == [2, -1, 0, -1]
    coded = made(["u", "v"]).class_encode_column("label")
    assert read_labels(task(), coded, None)[0] == ("u", "v")


def test_classes_called_true_and_false_may_be_bools(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,true\nb,false\nc,\nd,TRUE\n")
    asked = task(label_names=["false", "True"])
    names, labels, _ = read_labels(asked, load_source(str(path), "t"), None)
    assert names == ("false", "True")
    assert labels.tolist() == [1, 0, -1, 1]
    with pytest.raises(DataError, match=r"row 0: expected a label.*True, true, no.*got True"):
        read_labels(task(label_names=["True", "true", "no"]), made([True]), None)


@pytest.mark.parametrize(
    ("train", "evaluation", "changes", "message"),
    [
        (
            [0, 1],
            [0, 2],
            {},
            r"tasks\[t\].eval: row 1: expected a label of the 2 classes 0, 1.*got 2",
        ),
        (["a", "b"], ["c"], {}, r"eval: row 0.*classes a, b.*'c'"),
        ([0, 1, 2], None, {"label_names": ["x", "y"]}, r"train: row 2.*x, y.*got 2"),
        ([0.5, 1.5], None, {}, r"train: row 0: expected a class as a name or.*got 0\.5, a float"),
        ([0, 1], [0.5], {}, r"eval: row 0.*got 0\.5"),
        ([None, [1]], None, {}, r"row 1.*got \[1\], a list"),
        ([{"a": 1}], None, {}, r"row 0.*got \{'a': 1\}, a dict"),
        ([0, 0], None, {}, "expected two classes or more.*got 0"),
        ([True, False], None, {"label_names": ["x", "y", "z"]}, "got True"),
        (
            [0, 1],
            None,
            {"label": "labell"},
            r"expected a column 'labell', got text, label; did you",
        ),
    ],
)
def test_labels_that_cant_be(train, evaluation, changes, message):
    other = None if evaluation is None else made(evaluation)
    with pytest.raises(DataError, match=message):
        read_labels(task(**changes), made(train), other)


def test_texts_and_pairs():
    rows = read_rows(task(text_pair="other"), made([0, 1], other=["b", "c"]), "tasks[t].train")
    assert rows.texts == ["a", "a"]
    assert rows.pairs == ["b", "c"]
    assert read_rows(task(), made([0]), "x").pairs is None
    with pytest.raises(
        DataError, match=r"tasks\[t\].train: row 1: expected text in 'other', got None"
    ):
        read_rows(task(text_pair="other"), made([0, 1], other=["b", None]), "tasks[t].train")
    with pytest.raises(DataError, match=r"expected a column 'txet'.*did you mean 'text'"):
        read_rows(task(text="txet"), made([0]), "tasks[t].train")


def test_jsonl_with_odd_lines_is_data_not_code(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "__import__('os').abort()", "label": 0}) + "\n")
    assert load(str(path))["text"] == ["__import__('os').abort()"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("train[1]", "train1"),
        ("part*", "part2"),
        ("part?", "part2"),
        ("{a,b}", "a"),
        ("**", "b"),
        ("[v1]/train", "v/train"),
        ("a b#c%20d/x", "x"),
        (".hidden/__x__/train", "train"),
        ("é@1", "é"),
    ],
)
def test_a_path_is_that_of_one_file_and_no_pattern(name, other, suffix, data, tmp_path):
    for rows, each in ((data.select([0]), other), (data, name)):
        path = tmp_path / f"{each}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix in ("csv", "tsv"):
            rows.to_csv(path, sep="\t" if suffix == "tsv" else ",")
        else:
            rows.to_parquet(path) if suffix == "parquet" else rows.to_json(path)
    assert load(str(tmp_path / f"{name}.{suffix}")) == ROWS


@pytest.mark.parametrize("name", ["[v1]", "part*", "a b#c%20d", "{a,b}"])
def test_a_folder_of_a_saved_data_set_may_have_any_name(name, data, tmp_path):
    data.save_to_disk(str(tmp_path / "plain"))
    (tmp_path / "plain").rename(tmp_path / name)
    assert load(str(tmp_path / name)) == ROWS


def test_a_path_that_datasets_reads_as_one_inside_of_another_is_refused(data, tmp_path):
    data.save_to_disk(str(tmp_path / "x"))
    (tmp_path / "x").rename(tmp_path / "x::y")
    with pytest.raises(DataError, match=r"train: expected a path without '::'.*got .*x::y; rename"):
        load(str(tmp_path / "x::y"))


def test_a_file_that_was_written_again_is_read_again(data, tmp_path):
    path = tmp_path / "rows.parquet"
    data.select([0]).to_parquet(path)
    assert len(load(str(path))["text"]) == 1
    data.to_parquet(path)
    assert load(str(path)) == ROWS


def test_a_cache_that_cannot_be_written_is_not_taken_for_a_fault_of_the_file(
    data, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    data.to_parquet(tmp_path / "rows.parquet")
    data.to_csv(tmp_path / "rows.csv")
    message = r"tasks\[t\].train: expected a cache for data sets .*file/cache: .*; set HF_HOME"
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "rows.parquet"))
    with pytest.raises(DataError, match=message):
        load("org/set")
    assert load(str(tmp_path / "rows.csv")) == ROWS  # needs none


def test_questions_may_begin_with_a_byte_order_mark(tmp_path):
    question = {"id": "1", "question": "q", "answers": [{"text": "b", "answer_start": 1}]}
    content = {"data": [{"paragraphs": [{"context": "abc", "qas": [question]}]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert load(str(path))["context"] == ["abc"]
