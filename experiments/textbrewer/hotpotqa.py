"""Sentences of HotpotQA's passages as words, which teachers label: augmentation for CoNLL-2003.

    hotpotqa/hotpot_qa:distractor ──► distinct sentences ──► words ──► a parquet file

`python -m experiments.textbrewer.hotpotqa` needs the hub; rows that ask for the file say so.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from experiments.textbrewer.published import HOTPOTQA
from raybrew.data.sources import load_source, quiet_datasets
from raybrew.errors import DataError

SOURCE = "hotpotqa/hotpot_qa:distractor@train"
NUM_SENTENCES = 100_000
"""Seven times as many as CoNLL-2003 has for training."""

_WORD = re.compile(r"\w+(?:[.'’-]\w+)*|[^\w\s]")


def sentences(rows: Iterable[Mapping[str, Any]], limit: int) -> Dataset:
    """Return distinct sentences in the order in which they come, split into words.

    Args:
        rows: with `context`: of each passage its sentences.
        limit: so many at most.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        for passage in row["context"]["sentences"]:
            for sentence in map(str.strip, passage):
                if sentence and len(found) < limit:
                    found.setdefault(sentence, _WORD.findall(sentence))
        if len(found) == limit:
            break
    features = Features({"tokens": List(Value("string"))})
    return Dataset.from_dict({"tokens": list(found.values())}, features=features)


def main(arguments: list[str] | None = None) -> int:
    """Write the file; the exit code is 2 where the hub can't be had."""
    parser = argparse.ArgumentParser(prog="python -m experiments.textbrewer.hotpotqa")
    parser.add_argument("--source", default=SOURCE, help="hub id or file with HotpotQA's columns")
    parser.add_argument("--out", type=Path, default=HOTPOTQA)
    parser.add_argument("--limit", type=int, default=NUM_SENTENCES, help="sentences at most")
    options = parser.parse_args(arguments)
    try:
        made = sentences(load_source(options.source, "hotpotqa"), options.limit)  # type: ignore[arg-type]
    except DataError as error:
        print(f"hotpotqa: {error}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with quiet_datasets():
        made.to_parquet(str(options.out))
    print(f"{options.out}: {len(made)} sentences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
