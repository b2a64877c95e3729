"""TextBrewer's published experiments as raybrew jobs, a row at a time; see README.md.

python -m experiments.textbrewer --list            every row with its published score
python -m experiments.textbrewer mnli T4-tiny      its teacher, the student, both scores
  … --smoke        the same job on tiny stand-ins, here, in seconds
  … --write DIR    plain job files for raybrew's own commands
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

import raybrew as rb
from experiments.textbrewer.published import ROWS, Row, find
from experiments.textbrewer.smoke import StandIns
from experiments.textbrewer.steps import run_row, write_jobs
from raybrew.runs.report import render_table


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one message and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            print(listing(), end="")
            return 0
        if options.row is None:
            raise rb.ConfigError("expected a benchmark and a row, or --list; see --help")
        row = find(options.benchmark, options.row)
        runs, stand_ins = options.runs, None
        if options.smoke:
            runs = runs / f"smoke-{datetime.now():%Y%m%d-%H%M%S}"
            stand_ins = StandIns(runs / "stand-ins")
        if options.write:
            print(_commands(row, options.write, runs, stand_ins), end="")
            return 0
        print(run_row(row, runs, stand_ins=stand_ins, overrides=options.set or []), end="")
    except rb.RaybrewError as error:
        print(f"textbrewer: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("textbrewer: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def listing() -> str:
    """Return every row as a table."""
    rows = [[row.title, row.kind, row.base, row.score, row.note] for row in ROWS]
    return render_table("Rows", ["", "kind", "from", "published", ""], rows)


def _commands(row: Row, folder: Path, runs: Path, stand_ins: StandIns | None) -> str:
    lines = [
        f"raybrew {'distill' if step.kind is rb.DistillJob else 'train-teacher'} {path}\n"
        for step, path in write_jobs(row, folder, runs, stand_ins)
    ]
    return "".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.textbrewer",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("benchmark", nargs="?", help="mnli, squad, …")
    parser.add_argument("row", nargs="?", help="T4-tiny, three-teachers, …")
    parser.add_argument("--list", action="store_true", help="print every row")
    parser.add_argument("--smoke", action="store_true", help="tiny models, made rows, a few steps")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the jobs, run nothing")
    parser.add_argument(
        "--set", action="append", metavar="PATH=VALUE", help="change the row's own job"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/textbrewer"), help="folder of runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
