"""Memory of the student's process over ten epochs whose labels are in the store."""

import ctypes
import gc
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from experiments.benchmarks.measuring import Record
from experiments.benchmarks.student_setting import SMALLEST, Setting, label, mr_setting
from raybrew.training.callbacks import Saver
from tests.training.in_process import Recorder

NUM_ROWS, NUM_EPOCHS = 3200, 10


class _Memory(Recorder):
    """Looks at the process's memory at the end of each epoch.

    What it holds is looked at: free memory that the C library keeps for later goes back first. That
    is a quarter of the process, and comes and goes by some hundredths from epoch to epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept_bytes: list[int] = []
        self.held_bytes: list[int] = []

    def evaluated(self, step: int, values: dict[str, float], save: Saver) -> None:
        gc.collect()
        self.kept_bytes.append(private_bytes())
        ctypes.CDLL(None).malloc_trim(0)
        self.held_bytes.append(private_bytes())


def private_bytes() -> int:
    """Memory that is this process's alone; pages of mapped files, which others share, left out."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(kilobytes) * 1024


def records(num_rows: int = NUM_ROWS, num_epochs: int = NUM_EPOCHS) -> list[Record]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="raybrew-bench-") as folder:
        return [measured(mr_setting(Path(folder), num_rows, SMALLEST), num_epochs)]


def measured(setting: Setting, num_epochs: int) -> Record:
    # Teachers leave their heap behind: they are in a process of their own, as in a real run.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_fill_store, setting, num_epochs).result()
    job = setting.job("store", num_epochs=num_epochs)
    training, _ = setting.training(job, setting.prepared(job))
    memory = _Memory()
    training.run(memory)
    first, *later = memory.held_bytes
    kept = [size / 2**20 for size in memory.kept_bytes]
    return Record(
        name=f"student's memory, most of epochs 2 to {num_epochs} over the first",
        value=max(later) / first,
        unit="×",
        target=1.02,
        bound="≤",
        note=f"private memory that the process holds at each epoch's end, {first / 2**20:.0f} MiB "
        f"after the first; with what malloc keeps free, {min(kept):.0f} to {max(kept):.0f} MiB; "
        f"{len(setting.rows)} sentences of MR, BERT-tiny student, 3 teachers",
    )


def _fill_store(setting: Setting, num_epochs: int) -> None:
    job = setting.job("store", num_epochs=num_epochs)
    preparation = setting.prepared(job)
    _, pool = setting.training(job, preparation)
    label(preparation, pool)
