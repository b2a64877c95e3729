"""The demo: two teachers on Ray teach one small student on real questions (TREC).

See `experiments.compare` for what it does; the four YAML files beside this one are its jobs.
"""

import argparse
import sys
from pathlib import Path

import raybrew as rb
from experiments.compare import Comparison


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.first_run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the students")
    options = parser.parse_args()
    jobs = Path(__file__).parent
    comparison = Comparison(jobs, "trec_400", options.seeds, options.runs)
    print("\n" + comparison.run())
    print(_what_next(comparison.folder / f"distill-{options.seeds[0]}"))


def _what_next(run: Path) -> str:
    distill = "raybrew distill experiments/first_run/distill.yaml"
    return f"""
The page of the distilled student: {run / "report.html"}
Next:
  raybrew predict {run / "student"} questions.csv -o answers.csv
  {distill} --set distillation.temperature=4   # every label is stored: no teacher starts
  raybrew init rows.csv --teacher MODEL        # jobs for rows of your own"""


if __name__ == "__main__":
    try:
        main()
    except rb.RaybrewError as error:
        sys.exit(f"first_run: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
