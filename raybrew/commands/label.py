"""`raybrew label`: every label that a job needs, into the store, at the teachers' full speed."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from raybrew.cluster import run_config_from
from raybrew.config import DistillJob
from raybrew.driver import label as fill
from raybrew.jobfile import load_job
from raybrew.ray_arguments import check_ray_arguments

__all__ = ["label"]


def label(path: Path, overrides: Sequence[str]) -> None:
    """Fill the store and print the counts.

    Args:
        path: the job file.
        overrides: of `--set`.
    """
    file = load_job(DistillJob, path, overrides)
    # `run.name` is the folder of the student's run; each filling has one of its own beside it.
    check_ray_arguments("run", file.run)
    own = f"{file.run.get('name') or ''}-label-{datetime.now():%Y%m%d-%H%M%S}".removeprefix("-")
    result = fill(file.job, run_config=run_config_from({**file.run, "name": own}))
    print(Path(result.folder, "report.txt").read_text(encoding="utf-8"), end="")
