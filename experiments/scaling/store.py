"""The label store as it grows: built with the real code, in pieces, and measured."""

import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from raybrew.data.payload import Payload, Signal
from raybrew.labels.shards import write_shard
from raybrew.labels.store import FLUSH_BYTES, LabelStore, SignalStore

PIECE = 100_000
CLASSES = 2
APPENDED = 1_000_000
TEACHER, SIGNAL = "0" * 32, Signal()


@dataclass(frozen=True)
class StoreFigures:
    """A store of so many labels.

    Args:
        keys: labels.
        append_us: of one label, from memory to disk, microseconds.
        disk_bytes: of one label.
        open_s: of a process that begins to read it, files in the page cache.
        memory_bytes: of one label, in that process.
        batch_us: of reading 32 labels at random, microseconds.
    """

    keys: int
    append_us: float
    disk_bytes: float
    open_s: float
    memory_bytes: float
    batch_us: float


def measured_store(num_keys: int) -> StoreFigures:
    """Build a store and read it, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="raybrew-scaling-") as folder:
        # One process each: memory that was freed would hide what the next one needs.
        with get_context("spawn").Pool(1) as pool:
            append_s = pool.apply(_build, (folder, num_keys))
        with get_context("spawn").Pool(1) as pool:
            open_s, memory, batch_s = pool.apply(_read, (folder, num_keys))
        nbytes = sum(path.stat().st_size for path in Path(folder, TEACHER).rglob("*.arrow"))
    return StoreFigures(
        num_keys,
        append_s * 1e6,
        nbytes / num_keys,
        open_s,
        memory / num_keys,
        batch_s * 1e6,
    )


def _build(folder: str, num_keys: int) -> float:
    """Append up to `APPENDED` labels, write the shards of the others; return seconds a label."""
    store = _opened(folder)
    appended = min(num_keys, APPENDED)
    start = time.perf_counter()
    for first in range(0, appended, PIECE):
        keys = _keys(first, min(PIECE, appended - first))
        store.append(keys, _payload(len(keys)))
    store.flush()
    seconds = (time.perf_counter() - start) / appended
    shard = FLUSH_BYTES // (16 + 4 * CLASSES)
    for first in range(appended, num_keys, shard):
        keys = _keys(first, min(shard, num_keys - first))
        write_shard(LabelStore(folder).location, store.folder, keys, _payload(len(keys)))
    return seconds


def _payload(count: int) -> Payload:
    return Payload(np.ones((count, CLASSES), np.float32))


def _read(folder: str, num_keys: int) -> tuple[float, float, float]:
    _warm_up(f"{folder}/warm")
    before = _own_memory()
    start = time.perf_counter()
    store = _opened(folder)
    open_s = time.perf_counter() - start
    assert len(store) == num_keys
    generator = np.random.default_rng(1)
    times = []
    for _ in range(200):
        wanted = generator.integers(0, num_keys, 32)
        keys = np.concatenate([_keys(int(each), 1) for each in wanted])
        start = time.perf_counter()
        found, payload = store.read(keys)
        times.append(time.perf_counter() - start)
        assert found.all()
        assert payload is not None
    return open_s, _own_memory() - before, float(np.median(times[100:]))


def _warm_up(folder: str) -> None:
    """Have everything loaded that is loaded once, whatever the store's size."""
    keys = _keys(0, 10)
    first = _opened(folder)
    first.append(keys, _payload(len(keys)))
    first.flush()
    _opened(folder).read(keys)


def _opened(folder: str) -> SignalStore:
    return LabelStore(folder).signal(TEACHER, SIGNAL)


def _keys(first: int, count: int) -> np.ndarray:
    """Return keys as evenly spread as hashes are: a bijection of the number's 64 bits."""
    number = np.arange(first, first + count, dtype=np.uint64)
    words = []
    for salt in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):
        mixed = (number + np.uint64(1)) * np.uint64(salt)
        mixed ^= mixed >> np.uint64(31)
        words.append(mixed * np.uint64(0xBF58476D1CE4E5B9))
    return np.stack(words, axis=1)


def _own_memory() -> float:
    """Return the memory of this process that isn't a file's, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) * 1024
    raise OSError("/proc/self/status: expected RssAnon; the figures are measured on Linux")
