"""Data sets: a file, a saved data set, the hub, or one in memory; transfer rows are appended.

train     text  label ──┐
transfer  text  (null) ─┴──► one data set; labels of transfer rows are not read
"""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
import huggingface_hub.constants as hub
import numpy as np
import xxhash
from datasets import Dataset, DatasetDict, Features, Split, concatenate_datasets
from datasets import config as datasets_config
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError

from raybrew.config import Task
from raybrew.config.paths import DATA_FILES, DATA_ID, missing_data
from raybrew.config.section import data_path, held_by, try_to_write, user_path
from raybrew.data.columns import read_column
from raybrew.data.formats import is_squad, read_conll, read_csv, read_squad
from raybrew.errors import DataError

_READERS = {"csv": read_csv, "conll": read_conll}
PARQUET_BRANCH = "refs/convert/parquet"


def hub_in_reach() -> bool:
    """Look the hub's name up, which saves the 23 s for which its client retries."""
    if hub.is_offline_mode():
        return False
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def load_source(source: str | Dataset, what: str) -> Dataset:
    """Load a data set.

    Args:
        source: a live data set; a path of a parquet, jsonl, json (also SQuAD's form), csv, tsv or
            txt (CoNLL's form) file, never a pattern; a folder that `save_to_disk` wrote, with
            `@split` where it holds several; or a hub id `name[:config][@split]`, split `train` if
            left out.
        what: the job's field that names it, for messages.

    Returns:
        At least one row.

    Raises:
        DataError: it isn't there, can't be read, or has no rows.
    """
    loaded = source if isinstance(source, Dataset) else _load(source, what)
    if not len(loaded):
        shown = source if isinstance(source, str) else "a datasets.Dataset"
        raise DataError(f"{what}: expected rows, got an empty data set ({shown})")
    # As Python's values: a format of tensors or arrays would change what the columns hold.
    return loaded.with_format(None) if loaded.format["type"] is not None else loaded


def _load(source: str, what: str) -> Dataset:
    path, split = data_path(source)
    place = user_path(path, what, DataError)
    if "::" in str(place.absolute()) and place.exists():
        raise DataError(
            f"{what}: expected a path without '::', which `datasets` reads as a file inside of an "
            f"archive, got {place}; rename it, or its folder"
        )
    with quiet_datasets():
        if place.is_dir():
            return _saved(place, split, what)
        if place.suffix.lower() in DATA_FILES:
            if split:
                raise DataError(
                    f"{what}: expected a file without split, or a folder or hub id as path@split, "
                    f"got @{split} of the file {place}"
                )
            return _file(place, what)
        if place.exists():
            raise DataError(
                f"{what}: expected a folder that `save_to_disk` wrote, or a file of the type "
                f"{', '.join(DATA_FILES)}, got {place}"
            )
        match = DATA_ID.fullmatch(path)
        if match is None or path.startswith((".", "/", "~")):
            raise missing_data(place, what)
        return _hub(match["name"], match["config"], split or "train", what)


def _file(place: Path, what: str) -> Dataset:
    if not place.is_file():
        raise missing_data(place, what)
    if not place.stat().st_size:
        raise DataError(f"{what}: expected rows, got an empty file ({place})")
    builder = DATA_FILES[place.suffix.lower()]
    try:
        if place.suffix.lower() == ".json" and is_squad(place):
            return read_squad(place, what)
        if builder in _READERS:
            return _READERS[builder](place)
        _check_cache(what)
        return _built(builder, place)
    except DataError:
        raise
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = _reason(error)
        if "corresponds to no data" in reason:
            raise DataError(f"{what}: expected rows, got an empty data set ({place})") from error
        raise DataError(f"{what}: {place} can't be read as {place.suffix}: {reason}") from error


def _check_cache(what: str) -> None:
    """Refuse a cache that can't be written: `datasets` converts files into it."""
    cache = Path(datasets_config.HF_DATASETS_CACHE)
    try:
        try_to_write(cache)
    except OSError as error:
        raise DataError(
            f"{what}: expected a cache for data sets that can be written, got {cache}: {error}; "
            "set HF_HOME, or HF_DATASETS_CACHE, to another folder"
        ) from error


def _built(builder: str, place: Path) -> Dataset:
    """Read one file by a builder of `datasets`."""
    status = place.stat()
    # A list of files is taken as it is, while a path would be read as a pattern, in which a [ or *
    # stands for other files; the cache knows by the metadata whether the file has changed.
    written = (str(status.st_mtime_ns), str(status.st_size))
    files = DataFilesDict({"train": DataFilesList([str(place.absolute())], [written])})
    read = {"json": Dataset.from_json, "parquet": Dataset.from_parquet}[builder]
    loaded = read(files, split=Split.TRAIN)  # pyright: ignore[reportArgumentType]
    assert isinstance(loaded, Dataset)
    return loaded


def _saved(place: Path, split: str, what: str) -> Dataset:
    try:
        loaded = datasets.load_from_disk(str(place))
    # KeyError, TypeError, AttributeError: of JSON files with other content, which need a word more.
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = f"; it can't be read ({type(error).__name__}: {error})"
        raise DataError(
            f"{what}: expected a folder that `save_to_disk` wrote, got {place}, which holds "
            f"{held_by(place)}{'' if isinstance(error, ValueError | OSError) else reason}"
        ) from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise DataError(
                f"{what}: {place} holds the splits {', '.join(map(str, loaded))}; expected one of "
                f"them as {place}@split, got {split or 'none'!r}"
            )
        return loaded[split]
    if split:
        raise DataError(f"{what}: {place} holds one data set without splits, got @{split}")
    return loaded


def _hub(name: str, config: str | None, split: str, what: str) -> Dataset:
    _check_cache(what)
    offline = datasets_config.HF_HUB_OFFLINE
    # Where the hub is out of reach, the cache is read at once, without retries that are logged.
    datasets_config.HF_HUB_OFFLINE = offline or not hub_in_reach()
    try:
        loaded = _from_hub(name, config, split)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise DataError(
            f"{what}: {name!r} is no file or folder here, and as a hub id it can't be had: "
            f"{_reason(error)}"
        ) from error
    finally:
        datasets_config.HF_HUB_OFFLINE = offline
    assert isinstance(loaded, Dataset)
    return loaded


def _from_hub(name: str, config: str | None, split: str) -> Any:
    try:
        return datasets.load_dataset(name, config, split=split)
    except RuntimeError as error:
        # One that is made by a script, which `datasets` no longer runs: the hub keeps its rows as
        # parquet files on a branch, a folder for each configuration.
        if "scripts are no longer supported" not in str(error):
            raise
        if config is None:
            raise ValueError(
                f"it is made by a script; name its configuration, {name}:<config>, so that the "
                "hub's parquet files of it are read"
            ) from error
        return datasets.load_dataset(name, data_dir=config, split=split, revision=PARQUET_BRANCH)


def _reason(error: Exception) -> str:
    """Return the first line of an error's message; of one that the builder wraps, its cause's."""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    return (str(cause or error).strip().splitlines() or [type(cause or error).__name__])[0]


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from showing bars and warnings."""
    shown, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def held_out(rows: Dataset, task: Task, what: str) -> tuple[Dataset, Dataset]:
    """Set the share `task.eval_fraction` of the distinct labelled texts apart.

    Args:
        rows: of `task.train`.
        task: names the columns, the share and the seed.
        what: the job's field of the rows, for messages.

    Returns:
        The training rows and the evaluation rows, each in their order. Texts whose hash with the
        seed is smallest are set apart, so that few change sides when rows are added.

    Raises:
        DataError: a column is missing, or there are fewer than two labelled texts.
    """
    names = [name for name in (task.text, task.text_pair) if name is not None]
    columns = [read_column(rows, name, what) for name in names]
    keys = np.array(
        [_text_hash(task.eval_seed, row) for row in zip(*columns, strict=True)], np.uint64
    )
    labels = rows[task.label][:] if task.label in rows.column_names else [0] * len(rows)
    known = np.array([value is not None and value == value and value != -100 for value in labels])
    distinct = np.unique(keys[known])
    if len(distinct) < 2:
        raise DataError(
            f"{what}: expected two different labelled texts or more to set a share of "
            f"{task.eval_fraction} apart for evaluation, got {len(distinct)}"
        )
    assert task.eval_fraction is not None, task.name
    count = min(max(1, round(task.eval_fraction * len(distinct))), len(distinct) - 1)
    apart = np.isin(keys, distinct[:count])
    return rows.select(np.flatnonzero(~apart)), rows.select(np.flatnonzero(apart))


def _text_hash(seed: int, texts: Sequence[Any]) -> int:
    # ASCII, in which a text of any characters, also halves of pairs, can be written.
    return xxhash.xxh3_64_intdigest(json.dumps(texts, default=str).encode(), seed)


def with_transfer(train: Dataset, task: Task, supplied: Sequence[str], what: str) -> Dataset:
    """Append the rows of `task.transfer`, without labels, to the training rows.

    Args:
        train: N rows.
        task: names the sources and the columns.
        supplied: further columns that are read, those of teachers' logits.
        what: the job's task, for messages.

    Returns:
        The N rows first; of either, the columns that are read.

    Raises:
        DataError: a source lacks a column, or holds something else in it.
    """
    if not task.transfer:
        return train
    named = (task.text, task.text_pair, task.teacher_column, *supplied)
    read = list(dict.fromkeys(name for name in named if name is not None))
    _check_columns(train, read, f"{what}.train")
    columns = [name for name in (*read, task.label) if name in train.column_names]
    features = Features({name: train.features[name] for name in columns})
    parts = [
        _transfer_rows(source, read, features, f"{what}.transfer[{number}]")
        for number, source in enumerate(task.transfer)
    ]
    return concatenate_datasets([train.select_columns(columns), *parts])


def _transfer_rows(
    source: str | Dataset, read: Sequence[str], features: Features, what: str
) -> Dataset:
    rows = load_source(source, what)
    _check_columns(rows, read, what)
    rows = rows.select_columns(list(read))
    for name in features.keys() - set(read):
        rows = rows.add_column(name, [None] * len(rows), feature=features[name])
    try:
        with quiet_datasets():
            return rows.cast(Features({name: features[name] for name in rows.column_names}))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what}: expected columns as those of the training rows, "
            f"{', '.join(f'{name}: {features[name]}' for name in read)}, got: {error}"
        ) from error


def _check_columns(rows: Dataset, names: Sequence[str], what: str) -> None:
    for name in names:
        read_column(rows.select([0]), name, what)
