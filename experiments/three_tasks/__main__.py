"""Three tasks in one student: reviews, questions and named entities, with and without teachers.

    teachers: mr, trec (two), ner ──► one student of all tasks      with and without teachers
                                 └──► a student of the same size for each, with and without teachers

Every student starts from random weights, sees as many batches of each task, and is judged on the
same test rows; only the seed differs between the figures of a row. Labels are computed once, for
all students of all seeds. Of named entities few sentences are labelled and many are not: these only
a student with a teacher can learn from.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import xxhash

import raybrew as rb
from experiments import data, ner
from raybrew.config.job_file import load_job
from raybrew.data.files import to_json
from raybrew.runs.cluster import ray_session
from raybrew.runs.ray_config import run_config_from, scaling_config_from
from raybrew.runs.report import render_table

HERE = Path(__file__).parent
TEACHERS = {
    "three_tasks/mr": HERE / "teacher_mr.yaml",
    "three_tasks/ner": HERE / "teacher_ner.yaml",
    "three_tasks/trec_a": HERE / "teacher_trec_a.yaml",
    "three_tasks/trec_b": HERE / "teacher_trec_b.yaml",
}
"""By their folder below `cache/teachers/`."""

METRICS = {"mr": "accuracy", "trec": "accuracy", "ner": "f1"}
TOGETHER, TOGETHER_ALONE = "one student, teachers", "one student, labels only"
EACH, EACH_ALONE = "a student each, teachers", "a student each, labels only"

Scores = dict[str, float]


def only(job: rb.DistillJob, task: str) -> rb.DistillJob:
    """The same job with one of its tasks, and as many batches of it."""
    assert job.mixing.probabilities is not None
    assert job.training.num_steps is not None
    share = job.mixing.probabilities[task] / sum(job.mixing.probabilities.values())
    num_steps = round(share * job.training.num_steps)
    return job.model_copy(
        update={
            "tasks": tuple(each for each in job.tasks if each.name == task),
            "teachers": job.teachers_of(task),
            "mixing": rb.MixingConfig(),
            "training": job.training.model_copy(update={"num_steps": num_steps}),
        }
    )


def without_teachers(job: rb.DistillJob) -> rb.TrainJob:
    """The same student and steps on labelled rows alone."""
    return rb.TrainJob(
        tasks=[task.model_copy(update={"transfer": ()}) for task in job.tasks],
        model=job.student,
        training=job.training,
        mixing=job.mixing,
        tracking=job.tracking,
    )


class Experiment:
    """All runs, in a folder of their own.

    Args:
        runs: where the folder is made.
        overrides: changes to the jobs of students, such as `training.num_epochs=2`.
    """

    def __init__(self, runs: Path, overrides: Sequence[str]):
        self.folder = runs.absolute() / f"three-tasks-{datetime.now():%Y%m%d-%H%M%S}"
        self._cache, self._overrides = data.default_cache(), list(overrides)
        self._rows: dict[str, list[Scores]] = {}
        self._teachers: Scores = {}
        self._times: dict[str, float] = {}

    def run(self, seeds: Sequence[int]) -> str:
        """Do it all; return the tables, which are also written to the folder."""
        begin = time.perf_counter()
        data.encoder(self._cache)
        for make in (data.mr, data.trec, ner.conll):
            make(self._cache)
        with ray_session():
            for target, job in TEACHERS.items():
                self._teacher(self._cache / "teachers" / target, job)
            for seed in seeds:
                self._together(self._job(seed), seed)
            for seed in seeds:
                self._apart(self._job(seed), seed)
        self._times["in all"] = time.perf_counter() - begin
        text = tables(self._rows, self._teachers, self._times)
        figures = {"scores": self._rows, "teachers": self._teachers, "times_s": self._times}
        (self.folder / "report.json").write_text(to_json(figures, indent=1))
        (self.folder / "report.txt").write_text(text, encoding="utf-8")
        return f"{text}\nWritten to {self.folder}"

    def _job(self, seed: int) -> rb.DistillJob:
        overrides = [f"training.seed={seed}", *self._overrides]
        return load_job(rb.DistillJob, HERE / "distill.yaml", overrides).job

    def _together(self, job: rb.DistillJob, seed: int) -> None:
        self._note(TOGETHER, self._distil(job, f"together-{seed}"))
        self._note(TOGETHER_ALONE, self._train(without_teachers(job), f"together-alone-{seed}"))

    def _apart(self, job: rb.DistillJob, seed: int) -> None:
        parts = [only(job, task.name) for task in job.tasks]
        taught = [self._distil(part, f"{part.tasks[0].name}-{seed}") for part in parts]
        alone = [
            self._train(without_teachers(part), f"{part.tasks[0].name}-alone-{seed}")
            for part in parts
        ]
        self._note(EACH, {name: value for one in taught for name, value in one.items()})
        self._note(EACH_ALONE, {name: value for one in alone for name, value in one.items()})

    def _note(self, who: str, scores: Scores) -> None:
        self._rows.setdefault(who, []).append(scores)

    def _distil(self, job: rb.DistillJob, name: str) -> Scores:
        result = self._told(rb.distill, job, name)
        for teacher in job.teachers:
            self._teachers[f"{teacher.task} teacher {teacher.name}"] = result.teachers[
                teacher.name
            ][METRICS[teacher.task]]
        return scores_of(result, job)

    def _train(self, job: rb.TrainJob, name: str) -> Scores:
        return scores_of(self._told(rb.train, job, name), job)

    def _told(self, call: Callable[..., rb.RunResult], job: object, name: str) -> rb.RunResult:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        result = call(
            job,
            scaling_config=scaling_config_from({"num_workers": 1}),
            run_config=run_config_from({"name": name, "storage_path": str(self.folder)}),
        )
        self._times[name] = time.perf_counter() - start
        return result

    def _teacher(self, target: Path, job: Path) -> None:
        # Trained once: the next run finds the one of the very same job.
        recipe = xxhash.xxh3_64_hexdigest(job.read_bytes())
        if target.is_dir() and (target / "recipe").read_text() == recipe:
            print(f"   kept from an earlier run: {target}")
            return
        name = f"teacher-{target.parent.name}-{target.name}"
        trained = self._told(rb.train, load_job(rb.TrainJob, job).job, name)
        (Path(trained.student) / "recipe").write_text(recipe)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(trained.student, target)


def scores_of(result: rb.RunResult, job: rb.DistillJob | rb.TrainJob) -> Scores:
    names = [task.name for task in job.tasks]
    return {name: result.metrics[f"eval/{name}/{METRICS[name]}"] for name in names}


def tables(rows: dict[str, list[Scores]], teachers: Scores, times: dict[str, float]) -> str:
    """The metrics, and what the one student gains by its teachers."""
    shown = [
        [
            who,
            *(spread_of([each[task] for each in found]) for task in METRICS),
            spread_of(averages(found)),
            " ".join(f"{value:.3f}" for value in averages(found)),
        ]
        for who, found in rows.items()
    ]
    columns = ["", *(f"{t} {m}" for t, m in METRICS.items()), "average", "of each seed"]
    title = "Test rows: mean ± standard deviation over seeds"
    asked = [[name, f"{value:.3f}"] for name, value in teachers.items()]
    parts = [render_table("Teachers", ["", "metric"], asked), render_table(title, columns, shown)]
    for one, other in ((TOGETHER, TOGETHER_ALONE), (EACH, EACH_ALONE), (TOGETHER, EACH)):
        parts.append(difference(one, averages(rows[one]), other, averages(rows[other])))
    stages = [[name, f"{seconds:.0f}"] for name, seconds in times.items()]
    return "\n".join([*parts, render_table("Time", ["", "s"], stages)])


def spread_of(values: Sequence[float]) -> str:
    error = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{error}"


def difference(one: str, ones: Sequence[float], other: str, others: Sequence[float]) -> str:
    margin, spread = np.mean(ones) - np.mean(others), max(np.ptp(ones), np.ptp(others))
    more = "more" if abs(margin) > spread else "not more"
    return (
        f"{one} minus {other}: {100 * margin:+.1f} points of the average over {len(ones)} seeds, "
        f"{more} than the spread over seeds ({100 * spread:.1f} points, largest minus smallest)."
    )


def averages(found: Sequence[Scores]) -> list[float]:
    return [float(np.mean(list(each.values()))) for each in found]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.three_tasks")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="changes to distill.yaml")
    options = parser.parse_args()
    print("\n" + Experiment(options.runs, options.set).run(options.seeds))


if __name__ == "__main__":
    try:
        main()
    except rb.RaybrewError as error:
        sys.exit(f"three_tasks: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
