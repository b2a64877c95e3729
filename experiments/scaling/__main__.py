"""Figures of cluster/SCALING.md: what grows with replicas, ranks and labels, and what breaks first.

python -m experiments.scaling                   measures calls, simulates 1 … 64, builds stores
python -m experiments.scaling --keys 100000     a smaller store
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.__main__ import machine
from experiments.scaling.simulation import CallCosts, Outcome, Setting, measured_costs, simulated
from experiments.scaling.store import StoreFigures, measured_store
from raybrew.data.files import to_json
from raybrew.runs.report import render_table

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
KEYS = (100_000, 1_000_000, 10_000_000)
ON_PAPER = 100_000_000
FORWARDS = (4096, 512)
"""Tokens of a forward, at most: what a GPU likes, and the default on a CPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.scaling",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--keys", type=int, nargs="*", default=KEYS)
    parser.add_argument(
        "--costs-us",
        type=float,
        nargs=4,
        metavar=("QUESTION", "TICKET", "ANSWER", "ROUND_TRIP"),
        help="costs of the desk's calls that were measured before, microseconds",
    )
    parser.add_argument("--json", type=Path, default=Path("runs/scaling.json"))
    given = parser.parse_args(arguments)
    print(machine(), flush=True)
    known = given.costs_us
    costs = CallCosts(*(each / 1e6 for each in known)) if known else measured_costs()
    print(costs_table(costs), flush=True)
    outcomes = {
        f"As many replicas as ranks, forwards of {tokens} tokens": {
            size: simulated(Setting(size, size, costs, batch_tokens=tokens)) for size in given.sizes
        }
        for tokens in FORWARDS
    }
    for title, each in outcomes.items():
        print(outcomes_table(title, each), flush=True)
    stores = [measured_store(count) for count in given.keys]
    if stores:
        print(stores_table(stores))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        "machine": machine(),
        "costs_s": dataclasses.asdict(costs),
        "outcomes": {
            title: {size: dataclasses.asdict(one) for size, one in each.items()}
            for title, each in outcomes.items()
        },
        "stores": [dataclasses.asdict(each) for each in stores],
    }
    given.json.write_text(to_json(plain, indent=1))
    print(f"written to {given.json}")


def costs_table(costs: CallCosts) -> str:
    names = {
        "a question, before its tickets": costs.question_s,
        "each ticket of it": costs.ticket_s,
        "an answer": costs.finished_s,
        "there and back, alone": costs.round_trip_s,
    }
    rows = [[name, f"{1e6 * seconds:.0f}"] for name, seconds in names.items()]
    return render_table("The desk's calls", ["call", "µs"], rows)


def outcomes_table(title: str, outcomes: dict[int, Outcome]) -> str:
    rows = [
        [
            str(size),
            f"{each.examples_per_s:,.0f}",
            f"{each.ideal_per_s:,.0f}",
            f"{each.share:.0%}",
            f"{each.desk_busy:.0%}",
            f"{each.replicas_busy:.0%}",
            f"{each.calls_per_s:,.0f}",
            f"{each.rows_per_ticket:.0f}",
        ]
        for size, each in outcomes.items()
    ]
    columns = [
        "replicas, ranks",
        "examples/s",
        "ideal",
        "of ideal",
        "desk busy",
        "replicas busy",
        "desk calls/s",
        "examples a request",
    ]
    return render_table(title, columns, rows)


def stores_table(stores: Sequence[StoreFigures]) -> str:
    largest = stores[-1]
    factor = ON_PAPER / largest.keys
    paper = dataclasses.replace(largest, keys=ON_PAPER, open_s=largest.open_s * factor)
    rows = [
        [
            f"{each.keys:,}{' on paper' if each is paper else ''}",
            f"{each.append_us:.1f}",
            f"{each.disk_bytes * each.keys / 1e9:.2f}",
            f"{each.open_s:.2f}",
            f"{each.memory_bytes:.0f}",
            f"{each.memory_bytes * each.keys / 1e9:.2f}",
            f"{each.batch_us:.0f}",
        ]
        for each in (*stores, paper)
    ]
    columns = [
        "labels",
        "append, µs",
        "disk, GB",
        "open, s",
        "memory, B a label",
        "memory, GB",
        "read 32, µs",
    ]
    return render_table("The store, two logits a label", columns, rows)


if __name__ == "__main__":
    main()
