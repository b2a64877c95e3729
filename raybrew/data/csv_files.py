"""CSV and TSV files, where a text is what stands there and a number may be missing.

number columns    1.5  nan  NA  (blank)   ──►  1.5   null   null   null
text columns      yes  nan  NA  (blank)   ──►  yes   nan    NA     null
"""

from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

__all__ = ["read_csv"]

_MISSING = [
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
]
"""What pandas takes for a missing value, in any column."""


def read_csv(place: Path) -> Dataset:
    """Read a file; the values of `.tsv` are separated by tabs.

    Raises:
        DatasetGenerationError, ValueError, OSError: it can't be read.
    """
    options: dict[str, Any] = {"sep": "\t"} if place.suffix.lower() == ".tsv" else {}
    loaded = _load(place, options)
    holes = {name for name in loaded.column_names if loaded.data.column(name).null_count}
    texts = {name for name in loaded.column_names if _may_be_text(loaded, name)}
    if not holes & texts:
        return loaded
    # A class may be called `None`: read again, with only blanks missing in texts.
    words = {name: [""] if name in texts else _MISSING for name in loaded.column_names}
    return _load(place, {**options, "keep_default_na": False, "na_values": words})


def _load(place: Path, options: dict[str, Any]) -> Dataset:
    loaded = datasets.load_dataset("csv", data_files=str(place), split="train", **options)
    assert isinstance(loaded, Dataset)
    return loaded


def _may_be_text(loaded: Dataset, name: str) -> bool:
    """Whether a column holds text, or nothing at all, which says nothing of its type."""
    if loaded.data.column(name).null_count == len(loaded):
        return True
    return getattr(loaded.features[name], "dtype", None) in ("string", "large_string")
