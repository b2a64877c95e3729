"""The student that benchmarks train, its memory, and its figures on a GPU."""

import ctypes
import gc
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, get_scheduler

import raybrew as rb
from experiments.benchmarks.measuring import Record
from experiments.data import encoder, mr
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding, collate
from raybrew.errors import ConfigError
from raybrew.labels.remote import StoreSpec
from raybrew.models.pretrained import quiet_transformers
from raybrew.runs.resolve import resolve_job
from raybrew.training.build import build_training
from raybrew.training.job import ResolvedJob
from raybrew.training.loop import StudentTraining
from raybrew.training.world import World
from tests.training.in_process import LocalPool, Recorder

# What the figures of the student are measured on: MR's sentences, a BERT-tiny student.
#
# Sizes are those of the published models, weights are random: speed doesn't depend on them. The
# whole distillation runs in one process, without Ray, so that what is compared is the work itself.


def sizes_of(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, Any]:
    """Return what BERT's configuration calls the sizes of a model."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


SMALLEST = sizes_of(1, 32, 1, 128)
TINY = sizes_of(2, 128, 2, 512)
MINI = sizes_of(4, 256, 4, 1024)
MINILM = sizes_of(6, 384, 12, 1536)
BATCH_SIZE = 32
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Setting:
    """Where teachers, data and stores of a benchmark are.

    Args:
        folder: everything is below it.
        rows: training sentences, with columns `text` and `label`.
        tokenizer: folder of the tokenizer that all share.
        teacher: sizes of each of the three teachers.
        student: sizes of the student.
        batch_tokens: of a teacher's forward.
    """

    folder: Path
    rows: Dataset
    tokenizer: str
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    batch_tokens: int = 512

    def job(self, store: str, teacher_dtype: Any = "float32", **training: Any) -> rb.DistillJob:
        """Return the job, with its labels in a store of this name."""
        return rb.DistillJob(
            tasks=[rb.Task(name="mr", train=self.rows, max_length=128)],
            teachers=[
                rb.Teacher(
                    name=name,
                    task="mr",
                    model=self._model(name, seed),
                    batch_tokens=self.batch_tokens,
                    dtype=teacher_dtype,
                )
                for seed, name in enumerate("abc")
            ],
            student=rb.Student(config=dict(self.student)),
            distillation=rb.DistillationConfig(
                temperature=TEMPERATURE, scale_t2=False, hard_label_weight=0.5
            ),
            training=rb.TrainingConfig(
                **{
                    "batch_size": BATCH_SIZE,
                    "learning_rate": 1e-4,
                    "num_threads": 1,
                    # Nor does what ours is compared with save anything.
                    "checkpoint_every": 10**6,
                    **training,
                }
            ),
            labels=rb.LabelConfig(store=str(self.folder / store), window=16),
            tracking=rb.TrackingConfig(progress=False),
        )

    def prepared(self, job: rb.DistillJob) -> ResolvedJob:
        """Encode the data."""
        return resolve_job(job, self.folder / "data")

    def training(
        self, job: rb.DistillJob, preparation: ResolvedJob
    ) -> tuple[StudentTraining, LocalPool]:
        """Put the training together; the teachers are loaded when they are asked, or by `load`."""
        pool = LocalPool(preparation, job.labels.store)
        job_here = replace(preparation, config=job, store=StoreSpec.of(job.labels))
        return build_training(job_here, World(), pool), pool

    def _model(self, name: str, seed: int) -> str:
        folder = self.folder / name
        if not folder.exists():
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            torch.manual_seed(seed)
            names = self.rows.features["label"].names
            sizes: dict[str, Any] = {
                "vocab_size": len(tokenizer),
                "id2label": dict(enumerate(names)),
                "label2id": {name: number for number, name in enumerate(names)},
                **self.teacher,
            }
            config = BertConfig(**sizes)
            with quiet_transformers():
                BertForSequenceClassification(config).save_pretrained(folder)
            tokenizer.save_pretrained(str(folder))
        return str(folder)


def mr_setting(
    folder: Path,
    num_rows: int,
    teacher: Mapping[str, Any],
    student: Mapping[str, Any] = TINY,
    batch_tokens: int = 512,
) -> Setting:
    """Return a setting on so many of MR's training sentences."""
    rows = mr()["train"].select(range(num_rows))
    return Setting(folder, rows, str(encoder()), teacher, student, batch_tokens)


def load(pool: LocalPool) -> None:
    """Load the teachers, which takes longer than what is measured."""
    for replica in pool.replicas.values():
        replica.load()


def label(preparation: ResolvedJob, pool: LocalPool) -> Tensor:
    """Have all training rows labelled, in one request a teacher; return (K, N, C)."""
    view = preparation.tasks[0].split("train").views[STUDENT_VIEW]
    logits = []
    for teacher in preparation.teachers:
        (answer,) = pool.ask(teacher.name, view, teacher.signals).result().values()
        logits.append(torch.from_numpy(answer.values))
    pool.flush()
    return torch.stack(logits)


class _Ended(Recorder):
    """Notes when the last step was taken, before the checkpoint of the end is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self.at = time.perf_counter()


def timed_run(training: StudentTraining) -> float:
    """Train to the end; return the seconds to the last step, as a bare loop is timed."""
    ended = _Ended()
    start = time.perf_counter()
    training.run(ended)
    return ended.at - start


def bare_loop(training: StudentTraining, split: EncodedSplit, teacher_logits: Tensor) -> float:
    """Train the same model on the same batches in a loop that does nothing else.

    Args:
        training: model, sequence and settings are taken from it, before it has run.
        split: the examples.
        teacher_logits: (K, N, C), in RAM.

    Returns:
        The seconds that it took.
    """
    config, model, view = training.config, training.model, split.views[STUDENT_VIEW]
    optimizer_class: Any = getattr(torch.optim, config.optimizer)
    optimizer = optimizer_class(model.parameters(), lr=config.learning_rate, fused=True)
    warmup = round(config.warmup_ratio * training.num_steps)
    scheduler = get_scheduler(config.lr_scheduler, optimizer, warmup, training.num_steps)
    targets = teacher_logits.mean(dim=0)
    labels = torch.from_numpy(np.array(split.labels))
    model.train()
    start = time.perf_counter()
    for step in range(training.num_steps):
        _, rows = training.sequence.batch(step)
        logits = model(**collate(view, rows, Padding(0))).logits
        target = torch.softmax(targets[rows] / TEMPERATURE, dim=-1)
        soft = -(target * torch.log_softmax(logits / TEMPERATURE, dim=-1)).sum(dim=-1).mean()
        loss = soft + 0.5 * torch.nn.functional.cross_entropy(logits, labels[rows])
        loss.backward()
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def on_one_core() -> None:
    """Have this process, whatever its threads, use one core, as one thread of a loop does."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


# Memory of the student's process over ten epochs whose labels are in the store.


class _Memory(Recorder):
    """Looks at the process's memory at the end of each epoch.

    What it holds is looked at: free memory that the C library keeps for later goes back first. That
    is a quarter of the process, and comes and goes by some hundredths from epoch to epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept_bytes: list[int] = []
        self.held_bytes: list[int] = []

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        gc.collect()
        self.kept_bytes.append(private_bytes())
        ctypes.CDLL(None).malloc_trim(0)
        self.held_bytes.append(private_bytes())


def private_bytes() -> int:
    """Memory that is this process's alone; pages of mapped files, which others share, left out."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(kilobytes) * 1024


def student_memory(num_rows: int = 3200, num_epochs: int = 10) -> list[Record]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return [measure_student_memory(mr_setting(Path(folder), num_rows, SMALLEST), num_epochs)]


def measure_student_memory(setting: Setting, num_epochs: int) -> Record:
    # Teachers leave their heap behind: they are in a process of their own, as in a real run.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_fill_store, setting, num_epochs).result()
    job = setting.job("store", num_epochs=num_epochs)
    training, _ = setting.training(job, setting.prepared(job))
    memory = _Memory()
    training.run(memory)
    first, *later = memory.held_bytes
    kept = [size / 2**20 for size in memory.kept_bytes]
    return Record(
        name=f"student's memory, most of epochs 2 to {num_epochs} over the first",
        value=max(later) / first,
        unit="×",
        target=1.02,
        bound="≤",
        note=f"private memory that the process holds at each epoch's end, {first / 2**20:.0f} MiB "
        f"after the first; with what malloc keeps free, {min(kept):.0f} to {max(kept):.0f} MiB; "
        f"{len(setting.rows)} sentences of MR, BERT-tiny student, 3 teachers",
    )


def _fill_store(setting: Setting, num_epochs: int) -> None:
    job = setting.job("store", num_epochs=num_epochs)
    preparation = setting.prepared(job)
    _, pool = setting.training(job, preparation)
    label(preparation, pool)


# On a GPU: three teachers of BERT-base's size and a T4-tiny student, labels first and on the way.
#
#     python -m experiments.benchmarks gpu
#
# Weights are random, sentences MR's. A teacher's utilisation is the rate of the floating-point
# operations that its real tokens need, over the rate of a large matrix product in the same
# precision in the same run. Without a GPU it refuses: figures of a CPU would say nothing here.

BASE = sizes_of(12, 768, 12, 3072)
T4_TINY = sizes_of(4, 312, 12, 1200)


def gpu() -> list[Record]:
    if not torch.cuda.is_available():
        raise ConfigError("benchmark gpu: expected a CUDA device, got none; run it on one")
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        setting = mr_setting(Path(folder), 9000, BASE, T4_TINY, batch_tokens=65536)
        return measure_gpu(setting, torch.device("cuda"), rounds=5, num_epochs=3)


def measure_gpu(
    setting: Setting, device: torch.device, rounds: int, num_epochs: int
) -> list[Record]:
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
    warm = replace(preparation, store=f"{job.labels.store}-{rounds - 1}")
    training = build_training(warm, World(device=device), None)
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
