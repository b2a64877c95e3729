"""Random sequences of what processes do to a store, against a dictionary."""

import random
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raybrew.data.payload import DTYPES, Payload, Signal
from raybrew.labels.location import LocalLocation
from raybrew.labels.maintenance import compact
from raybrew.labels.shards import Shard, UnusableShardError
from raybrew.labels.store import LabelStore, SignalStore
from tests.labels.stores import make_keys, shard_files

WRITERS = 3
NUMBERS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def label_of(number: int, ragged: bool, dtype: np.dtype) -> np.ndarray:
    return np.arange(number % 5 if ragged else 3).astype(dtype) + number


def labels(numbers: list[int], ragged: bool, dtype: np.dtype) -> Payload:
    rows = [label_of(number, ragged, dtype) for number in numbers]
    if not ragged:
        return Payload(np.stack(rows))
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Payload(np.concatenate(rows), offsets)


class Processes(RuleBasedStateMachine):
    """Several openings of one store; what is on disk, and what each has not flushed."""

    @initialize(ragged=st.booleans(), dtype=st.sampled_from(sorted(DTYPES)))
    def open(self, ragged: bool, dtype: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.ragged, self.dtype = ragged, DTYPES[dtype]
        self.signal = Signal(dtype=dtype)
        self.stores = [self.opened() for _ in range(WRITERS)]
        # What each surely finds, and what it alone knows of; labels are lost with damage only.
        self.sure: list[set[int]] = [set() for _ in range(WRITERS)]
        self.waiting: list[set[int]] = [set() for _ in range(WRITERS)]
        self.on_disk: set[int] = set()

    def opened(self) -> SignalStore:
        return LabelStore(self.folder.name).signal("t", self.signal)

    @rule(who=st.integers(0, WRITERS - 1), numbers=NUMBERS)
    def append(self, who: int, numbers: list[int]) -> None:
        self.stores[who].append(make_keys(*numbers), labels(numbers, self.ragged, self.dtype))
        self.waiting[who] |= set(numbers)
        self.sure[who] |= set(numbers)

    @rule(who=st.integers(0, WRITERS - 1))
    def flush(self, who: int) -> None:
        self.stores[who].flush()
        if self.waiting[who]:  # else there is nothing to do, not even to look
            self.on_disk |= self.waiting[who]
            self.waiting[who] = set()
            self.sure[who] = set(self.on_disk)

    @rule(who=st.integers(0, WRITERS - 1))
    def refresh(self, who: int) -> None:
        self.stores[who].refresh()
        self.sure[who] = self.on_disk | self.waiting[who]

    @rule(who=st.integers(0, WRITERS - 1))
    def restart(self, who: int) -> None:
        self.stores[who] = self.opened()
        self.waiting[who] = set()
        self.sure[who] = set(self.on_disk)

    @rule()
    def merge(self) -> None:
        location, name = LocalLocation(Path(self.folder.name)), self.signal.name
        compact(location, f"t/{name}", at_least=2)

    def numbers_in(self, path: Path) -> set[int]:
        try:
            return set(Shard(path, f"t/{self.signal.name}").keys[:, 1].tolist())
        except UnusableShardError:  # harmed before, in a way that leaves it where it is
            return set()

    @rule(seed=st.integers(0, 99), cut=st.booleans())
    def damage(self, seed: int, cut: bool) -> None:
        """Harm one shard; every process that begins afterwards has to do without its labels."""
        files = shard_files(Path(self.folder.name))
        if not files:
            return
        path = random.Random(seed).choice(files)
        content = path.read_bytes()
        path.unlink()  # those that have it mapped go on with the old one
        if cut:
            path.write_bytes(content[:-16])
        else:
            path.write_bytes(content.replace(b"raybrew-labels-2", b"raybrew-labels-1"))
        # Counted in the files themselves: no more is lost than what the harmed one alone held.
        self.on_disk = set().union(*(self.numbers_in(other) for other in files if other != path))
        found = self.opened().contains(make_keys(*range(41)))
        assert {number for number in range(41) if found[number]} == self.on_disk
        self.sure = [set(waiting) for waiting in self.waiting]

    @invariant()
    def what_is_found_is_right_and_what_must_be_there_is_found(self) -> None:
        if not hasattr(self, "stores"):
            return
        asked = [7, *range(40, -1, -1), 7]
        for store, sure in zip(self.stores, self.sure, strict=True):
            found, payload = store.read(make_keys(*asked))
            there = [number for number, each in zip(asked, found, strict=True) if each]
            assert sure <= set(there)
            if payload is None:
                assert not there
                continue
            expected = labels(there, self.ragged, self.dtype)
            np.testing.assert_array_equal(payload.values, expected.values)
            assert payload.values.dtype == self.dtype
            if expected.offsets is not None:
                assert payload.offsets is not None
                np.testing.assert_array_equal(payload.offsets, expected.offsets)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(deadline=None, max_examples=40, stateful_step_count=20)
