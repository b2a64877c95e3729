"""Every figure that raybrew promises, measured on this machine.

    python -m experiments.benchmarks                     all of them; `make bench` is this
    python -m experiments.benchmarks objective_overhead  some of them, by name

Each benchmark is a function that returns its records and runs in a process of its own, one after
another. A table is printed and `bench.json` written: a list with `name`, `value`, `unit`,
`target`, `met`, the spread and what else has to be known of each figure. A missed target is
marked; the exit code is 1 only where a benchmark fails.
"""

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measuring import Record, records_of
from raybrew.data.files import to_json

_HERE = "experiments.benchmarks"
BENCHMARKS = {
    # The functions that return a benchmark's records, in the order of the table.
    "warm_epoch": f"{_HERE}.epochs:warm_epoch",
    "first_epoch": f"{_HERE}.epochs:first_epoch",
    "under_ray": f"{_HERE}.epochs:under_ray",
    "against_textbrewer": f"{_HERE}.against_textbrewer:records",
    "student_memory": f"{_HERE}.student:student_memory",
    "objective_overhead": f"{_HERE}.objective_overhead:records",
    "pool_throughput": f"{_HERE}.pool_throughput:records",
    "store_reads": f"{_HERE}.store_reads:records",
    "wire_bytes": f"{_HERE}.payload_bytes:wire_bytes",
    "label_logits": f"{_HERE}.payload_bytes:label_logits",
    "sweep": f"{_HERE}.sweep:records",
    "gpu": f"{_HERE}.student:gpu",
}
BY_NAME_ALONE = ("gpu",)
"""Not among all: it needs a machine that not everybody has."""


def measure(functions: Mapping[str, str], console: Console) -> tuple[dict[str, list[Record]], bool]:
    """Run each benchmark in a fresh process.

    Args:
        functions: import path of each, by name.
        console: where progress is printed.

    Returns:
        The records of each that came to an end, and whether all did.
    """
    found: dict[str, list[Record]] = {}
    for name, function in functions.items():
        start = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            try:
                found[name] = process.submit(records_of, function).result()
            except Exception:
                # One that fails doesn't take the others' figures with it; the exit code tells.
                console.print(f"{name} failed:\n{traceback.format_exc()}", markup=False)
                continue
        console.print(f"{name}: {time.perf_counter() - start:.0f} s")
    return found, len(found) == len(functions)


def table_of(records: Sequence[Record]) -> Table:
    """Return the figures as they are printed."""
    table = Table(title=machine(), title_style="")
    for column in ("figure", "measured", "quartiles", "to reach", ""):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for record in records:
        spread = "" if record.spread is None else "–".join(map(_shown, record.spread))
        table.add_row(
            record.name,
            f"{_shown(record.value)} {record.unit}",
            spread,
            f"{record.bound} {_shown(record.target)}",
            "met" if record.met else "NOT MET",
        )
    return table


def markdown_of(records: Sequence[Record]) -> str:
    """Return the figures as the README has them."""
    rows = ["| figure | measured | quartiles | to reach |", "| --- | --- | --- | --- |"]
    for record in records:
        spread = "" if record.spread is None else "–".join(map(_shown, record.spread))
        measured = f"{_shown(record.value)} {record.unit}"
        rows.append(
            f"| {record.name} | {measured} | {spread} | {record.bound} {_shown(record.target)} |"
        )
    return "\n".join(rows)


def machine() -> str:
    """Return what the figures depend on besides the code."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} CPUs ({platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}), {device}, torch {torch.__version__}"
    )


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None, benchmarks: Mapping[str, str] = BENCHMARKS) -> int:
    """Run benchmarks by name; see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(benchmarks))
    parser.add_argument("--json", type=Path, default=Path("runs/bench/bench.json"))
    parser.add_argument("--markdown", action="store_true", help="print the README's table too")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        parser.error(f"expected some of {', '.join(benchmarks)}, got {', '.join(unknown)}")
    names = options.names or [name for name in benchmarks if name not in BY_NAME_ALONE]
    console = Console(width=None if sys.stdout.isatty() else 120)
    found, whole = measure({name: benchmarks[name] for name in names}, console)
    plain = [
        {**record.to_plain(), "benchmark": name, "machine": machine()}
        for name, records in found.items()
        for record in records
    ]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(to_json(plain, indent=1) + "\n")
    console.print(table_of([record for records in found.values() for record in records]))
    for record in (r for records in found.values() for r in records if r.note):
        console.print(f"{record.name}: {record.note}", markup=False)
    if options.markdown:
        print(markdown_of([record for records in found.values() for record in records]))
    console.print(f"written to {options.json}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
