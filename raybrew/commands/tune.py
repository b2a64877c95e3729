"""`raybrew tune`: the sweep that a job file's `space:` and `tune:` describe."""

import sys
from collections.abc import Sequence
from pathlib import Path

from raybrew.cluster import scaling_config_from
from raybrew.config import DistillJob
from raybrew.jobfile import load_job
from raybrew.tuning.domains import space_from
from raybrew.tuning.settings import tune_config_from, tune_run_config_from
from raybrew.tuning.sweep import tune as sweep

__all__ = ["tune"]


def tune(path: Path, overrides: Sequence[str], *, resume: bool) -> None:
    """Run or continue the sweep, and print its tables.

    Args:
        path: the job file.
        overrides: of `--set`.
        resume: go on with a stopped sweep.
    """
    file = load_job(DistillJob, path, overrides)
    try:
        result = sweep(
            file.job,
            space_from(file.space),
            tune_config=tune_config_from(file.tune),
            scaling_config=scaling_config_from(file.scaling),
            run_config=tune_run_config_from(file.run),
            resume=resume,
        )
    except KeyboardInterrupt:
        if file.run.get("name"):
            print(f"raybrew: to go on: raybrew tune {path} --resume", file=sys.stderr)
        raise
    print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
