"""What a second replica brings: eight ranks that ask one replica, or two, of a teacher that sleeps.

    python -m experiments.benchmarks pool_throughput

The teacher is a tiny BERT whose every forward takes FORWARD_S longer, asleep: so the machine has
room for both replicas, and what is measured is the routing, gathering and waiting around them.
Each rank is a process with two requests under way, as `LabelSource` has. Every question is about
examples that were not requested before. The pools of one and of two replicas take turns.
"""

import logging
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from transformers import BertConfig, BertForSequenceClassification

from experiments.benchmarks.measuring import Record, interleaved, ratio
from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Signal
from raybrew.data.split import Padding
from raybrew.teachers.client import PoolClient
from raybrew.teachers.pool import TeacherPool
from raybrew.teachers.router_actor import PoolAddress
from raybrew.teachers.teacher import ResolvedTeacher
from tests.made import made_teacher

RANKS, REQUESTS, ROWS, LENGTH = 8, 8, 32, 16
ROWS_PER_FORWARD = 16
FORWARD_S = 0.08
REPETITIONS = 7
TARGET = 1.9
SIGNALS = (Signal(),)


def sleepy(batch: Any, outputs: Any) -> dict[str, Any]:
    """An adaptor: the forward is over when it returns."""
    time.sleep(FORWARD_S)
    return {"logits": outputs.logits}


def view_of(generator: np.random.Generator, rows: int) -> EncodedView:
    return EncodedView(
        generator.integers(5, 100, rows * LENGTH).astype(np.int32),
        None,
        np.arange(rows + 1) * LENGTH,
        generator.integers(0, 2**63, (rows, 2)).astype(np.uint64),
    )


class Rank:
    """Asks as a student's rank does: the next request goes out before the last one is answered."""

    def __init__(self, addresses: dict[str, PoolAddress], seed: int):
        self._clients = {name: PoolClient(address) for name, address in addresses.items()}
        self._generator = np.random.default_rng(seed)

    def ask(self, pool: str) -> int:
        views = [view_of(self._generator, ROWS) for _ in range(REQUESTS)]
        asked, rows = [], 0
        for view in views:
            asked.append(self._clients[pool].ask("t", view, SIGNALS))
            if len(asked) > 1:
                rows += len(asked.pop(0).result()[SIGNALS[0].name])
        return rows + sum(len(each.result()[SIGNALS[0].name]) for each in asked)


def spec_of(folder: Path) -> ResolvedTeacher:
    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return made_teacher(
        name="t",
        model=str(folder),
        fingerprint="sleepy",
        kind="sequence-classification",
        dtype="float32",
        batch_tokens=ROWS_PER_FORWARD * LENGTH,
        padding=Padding(0),
        num_threads=1,
        adaptor=sleepy,
    )


def throughput(ranks: list[Any], pool: str) -> float:
    """Return examples a second that the ranks together got."""
    start = time.perf_counter()
    rows = sum(ray.get([rank.ask.remote(pool) for rank in ranks]))
    assert rows == RANKS * REQUESTS * ROWS
    return rows / (time.perf_counter() - start)


def records() -> list[Record]:
    ray.init(num_cpus=4, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    pools: dict[str, TeacherPool] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
            spec = spec_of(Path(folder, "model"))
            for count in (1, 2):
                teacher = replace(
                    spec,
                    config=spec.config.model_copy(update={"replicas": count}),
                    view="student",
                    signals=SIGNALS,
                    resources={"CPU": 0.5},
                )
                pools[str(count)] = TeacherPool([teacher], str(Path(folder, f"store-{count}")))
                pools[str(count)].wait()
            return [_measured(pools)]
    finally:
        for pool in pools.values():
            pool.stop()
        ray.shutdown()


def _measured(pools: dict[str, TeacherPool]) -> Record:
    actor: Any = ray.remote(Rank)
    addresses = {name: pool.address for name, pool in pools.items()}
    ranks = [actor.options(num_cpus=0).remote(addresses, seed) for seed in range(RANKS)]
    for name in pools:  # warm: connections, first forwards
        throughput(ranks, name)
    got = interleaved(
        {name: partial(throughput, ranks, name) for name in pools},
        REPETITIONS,
        what="replicas",
    )
    fill = {name: pool.metrics()["t"]["batch_fill"] for name, pool in pools.items()}
    ideal = ROWS_PER_FORWARD / FORWARD_S
    return ratio(
        "throughput of 2 replicas / 1, 8 ranks asking",
        got["2"],
        got["1"],
        to_reach=("≥", TARGET),
        note=(
            f"forwards asleep for {FORWARD_S * 1000:.0f} ms; medians {np.median(got['1']):.0f} and "
            f"{np.median(got['2']):.0f} examples/s, one replica can give {ideal:.0f}; batches "
            f"{fill['1']:.2f} and {fill['2']:.2f} full"
        ),
    )


def main() -> None:
    for record in records():
        print(record.to_plain())


if __name__ == "__main__":
    main()
