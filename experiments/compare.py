"""A student alone beside one that is distilled: scores, sizes, latency, what chance gives."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from experiments import data
from raybrew.config.job_file import load_job
from raybrew.data.encoding import encode
from raybrew.data.files import to_json
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding
from raybrew.evaluation.predict import ModelOnDevice, predict
from raybrew.models.parameters import count_parameters, latency_ms, size_mb
from raybrew.models.pretrained import quiet_transformers
from raybrew.runs.cluster import ray_session
from raybrew.runs.ray_config import run_config_from, scaling_config_from
from raybrew.runs.report import render_table
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import one_output

# Accuracy, size and latency of a saved model, and what a difference between two is worth.

LATENCY_SENTENCES = 64


@dataclass(frozen=True)
class Judged:
    correct: np.ndarray
    parameters: int
    megabytes: float
    latency_ms: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def figures(self) -> dict[str, float]:
        return {
            "accuracy": self.accuracy,
            "parameters": self.parameters,
            "megabytes": self.megabytes,
            "latency_ms": self.latency_ms,
        }


def judge(folder: Path, test: Dataset, max_length: int) -> Judged:
    """Load a folder as any user of transformers would, and look at it."""
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    texts: list[str] = test["text"][:]
    view, _ = encode(tokenizer, texts, None, max_length)
    split = EncodedSplit({STUDENT_VIEW: view}, np.array(test["label"]))
    logits = predict(
        ModelOnDevice(
            model,
            one_output,
            Padding(int(str(tokenizer.pad_token_id))),
            torch.device("cpu"),
        ),
        TASK_TYPES["sequence-classification"],
        split,
        np.arange(len(split)),
        batch_size=64,
    ).values
    sentences = [
        dict(tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt"))
        for text in texts[:LATENCY_SENTENCES]
    ]
    return Judged(
        correct=logits.argmax(axis=-1) == split.labels,
        parameters=count_parameters(model),
        megabytes=size_mb(model),
        latency_ms=latency_ms(model, sentences)[0],
    )


def conclusion(alone: list[Judged], distilled: list[Judged]) -> str:
    """Say what distilling changed, and what these numbers show of it."""
    if len(alone) == 1:
        return _one_seed(alone[0], distilled[0])
    before, after = (np.array([one.accuracy for one in each]) for each in (alone, distilled))
    margin, spread = after.mean() - before.mean(), max(np.ptp(before), np.ptp(after))
    shown = "more" if abs(margin) > spread else "not more"
    return (
        f"Distilled minus alone: {100 * margin:+.1f} points on average over {len(alone)} seeds, "
        f"{shown} than the spread over seeds ({100 * spread:.1f} points, the larger of both).\n"
    )


def _one_seed(alone: Judged, distilled: Judged) -> str:
    paired = distilled.correct.astype(float) - alone.correct
    points = 100 * paired.mean()
    error = 100 * paired.std(ddof=1) / np.sqrt(len(paired))
    shown = "beyond" if abs(points) > 2 * error else "within"
    return (
        f"Distilled minus alone: {points:+.1f} points, {shown} what chance gives on "
        f"{len(paired)} examples (2 standard errors: {2 * error:.1f}); one seed.\n"
    )


# What distillation is worth on one data set: teachers, the student alone, the student distilled.
#
#     data, encoder ──► teacher a, teacher b (trained once, kept in cache/)
#                           │
#           for each seed:  ├──► student alone      same data, steps, seed, no teacher
#                           └──► student distilled  labels computed once, for all seeds
#                                     └──► table
#
# A comparison is a folder of four jobs, teacher_a.yaml, teacher_b.yaml, alone.yaml and
# distill.yaml; each also runs by itself with `raybrew`.

TEACHERS = ("a", "b")
ALONE, DISTILLED = "student alone", "student distilled"


@dataclass
class Comparison:
    """One run of a folder of jobs.

    Args:
        jobs: the folder.
        name: of the data set in `experiments.data`.
        seeds: the students' seeds.
        runs: where the run's folder is made.
    """

    jobs: Path
    name: str
    seeds: Sequence[int]
    runs: Path
    times: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = data.default_cache()
        stamp = f"{self.jobs.name.replace('_', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        self.folder = self.runs.absolute() / stamp

    def run(self) -> str:
        """Do it all; return the tables, which are also written to the folder."""
        begin = time.perf_counter()
        with self._stage(f"fetch {self.name} and the encoder"):
            data.encoder(self.cache)
            test = getattr(data, self.name)(self.cache)["test"]
        results: dict[str, list[rb.RunResult]] = {ALONE: [], DISTILLED: []}
        with ray_session():
            self.make_teachers()
            for seed in self.seeds:
                for who, job in ((ALONE, "alone"), (DISTILLED, "distill")):
                    with self._stage(f"{who}, seed {seed}"):
                        results[who].append(self._run(job, seed))
        with self._stage("judge sizes and latency"):
            judged = self._judge(results, test)
        self.times["total"] = time.perf_counter() - begin
        ensemble = results[DISTILLED][0].ensembles[self.name]["accuracy"]
        text = self._tables(judged, ensemble, results[DISTILLED])
        (self.folder / "report.txt").write_text(text, encoding="utf-8")
        (self.folder / "report.json").write_text(
            to_json(self._figures(judged, ensemble, results[DISTILLED]), indent=1)
        )
        return f"{text}\nWritten to {self.folder}"

    def make_teachers(self) -> None:
        """Train the teachers that aren't in the cache."""
        for name in TEACHERS:
            with self._stage(f"train teacher {name}"):
                self._teacher(name)

    @contextmanager
    def _stage(self, name: str):
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start

    def _run(self, job: str, seed: int | None = None) -> rb.RunResult:
        calls: dict[bool, tuple[Callable[..., rb.RunResult], Any]] = {
            True: (rb.distill, rb.DistillJob),
            False: (rb.train, rb.TrainJob),
        }
        call, kind = calls[job == "distill"]
        overrides = [] if seed is None else [f"training.seed={seed}"]
        file = load_job(kind, self.jobs / f"{job}.yaml", overrides)
        name = job if seed is None else f"{job}-{seed}"
        return call(
            file.job,
            scaling_config=scaling_config_from(file.scaling),
            run_config=run_config_from(
                {**file.run, "name": name, "storage_path": str(self.folder)}
            ),
        )

    def _teacher(self, name: str) -> None:
        # Trained once: the next run finds the one of the very same job.
        target = self._teacher_folder(name)
        recipe = xxhash.xxh3_64_hexdigest((self.jobs / f"teacher_{name}.yaml").read_bytes())
        if target.is_dir() and (target / "recipe").read_text() == recipe:
            print(f"   kept from an earlier run: {target}")
            return
        student = Path(self._run(f"teacher_{name}").student)
        (student / "recipe").write_text(recipe)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(student, target)

    def _teacher_folder(self, name: str) -> Path:
        return self.cache / "teachers" / self.jobs.name / name

    def _judge(
        self, results: dict[str, list[rb.RunResult]], test: Dataset
    ) -> dict[str, list[Judged]]:
        length = load_job(rb.DistillJob, self.jobs / "distill.yaml").job.tasks[0].max_length
        folders = {f"teacher {name}": [self._teacher_folder(name)] for name in TEACHERS}
        folders |= {who: [Path(one.student) for one in each] for who, each in results.items()}
        return {
            who: [judge(folder, test, length) for folder in each] for who, each in folders.items()
        }

    def _tables(
        self, judged: dict[str, list[Judged]], ensemble: float, distilled: list[rb.RunResult]
    ) -> str:
        rows = [self._row(who, each) for who, each in judged.items()]
        rows.insert(len(TEACHERS), ["teachers mixed", f"{ensemble:.3f}", "", "–", "–", "–"])
        examples = len(judged[ALONE][0].correct)
        columns = ["", "accuracy", "of each seed", "parameters", "MB", "ms, one core"]
        title = f"{self.name}: {examples} test examples"
        parts = [render_table(title, columns, rows), conclusion(judged[ALONE], judged[DISTILLED])]
        labels = [
            [f"seed {seed}", *(f"{one.labels.get(key, 0):.0f}" for key in LABEL_COUNTS)]
            for seed, one in zip(self.seeds, distilled, strict=True)
        ]
        parts.append(render_table("Soft labels, (teacher, example)", ["", *LABEL_COUNTS], labels))
        parts.append(label_economy([one.labels for one in distilled]))
        stages = [[name, f"{value:.1f}"] for name, value in self.times.items()]
        return "\n".join([*parts, render_table("Time", ["stage", "s"], stages)])

    @staticmethod
    def _row(who: str, each: list[Judged]) -> list[str]:
        accuracies = [one.accuracy for one in each]
        seeds = " ".join(f"{value:.3f}" for value in accuracies) if len(each) > 1 else ""
        return [
            who,
            f"{np.mean(accuracies):.3f}",
            seeds,
            f"{each[0].parameters / 1e6:.1f} M",
            f"{each[0].megabytes:.1f}",
            f"{np.median([one.latency_ms for one in each]):.1f}",
        ]

    def _figures(
        self, judged: dict[str, list[Judged]], ensemble: float, distilled: list[rb.RunResult]
    ) -> dict[str, Any]:
        return {
            "models": {who: [one.figures() for one in each] for who, each in judged.items()},
            "ensemble_accuracy": ensemble,
            "labels": [one.labels for one in distilled],
            "times_s": self.times,
            "distill_times_s": [one.times for one in distilled],
        }


def label_economy(labels: Sequence[dict[str, float]]) -> str:
    """Say how many answers of teachers the students asked for, and how many were computed."""
    asked = sum(each.get("hits", 0) + each.get("misses", 0) for each in labels)
    forwards = sum(each.get("forwards", 0) for each in labels)
    return (
        f"Label economy: the students asked for {asked:,.0f} answers of teachers, "
        f"{forwards:,.0f} forwards of teachers were made, {max(asked - forwards, 0):,.0f} saved.\n"
    )


LABEL_COUNTS = ("needed", "in_store", "forwards", "hits", "misses")
