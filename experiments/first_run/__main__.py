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
    options = parser.parse_args()
    print("\n" + Comparison(Path(__file__).parent, "trec_400", [0], options.runs).run())


if __name__ == "__main__":
    try:
        main()
    except rb.RaybrewError as error:
        sys.exit(f"first_run: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
