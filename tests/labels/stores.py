"""Labels of numbers, and what the tests of the store do with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from raybrew.data.payload import Payload, Signal
from raybrew.labels.remote import RemoteLocation, StoreSpec
from raybrew.labels.store import LabelStore, SignalStore


def make_keys(*numbers: int) -> np.ndarray:
    high = np.array(numbers, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.stack([high, np.array(numbers, np.uint64)], axis=1)


def logits(*numbers: float) -> Payload:
    return Payload(np.array([[n, n + 0.5] for n in numbers], np.float32))


def open_store(folder: Path, teacher: str = "t", **spec: Any) -> SignalStore:
    return LabelStore(StoreSpec(str(folder), **spec)).signal(teacher, Signal())


def remote_store(filesystem: pafs.FileSystem, cache: Path, **spec: Any) -> LabelStore:
    """A store in the folder `bucket/labels` of a file system."""
    settings = StoreSpec("test://bucket/labels", cache=str(cache), **spec)
    location = RemoteLocation(filesystem, "bucket/labels", settings.root, settings)
    return LabelStore(settings, location)


def write(store: SignalStore, *numbers: int) -> None:
    store.append(make_keys(*numbers), logits(*numbers))
    store.flush()


def values(store: SignalStore, *numbers: int) -> list[float]:
    found, payload = store.read(make_keys(*numbers))
    assert found.all()
    assert payload is not None
    return payload.values[:, 0].tolist()


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shard-*.arrow"))
