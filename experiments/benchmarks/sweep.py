"""A sweep of eight trials against eight runs of the published textbrewer, at its better schedule.

The same of both: two teachers (MiniLM-L6 with a classifier, random head: what they say plays no
part in the time), a student of two layers of 128 from scratch, sentences of MR, batches of 32
padded to their longest, three epochs, AdamW, the temperatures. textbrewer caches its logits
(`is_caching_logits`), in each run again, as it has no store. Both have the whole machine. The sweep
runs as many trials at once as there are cores, of one thread each. textbrewer's runs take place in
both ways, one after another with all cores for each step, and as many at once as there are cores,
of one thread each, in processes that have everything imported; the faster of the two counts.

Counted in one run with an empty store; the wall time of the sweep is from the call of `rb.tune` to
its result: Ray's start, data, labels, report and all. The price of a trial over its steps has the
start of the processes, the set-up of each trial and Tune's own time in it.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from ray import tune
from ray.train import ScalingConfig
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import raybrew as rb
from experiments import data
from experiments.benchmarks.measuring import Record
from raybrew.data.encoding import EncodedView, encode
from raybrew.data.split import Padding, collate
from raybrew.models.pretrained import quiet_transformers
from raybrew.models.students import build_student
from raybrew.runs.cluster import ray_session

ROWS, EVAL_ROWS = 1200, 200
EPOCHS, BATCH, MAX_LENGTH = 3, 32, 64
TEMPERATURES = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
STUDENT = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
RATE = 1e-3
TARGET_RATIO, TARGET_PRICE_S = 0.45, 3.0
CLASSES = ("negative", "positive")


def records() -> list[Record]:
    """Run the sweep, then the eight runs, and compare."""
    with tempfile.TemporaryDirectory(prefix="raybrew-sweep-") as place:
        folder = Path(place)
        teachers = [_teacher(folder / name, seed) for seed, name in enumerate("ab")]
        rows = data.mr()["train"]
        train, evaluation = rows.select(range(ROWS)), rows.select(range(ROWS, ROWS + EVAL_ROWS))
        start = time.perf_counter()
        result = _sweep(teachers, train, evaluation, folder)
        ours_s = time.perf_counter() - start
        theirs = _textbrewer_runs(teachers, train, evaluation, folder)
        theirs_s = min(theirs.values())
    setting = (
        f"{len(TEMPERATURES)} trials × {EPOCHS} epochs of {ROWS} sentences of MR, 2 teachers, "
        f"{os.cpu_count()} cores; sweep {ours_s:.0f} s, textbrewer "
        + ", ".join(f"{way} {seconds:.0f} s" for way, seconds in theirs.items())
    )
    return [
        Record(
            "sweep: teacher forwards, of one a (teacher, example)",
            result.labels["forwards"] / result.labels["needed"],
            "×",
            1.0,
            "=",
            note=f"{result.labels['forwards']:.0f} forwards; asked by trials: "
            f"{result.labels['misses']:.0f}",
        ),
        Record(
            "sweep: wall time against as many runs of textbrewer, caching on",
            ours_s / theirs_s,
            "×",
            TARGET_RATIO,
            "≤",
            note=setting,
        ),
        Record(
            "sweep: a trial over its bare steps",
            _price_s(result),
            "s",
            TARGET_PRICE_S,
            "≤",
            note="cores × time of all trials, less their steps and evaluations, for each trial; "
            "the start of the processes is in it",
        ),
    ]


def _teacher(folder: Path, seed: int) -> str:
    """Save the encoder with a random head."""
    source = data.encoder()
    torch.manual_seed(seed)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            id2label=dict(enumerate(CLASSES)),
            label2id={c: n for n, c in enumerate(CLASSES)},
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def _sweep(teachers: list[str], train: Dataset, evaluation: Dataset, folder: Path) -> rb.TuneResult:
    job = rb.DistillJob(
        tasks=[rb.Task(name="mr", train=train, eval=evaluation, max_length=MAX_LENGTH)],
        teachers=[
            rb.Teacher(name=name, task="mr", model=path, resources={"CPU": 1})
            for name, path in zip("ab", teachers, strict=True)
        ],
        student=rb.Student(config=STUDENT),
        training=rb.TrainingConfig(
            num_epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler="constant",
            warmup_ratio=0.0,
            max_grad_norm=None,
            num_threads=1,
        ),
        labels=rb.LabelConfig(store=str(folder / "store")),
        tracking=rb.TrackingConfig(progress=False),
    )
    with ray_session():
        return rb.tune(
            job,
            {"distillation.temperature": tune.grid_search(TEMPERATURES)},
            scaling_config=ScalingConfig(resources_per_worker={"CPU": 1}),
            run_config=tune.RunConfig(name="sweep", storage_path=str(folder)),
        )


def _price_s(result: rb.TuneResult) -> float:
    """Return what a trial cost besides its steps and evaluations: processes, set-up, Tune."""
    slots = os.cpu_count() or 1
    busy = sum(row.seconds for row in result.trials)
    return (slots * result.times["trials"] - busy) / len(result.trials)


def _textbrewer_runs(
    teachers: list[str], train: Dataset, evaluation: Dataset, folder: Path
) -> dict[str, float]:
    """Return the seconds that eight runs take, one after another and side by side."""
    run = partial(_textbrewer_run, teachers, train, evaluation, folder)
    start = time.perf_counter()
    for temperature in TEMPERATURES:
        run(temperature)
    in_turn_s = time.perf_counter() - start
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(
        cores, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as processes:
        # Started, and with this module imported, before the clock runs.
        list(processes.map(time.sleep, [1.0] * cores))
        start = time.perf_counter()
        list(processes.map(run, TEMPERATURES))
        at_once_s = time.perf_counter() - start
    return {"one after another": in_turn_s, f"{cores} at once": at_once_s}


def _textbrewer_run(
    teachers: list[str], train: Dataset, evaluation: Dataset, folder: Path, temperature: float
) -> None:
    """Do what one of its users' scripts does: load, encode, train with the cache on, evaluate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer
    with quiet_transformers():
        models = [AutoModelForSequenceClassification.from_pretrained(path) for path in teachers]
        tokenizer = AutoTokenizer.from_pretrained(teachers[0])
    student, _ = build_student(
        rb.Student(config=STUDENT),
        num_labels=len(CLASSES),
        label_names=CLASSES,
        seed=0,
        teachers={"a": rb.Teacher(name="a", task="mr", model=teachers[0])},
    )
    view, _ = encode(tokenizer, train["text"][:], None, MAX_LENGTH)
    settings: Any = textbrewer.TrainingConfig(
        log_dir=None, output_dir=str(folder / f"textbrewer-{temperature}"), device="cpu"
    )
    configure: Any = textbrewer.DistillationConfig
    distiller = textbrewer.MultiTeacherDistiller(
        train_config=settings,
        distill_config=configure(
            temperature=temperature, hard_label_weight=0.0, is_caching_logits=True
        ),
        model_T=models,
        model_S=student,
        adaptor_T=_adaptor,
        adaptor_S=_adaptor,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    held_out, _ = encode(tokenizer, evaluation["text"][:], None, MAX_LENGTH)
    with distiller:
        distiller.train(
            optimizer,
            _Batches(view, np.array(train["label"])),
            num_epochs=EPOCHS,
            callback=lambda model, step: _evaluate(model, held_out),
        )


class _Batches:
    """Batches in a new order each epoch, as a data loader gives them."""

    def __init__(self, view: EncodedView, labels: np.ndarray):
        self._view, self._labels = view, labels
        self._order = np.random.default_rng(0)

    def __len__(self) -> int:
        return -(-len(self._labels) // BATCH)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = self._order.permutation(len(self._labels))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            yield collate(self._view, rows, Padding(0)) | {
                "labels": torch.from_numpy(self._labels[rows])
            }


def _adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits}


@torch.inference_mode()
def _evaluate(model: nn.Module | PreTrainedModel, view: EncodedView) -> None:
    for start in range(0, EVAL_ROWS, 64):
        rows = np.arange(start, min(start + 64, EVAL_ROWS))
        model(**collate(view, rows, Padding(0)))
