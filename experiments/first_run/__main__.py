"""The demo: two teachers on Ray teach one small student on real questions (TREC).

    fetch data, encoder ──► teacher a, teacher b (trained once, kept in cache/) ──► student alone
                                                        └──► student distilled ──► table

The four YAML files beside this one are the jobs; each also runs by itself with `raybrew`.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import xxhash

import raybrew as rb
from experiments import data
from experiments.first_run.judge import Judged, gain, judge
from raybrew.cluster import ray_session, run_config_from, scaling_config_from
from raybrew.jobfile import load_job
from raybrew.report import render_table

HERE = Path(__file__).parent
JOBS: dict[str, tuple[Callable[..., rb.RunResult], Any]] = {
    "teacher_a": (rb.train, rb.TrainJob),
    "teacher_b": (rb.train, rb.TrainJob),
    "alone": (rb.train, rb.TrainJob),
    "distill": (rb.distill, rb.DistillJob),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.first_run", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    options = parser.parse_args()
    cache = data.default_cache()
    begin = time.perf_counter()
    times: dict[str, float] = {}

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        print(f"== {stage}", flush=True)
        start = time.perf_counter()
        value = call()
        times[stage] = time.perf_counter() - start
        return value

    folder = options.runs.absolute() / f"first-run-{datetime.now():%Y%m%d-%H%M%S}"
    timed("fetch TREC and the encoder", lambda: (data.encoder(cache), data.trec(cache)))
    with ray_session():
        for name in ("a", "b"):
            timed(f"train teacher {name}", lambda name=name: teacher(name, cache, folder))
        alone = timed("train the student alone", lambda: run("alone", folder))
        distilled = timed("distil the student", lambda: run("distill", folder))
    models = {
        "teacher a": cache / "teachers/first_run/a",
        "teacher b": cache / "teachers/first_run/b",
        "student alone": Path(alone.student),
        "student distilled": Path(distilled.student),
    }
    judged = timed(
        "judge sizes and latency",
        lambda: {who: judge(path, data.trec(cache)["test"]) for who, path in models.items()},
    )
    times["total"] = time.perf_counter() - begin
    text = tables(judged, distilled, times)
    (folder / "report.txt").write_text(text, encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(figures(judged, distilled, times), indent=1))
    print(f"\n{text}\nWritten to {folder}")


def run(name: str, folder: Path) -> rb.RunResult:
    call, kind = JOBS[name]
    file = load_job(kind, HERE / f"{name}.yaml")
    return call(
        file.job,
        scaling_config=scaling_config_from(file.scaling),
        run_config=run_config_from({**file.run, "name": name, "storage_path": str(folder)}),
    )


def teacher(name: str, cache: Path, folder: Path) -> None:
    """Train a teacher, unless one of the very same job is there."""
    target = cache / "teachers/first_run" / name
    recipe = xxhash.xxh3_64_hexdigest((HERE / f"teacher_{name}.yaml").read_bytes())
    if target.is_dir() and (target / "recipe").read_text() == recipe:
        print(f"   kept from an earlier run: {target}")
        return
    student = Path(run(f"teacher_{name}", folder).student)
    (student / "recipe").write_text(recipe)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(student, target)


def figures(
    judged: dict[str, Judged], distilled: rb.RunResult, times: dict[str, float]
) -> dict[str, Any]:
    return {
        "models": {who: one.figures() for who, one in judged.items()},
        "ensemble_accuracy": distilled.ensembles["trec"]["accuracy"],
        "labels": distilled.labels,
        "times_s": times,
        "distill_times_s": distilled.times,
    }


def tables(judged: dict[str, Judged], distilled: rb.RunResult, times: dict[str, float]) -> str:
    rows = [
        [
            who,
            f"{one.accuracy:.3f}",
            f"{one.parameters / 1e6:.1f} M",
            f"{one.megabytes:.1f}",
            f"{one.latency_ms:.1f}",
        ]
        for who, one in judged.items()
    ]
    ensemble = distilled.ensembles["trec"]["accuracy"]
    rows.insert(2, ["teachers mixed", f"{ensemble:.3f}", "–", "–", "–"])
    examples = len(next(iter(judged.values())).correct)
    columns = ["", "accuracy", "parameters", "MB", "ms, one core"]
    parts = [render_table(f"TREC, {examples} test questions", columns, rows)]
    parts.append(gain(judged["student alone"], judged["student distilled"]) + "\n")
    labels = [[name, f"{value:.0f}"] for name, value in distilled.labels.items()]
    parts.append(render_table("Soft labels, (teacher, example)", ["", "count"], labels))
    stages = [[name, f"{value:.1f}"] for name, value in times.items()]
    parts.append(render_table("Time", ["stage", "s"], stages))
    return "\n".join(parts)


if __name__ == "__main__":
    try:
        main()
    except rb.RaybrewError as error:
        sys.exit(f"first_run: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
