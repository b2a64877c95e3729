"""On a GPU: three teachers of BERT-base's size and a T4-tiny student, labels first and on the way.

    python -m experiments.benchmarks gpu

Weights are random, sentences MR's. A teacher's utilisation is the rate of the floating-point
operations that its real tokens need, over the rate of a large matrix product in the same precision
in the same run. Without a GPU it refuses: figures of a CPU would say nothing here.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig

from experiments.benchmarks.measuring import Record
from experiments.benchmarks.student_setting import Setting, label, load, mr_setting, sizes_of
from raybrew.errors import ConfigError
from raybrew.runs.resolve import distill_plan
from raybrew.training.build import build_training
from raybrew.training.world import World
from tests.training.in_process import LocalPool, Recorder

BASE = sizes_of(12, 768, 12, 3072)
T4_TINY = sizes_of(4, 312, 12, 1200)
NUM_ROWS, ROUNDS, NUM_EPOCHS = 9000, 5, 3


def records() -> list[Record]:
    if not torch.cuda.is_available():
        raise ConfigError("benchmark gpu: expected a CUDA device, got none; run it on one")
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        setting = mr_setting(Path(folder), NUM_ROWS, BASE, T4_TINY, batch_tokens=65536)
        return measured(setting, torch.device("cuda"), ROUNDS, NUM_EPOCHS)


def measured(setting: Setting, device: torch.device, rounds: int, num_epochs: int) -> list[Record]:
    """Measure on a device; on a CPU this is good for a test alone."""
    job = setting.job("store", "bfloat16", num_epochs=num_epochs, precision="bf16")
    preparation = setting.prepared(job)
    view = preparation.tasks[0].split("train").student
    need = forward_flops(view.lengths, BertConfig(**setting.teacher)) * len(preparation.teachers)
    shares, rates = [], []
    for number in range(rounds):
        peak = matmul_rate(device)
        pool = LocalPool(preparation, f"{job.labels.store}-{number}", str(device))
        load(pool)
        start = time.perf_counter()
        label(preparation, pool)
        seconds = time.perf_counter() - start
        shares.append(need / seconds / peak)
        rates.append(view.lengths.sum() * len(preparation.teachers) / seconds)
    warm = setting.job(f"store-{rounds - 1}", "bfloat16", num_epochs=num_epochs, precision="bf16")
    training = build_training(distill_plan(warm, preparation), World(device=device), None)
    start = time.perf_counter()
    training.run(Recorder())
    step_s = (time.perf_counter() - start) / training.num_steps
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75]).tolist()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [
        Record(
            name="teachers' utilisation, labels first",
            value=middle,
            unit="of a matrix product's rate",
            target=0.3,
            bound="≥",
            spread=(low, high),
            repetitions=rounds,
            note=f"{name}, {len(view)} sentences, {len(preparation.teachers)} teachers in bf16, "
            f"{setting.batch_tokens} tokens a forward, {np.median(rates):,.0f} tokens/s",
        ),
        Record(
            name="student's wait for labels on a GPU, warm",
            value=training.waited_s / training.num_steps / step_s,
            unit="of the step",
            target=0.01,
            bound="≤",
            note=f"{name}, bf16, batches of 32, {step_s * 1e3:.1f} ms a step",
        ),
    ]


def forward_flops(lengths: np.ndarray, config: BertConfig) -> float:
    """Return the operations of one forward of every example, of its real tokens alone.

    A token costs 2 a weight of the layers, and 4·L·H a layer for scores and their sums.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    tokens = lengths.astype(float)
    return float((2 * weights * tokens + 4 * layers * hidden * tokens**2).sum())


def matmul_rate(device: torch.device, size: int = 8192, repetitions: int = 20) -> float:
    """Return operations a second of a product of two bf16 matrices."""
    size, repetitions = (size, repetitions) if device.type == "cuda" else (256, 2)
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        torch.matmul(one, one)
    _finish(device)
    start = time.perf_counter()
    for _ in range(repetitions):
        torch.matmul(one, one)
    _finish(device)
    return 2 * size**3 * repetitions / (time.perf_counter() - start)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
