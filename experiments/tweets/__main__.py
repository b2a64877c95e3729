"""The longer experiment: tweets in three classes of sentiment, three seeds of the student.

See `experiments.compare` for what it does; the four YAML files beside this one are its jobs.
"""

import argparse
import sys
from pathlib import Path

import raybrew as rb
from experiments.compare import Comparison


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tweets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print("\n" + Comparison(Path(__file__).parent, "tweets", options.seeds, options.runs).run())


if __name__ == "__main__":
    try:
        main()
    except rb.RaybrewError as error:
        sys.exit(f"tweets: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
