"""CSV and TSV: one value for each column in every row, or a message that names the line."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.data.formats import read_csv
from raybrew.data.sources import load_source
from raybrew.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes, suffix: str = "csv") -> dict[str, list]:
        path = tmp_path / f"train.{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_source(str(path), "tasks[t].train").to_dict()  # type: ignore[return-value]

    return read


def test_quotes_in_a_tsv_file_are_characters_as_any_other(read):
    rows = [
        ('He wrote "hello', 1),
        ('"Yes , " she wrote', 0),
        ('" No way .', 1),
        ('fine "', 0),
        ('""', 1),
        ('""quoted"" twice', 0),
        ("a \\ backslash, a comma", 1),
    ]
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    texts, labels = zip(*rows, strict=True)
    assert read(content, "tsv") == {"text": list(texts), "label": list(labels)}
    assert read(content.replace("\n", "\r\n"), "TSV") == read(content, "tsv")


def test_a_tsv_file_written_with_quoting_is_refused(read):
    message = r"line 3: expected values without quoting.*'\"He wrote \"\"hello\"\"\"', whose quotes"
    with pytest.raises(DataError, match=message):
        read('text\tlabel\nfine\t1\n"He wrote ""hello"""\t0\n', "tsv")
    with pytest.raises(DataError, match=r"line 2: expected 2 values.*got 1: '\"two'; values can't"):
        read('text\tlabel\n"two\nlines"\t1\n', "tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nHello, world,1\nbye,0\n", r"line 2: expected 2 values, .* got 3: 'Hello"),
        ("text,label\nbye,0\nHello, world,1\n", r"line 3: expected 2 values, .* got 3: 'Hello"),
        ("text,label\na,0,\nb,1,\n", r"line 2: expected 2 values, .* \('text, label'\), got 3"),
        ("text,label\nbye,0\nso long\n", r"line 3: expected 2 values, .* got 1: 'so long'; quote"),
        ('text,label\n"two\nlines",1\nso long\n', r"line 4: expected 2 values"),
        (
            'text,label\nfine,0\n"He wrote \\"hi, you\\" ok",1\n',
            r"line 3: .* quote inside of it dou",
        ),
        ('text,label\nfine,0\n"open,1\nb,0\n', r"line 3: unexpected end of data; a value that"),
        ('text,label\n"He left, she wrote,1\nfoo "bar",0\n', r"line 2: ',' expected after '\"'"),
        ("text,text\na,b\n", r"line 1: expected columns of different names, got 'text' twice"),
        ("text,label\nä,1\n".encode("latin-1"), r"'utf-8' codec can't decode"),
        ("text,label\nä,1\n".encode("utf-16"), r"'utf-8' codec can't decode"),
    ],
)
def test_what_a_csv_file_cant_hold(content, message, read):
    with pytest.raises(DataError, match=rf"tasks\[t\].train: .*can't be read as .csv: {message}"):
        read(content)


def test_what_a_csv_file_may_hold(read):
    rows = {"text": ["a, b", 'say "yes"', "two\nlines", "nul \0"], "label": [0, 1, 2, 3]}
    content = 'text,label\n"a, b",0\n\n"say ""yes""",1\n"two\nlines",2\nnul \0,3\n'
    assert read(content) == rows
    assert read("\ufeff" + content) == rows
    assert read(content.replace("\n", "\r\n"))["text"] == [
        *rows["text"][:2],
        "two\r\nlines",
        "nul \0",
    ]
    # As pandas writes a frame with its index.
    assert read(",text\n0,a\n1,b\n") == {"Unnamed: 0": [0, 1], "text": ["a", "b"]}
    long = "x" * 200_000  # more than the csv module takes by default
    assert read(f"text,label\n{long},1\n") == {"text": [long], "label": [1]}


@pytest.mark.parametrize(
    ("values", "typed"),
    [
        (["1", " 2", "+3", ""], [1, 2, 3, None]),
        (["1", "2.5", "-.5", "1e-3", "inf", "NA"], [1.0, 2.5, -0.5, 0.001, float("inf"), None]),
        (["true", "False", ""], [True, False, None]),
        (["007", "12"], ["007", "12"]),
        (["123456789012345678901"], ["123456789012345678901"]),
        (["2020-01-01", "12"], ["2020-01-01", "12"]),
        (["1", "one", "NA", ""], ["1", "one", "NA", None]),
        (["NA", "", "None"], ["NA", None, "None"]),
    ],
)
def test_types_follow_from_all_values_of_a_column(values, typed, read):
    content = "id,value\n" + "".join(f"k,{value}\n" for value in values)
    assert read(content)["value"] == typed


def test_a_type_holds_for_the_whole_of_a_long_column(read):
    """A word after 20,000 numbers makes them texts, as they were written."""
    values = [str(number) for number in range(20_000)] + ["none of these"]
    assert read("id,value\n" + "".join(f"k,{value}\n" for value in values))["value"] == values


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda each: f"x{each}")


@given(rows=st.lists(st.tuples(texts, texts), min_size=1))
def test_what_the_csv_module_writes_is_read_back(rows, tmp_path_factory):
    stream = io.StringIO()
    csv.writer(stream).writerows([("a", "b"), *rows])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(stream.getvalue().encode())
    read = read_csv(path)
    assert list(zip(read["a"][:], read["b"][:], strict=True)) == rows


# CoNLL's form: a word a line, its tag last.

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

-DOCSTART- -X- -X- O

Peter\tNNP\tB-NP\tB-PER
"""


def test_tagged_words(read):
    assert read(CONLL, "txt") == {
        "tokens": [["EU", "rejects"], ["Peter"]],
        "tags": [["B-ORG", "O"], ["B-PER"]],
    }
    assert read(CONLL.replace("\n", "\r\n").rstrip(), "txt") == read(CONLL, "txt")
    # What is to be tagged holds words alone.
    assert read("EU\nrejects\n\n\nPeter\n", "txt") == {"tokens": [["EU", "rejects"], ["Peter"]]}


def test_a_text_is_not_taken_for_tagged_words(read):
    with pytest.raises(DataError, match=r"line 2: expected a word, .* in 3 values .*CoNLL's form"):
        read("once upon a\ntime there was a\n", "txt")
    with pytest.raises(DataError, match="empty data set"):
        read("-DOCSTART- O\n\n", "txt")
