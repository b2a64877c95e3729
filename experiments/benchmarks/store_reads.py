"""How fast labels come out of the store, and what memory that takes.

    python -m experiments.benchmarks store_reads

- Random batches of 32 of a store of 1,000,000 labels of three classes, in 8 shards: examples a
  second of one process, and the growth of the memory that is its own (anonymous pages; mapped
  shards are the page cache's) over millions of reads.
- Random batches of 32 of hidden states (MR's spread of lengths × 768, float32): bytes a second.
  `memcpy` of blocks of the same size takes turns with it. The promise is 1 GB/s or 0.8 of
  `memcpy`; the second is a figure of its own where the first is missed.

The store lies in a temporary folder and is warm: what is measured is the store, not the disk.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks.measuring import Record, interleaved, ratio
from experiments.benchmarks.payload_bytes import made_lengths
from raybrew.data.payload import Payload, Signal
from raybrew.labels.store import LabelStore, SignalStore

BATCH = 32
NUM_LABELS, CLASSES, SHARDS = 1_000_000, 3, 8
NUM_HIDDEN, WIDTH, SHARD_ROWS = 4096, 768, 512
REPETITIONS = 15
BATCHES_A_TURN = 2000
HIDDEN_BATCHES_A_TURN = 40
READS_FOR_MEMORY = 3_000_000
RATE_TARGET, BYTES_TARGET, MEMCPY_TARGET, GROWTH_TARGET = 200_000.0, 1.0, 0.8, 1.02


def records() -> list[Record]:
    """Measure both stores."""
    with tempfile.TemporaryDirectory() as folder:
        logits, keys = logit_store(Path(folder))
        found = [rate_of(logits, keys), growth_of(logits, keys)]
        hidden, keys = hidden_store(Path(folder))
        return found + bandwidth_of(hidden, keys)


def make_keys(count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 2**64, (count, 2), dtype=np.uint64)


def logit_store(folder: Path) -> tuple[SignalStore, np.ndarray]:
    generator = np.random.default_rng(0)
    keys = make_keys(NUM_LABELS, generator)
    store = LabelStore(folder).signal("logits", Signal())
    for part in np.array_split(np.arange(NUM_LABELS), SHARDS):
        values = generator.standard_normal((len(part), CLASSES), dtype=np.float32)
        store.append(keys[part], Payload(values))
        store.flush()
    return LabelStore(folder).signal("logits", Signal()), keys


def hidden_store(folder: Path) -> tuple[SignalStore, np.ndarray]:
    generator = np.random.default_rng(1)
    keys = make_keys(NUM_HIDDEN, generator)
    lengths = generator.choice(made_lengths(), NUM_HIDDEN) * WIDTH
    signal = Signal("hidden", (4,))
    store = LabelStore(folder).signal("hidden", signal)
    for start in range(0, NUM_HIDDEN, SHARD_ROWS):
        mine = lengths[start : start + SHARD_ROWS]
        offsets = np.concatenate([[0], np.cumsum(mine)]).astype(np.int64)
        values = generator.standard_normal(int(offsets[-1]), dtype=np.float32)
        store.append(keys[start : start + SHARD_ROWS], Payload(values, offsets))
        store.flush()
    return LabelStore(folder).signal("hidden", signal), keys


def batches(keys: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [keys[generator.integers(0, len(keys), BATCH)] for _ in range(count)]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_all(store: SignalStore, asked: list[np.ndarray]) -> int:
    total = 0
    for keys in asked:
        found, payload = store.read(keys)
        assert payload is not None
        assert found.all()
        total += payload.nbytes
    return total


def rate_of(store: SignalStore, keys: np.ndarray) -> Record:
    """Return examples a second."""
    read_all(store, batches(keys, BATCHES_A_TURN, seed=9))  # verified and in memory from here on
    asked = batches(keys, BATCHES_A_TURN, seed=1)
    times = interleaved(
        {"store": lambda: seconds(lambda: read_all(store, asked))}, REPETITIONS, what="labels"
    )["store"]
    rates = BATCH * BATCHES_A_TURN / np.array(times)
    low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75]).tolist()
    note = f"{NUM_LABELS:,} labels in {SHARDS} shards, one thread, fastest turn {max(rates):,.0f}"
    return Record(
        "store_random_reads", middle, "examples/s", RATE_TARGET, "≥", (low, high), len(times), note
    )


def own_bytes() -> int:
    """Return the memory that is this process's own: not backed by a file."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup: expected a line Anonymous")


def growth_of(store: SignalStore, keys: np.ndarray) -> Record:
    """Return own memory after millions of reads over that before."""
    asked = batches(keys, BATCHES_A_TURN, seed=2)
    read_all(store, asked)
    before, most, done = own_bytes(), 0, 0
    while done < READS_FOR_MEMORY:
        read_all(store, asked)
        done += BATCH * len(asked)
        most = max(most, own_bytes())
    note = f"most after {done:,} reads over that before them, {before / 1e6:.0f} MB of own memory"
    return Record("store_memory_growth", most / before, "×", GROWTH_TARGET, "≤", note=note)


def bandwidth_of(store: SignalStore, keys: np.ndarray) -> list[Record]:
    """Return bytes a second of hidden states, and their share of memcpy's if that is too few."""
    read_all(store, batches(keys, 4 * HIDDEN_BATCHES_A_TURN, seed=3))
    asked = batches(keys, HIDDEN_BATCHES_A_TURN, seed=4)
    nbytes = read_all(store, asked)
    block = nbytes // HIDDEN_BATCHES_A_TURN
    source = np.ones(block * 64, np.uint8)
    places = np.random.default_rng(5).integers(0, 63 * block, HIDDEN_BATCHES_A_TURN).tolist()

    def copy_all() -> None:
        for place in places:
            source[place : place + block].copy()

    times = interleaved(
        {
            "store": lambda: seconds(lambda: read_all(store, asked)),
            "memcpy": lambda: seconds(copy_all),
        },
        REPETITIONS,
        what="hidden states",
    )
    rates = nbytes / np.array(times["store"]) / 1e9
    low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75]).tolist()
    share = ratio(
        "store_hidden_states_to_memcpy",
        times["memcpy"],
        times["store"],
        to_reach=("≥", MEMCPY_TARGET),
    )
    note = (
        f"batches of {block / 1e6:.1f} MB; {share.value:.2f} of memcpy of as large blocks in turns"
    )
    rate = Record(
        "store_hidden_states", middle, "GB/s", BYTES_TARGET, "≥", (low, high), len(rates), note
    )
    return [rate] if rate.met else [rate, share]
