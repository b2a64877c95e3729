"""Placeholder version."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash


@dataclass(frozen=True)
class EncodedView:
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray
    keys: np.ndarray

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def lengths(self):
        return np.diff(self.offsets)

    def take(self, rows):
        starts, lengths = self.offsets[rows], self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        types = None if self.token_type_ids is None else self.token_type_ids[source]
        return EncodedView(self.input_ids[source], types, offsets, self.keys[rows])


def encode(tokenizer, texts, pairs, max_length):
    out = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    ids = out["input_ids"]
    offsets = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    flat = np.concatenate([np.array(i, np.int32) for i in ids])
    types = None
    if "token_type_ids" in out:
        types = np.concatenate([np.array(i, np.int8) for i in out["token_type_ids"]])
    keys = np.array(
        [
            [xxhash.xxh3_64_intdigest(np.array(i, np.int32).tobytes(), s) for s in (0, 1)]
            for i in ids
        ],
        np.uint64,
    )
    return EncodedView(flat, types, offsets, keys), 0


@dataclass(frozen=True)
class EncodedSplit:
    views: dict
    labels: np.ndarray

    def save(self, path):
        path.mkdir(parents=True, exist_ok=True)
        np.save(path / "labels.npy", self.labels)
        for n, v in self.views.items():
            np.savez(path / f"{n}.npz", **{k: a for k, a in vars(v).items() if a is not None})

    @staticmethod
    def load(path):
        path = Path(path)
        views = {}
        for f in path.glob("*.npz"):
            z = np.load(f)
            views[f.stem] = EncodedView(
                z["input_ids"],
                z["token_type_ids"] if "token_type_ids" in z else None,
                z["offsets"],
                z["keys"],
            )
        return EncodedSplit(views, np.load(path / "labels.npy"))


def same_vocabulary(a, b):
    return a.get_vocab() == b.get_vocab()
