"""Does a sweep pay? 24 trials under ASHA, then the best configuration against the default one.

tweets: 12,000 rows of train ──► search (the first of them), dev (2,000, for the sweep alone)
sweep on search and dev ──► best configuration
best, default ──► three seeds each on all rows but dev ──► test rows, which nothing was chosen by

python -m experiments.sweep            about 10 minutes on 2 cores
python -m experiments.sweep --resume runs/sweep-…
"""

import argparse
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

import raybrew as rb
from experiments import data
from experiments.compare import Comparison
from raybrew.config.job_file import JobFile, load_job
from raybrew.data.files import to_json
from raybrew.runs.cluster import ray_session
from raybrew.runs.ray_config import scaling_config_from
from raybrew.runs.report import render_table
from raybrew.sweeps.settings import tune_config_from
from raybrew.sweeps.space import space_from

HERE = Path(__file__).parent
DEV_ROWS, SEARCH_ROWS = 2000, 5000
SEEDS = [0, 1, 2]
DEFAULT, BEST = "default", "best of the sweep"


def main() -> None:
    """Make the data and the teachers, sweep, compare, print."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--resume", type=Path, help="folder of a stopped sweep to go on with")
    options = parser.parse_args()
    folder = options.resume or options.runs / f"sweep-{datetime.now():%Y%m%d-%H%M%S}"
    begin = time.perf_counter()
    make_data()
    with ray_session():
        Comparison(HERE.parent / "tweets", "tweets", (), options.runs).make_teachers()
        file = load_job(rb.DistillJob, HERE / "sweep.yaml")
        print("== sweep", flush=True)
        swept = rb.tune(
            file.job,
            space_from(file.space),
            tune_config=tune_config_from(file.tune),
            scaling_config=scaling_config_from(file.scaling),
            run_config=tune.RunConfig(name="sweep", storage_path=str(folder.absolute())),
            resume=options.resume is not None,
        )
        print(Path(swept.folder, "report.txt").read_text(encoding="utf-8"), flush=True)
        assert swept.best is not None, "24 trials without a score"
        scores = {
            who: compare(file, who, config, folder.absolute())
            for who, config in ((DEFAULT, {}), (BEST, swept.best.config))
        }
    text = tables(scores) + f"\nTotal: {time.perf_counter() - begin:.0f} s\n"
    (folder / "comparison.txt").write_text(text, encoding="utf-8")
    print(text)


def make_data() -> None:
    """Write the splits of the sweep: rows of tweets' train, none of its test."""
    folder = data.default_cache() / "data" / "sweep"
    data.encoder()
    train = data.tweets()["train"]
    learn = train.select(range(len(train) - DEV_ROWS))
    splits = {
        "dev": train.select(range(len(train) - DEV_ROWS, len(train))),
        "learn": learn,
        "search": learn.select(range(SEARCH_ROWS)),
    }
    for name, rows in splits.items():
        rows.to_parquet(str(folder / f"{name}.parquet"))


def compare(
    file: JobFile[rb.DistillJob], who: str, config: Mapping[str, Any], folder: Path
) -> list[float]:
    """Return the accuracy of each seed on the test rows.

    Args:
        file: the sweep's.
        who: name of the configuration.
        config: its paths.
        folder: where the runs go.
    """
    print(f"== {who}, {len(SEEDS)} seeds", flush=True)
    cache = data.default_cache() / "data"
    space: dict[str, Any] = {
        # A path with one value stays as it is: seeds alone make trials.
        **config,
        "tasks.tweets.train": str(cache / "sweep" / "learn.parquet"),
        "tasks.tweets.eval": str(cache / "tweets" / "test.parquet"),
        "training.seed": tune.grid_search(SEEDS),
    }
    result = rb.tune(
        file.job,
        space,
        scaling_config=scaling_config_from(file.scaling),
        run_config=tune.RunConfig(name=who.replace(" ", "-"), storage_path=str(folder)),
    )
    by_seed = {row.config["training.seed"]: row for row in result.trials}
    failed = [row.error for row in result.trials if row.status != "finished"]
    assert not failed, failed
    return [by_seed[seed].metrics["eval/tweets/accuracy"] for seed in SEEDS]


def tables(scores: Mapping[str, list[float]]) -> str:
    """Return the comparison, and what it shows."""
    rows = [
        [who, f"{np.mean(each):.4f}", " ".join(f"{value:.4f}" for value in each)]
        for who, each in scores.items()
    ]
    before, after = (np.array(scores[who]) for who in (DEFAULT, BEST))
    points = 100 * (after.mean() - before.mean())
    spread = 100 * max(np.ptp(before), np.ptp(after))
    shown = "more" if abs(points) > spread else "not more"
    return (
        render_table("tweets: test rows", ["", "accuracy", "of each seed"], rows)
        + f"Best minus default: {points:+.2f} points over {len(SEEDS)} seeds, {shown} than the "
        f"spread over seeds ({spread:.2f} points, the larger of both).\n" + to_json(scores)
    )


if __name__ == "__main__":
    main()
