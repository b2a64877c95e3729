"""Twenty runs, each with faults drawn from a seed: real processes, real SIGKILLs, a real disk.

parent ──fork──► trainer: resume, train, write checkpoints ──► final weights
   └ kills it at random moments, damages its newest checkpoint, starts it again
"""

import faulthandler
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raybrew.training.checkpoints import Checkpoints, CheckpointWriter
from raybrew.training.snapshot import Snapshot
from tests.made import make_job, make_model
from tests.training.in_process import Recorder, build

RUNS, MAX_STARTS = 20, 12
HANG_S = 120.0
STEP_S = 0.004
STEP = multiprocessing.get_context("fork").Value("i", 0)
"""How far the child is."""

pytestmark = [pytest.mark.long, pytest.mark.faults]


class Writing(Recorder):
    """Writes checkpoints as a rank does, and takes its time, so that faults find it at work."""

    def __init__(self, writer: CheckpointWriter):
        super().__init__()
        self._writer = writer

    def progress(self, step: int) -> None:
        STEP.value = step
        time.sleep(STEP_S)

    def checkpoint(self, snapshot: Snapshot) -> None:
        self._writer.submit(snapshot.step, snapshot.write)


def train(training, folder: Path, notes: Path) -> None:
    """Go on from the newest checkpoint that is whole; the child's whole life."""
    # The watchdog: a child that hangs names, in every thread, what it waits for.
    faulthandler.dump_traceback_later(HANG_S * 0.9, file=sys.stderr)
    checkpoints = Checkpoints(folder)
    checkpoints.clean()

    def note(text: str) -> None:
        with notes.open("a") as file:
            file.write(text + "\n")

    newest = checkpoints.newest(note)
    if newest is not None:
        training.resume(newest)
    with CheckpointWriter(checkpoints) as writer:
        training.run(Writing(writer))
    save_file(training.model.state_dict(), folder.parent / "final.safetensors")
    os._exit(0)


def start(training, folder: Path, notes: Path) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(training, folder, notes)
    )
    process.start()
    return process


def damage(draw: random.Random, folder: Path) -> bool:
    """Flip a byte of the newest of two checkpoints; tell whether there were two."""
    paths = Checkpoints(folder).paths()
    if len(paths) < 2:
        return False
    path = draw.choice([p for p in sorted(paths[-1].rglob("*")) if p.is_file()])
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))
    return True


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory):
    """A training that every run starts from, with its labels in the store, and what it ends in."""
    torch.set_num_threads(1)  # a forked child has no threads but its own
    folder = tmp_path_factory.mktemp("random")
    job = make_job({"a": make_model(folder / "a", 0)}, folder / "store")
    job = job.model_copy(
        update={
            "training": job.training.model_copy(
                update={"num_epochs": 5, "checkpoint_every": 3, "prefetch": 1}
            )
        }
    )
    filling, pool = build(job, folder / "1")
    filling.run(Recorder())
    pool.flush()
    whole, _ = build(job, folder / "2")
    whole.run(Recorder())
    return build(job, folder / "3")[0], dict(whole.model.state_dict())


def one_run(training, seed: int, place: Path) -> dict[str, int]:
    """Do a run under faults; return how many of each there were."""
    draw, folder, notes = random.Random(seed), place / "checkpoints", place / "notes.txt"
    place.mkdir()
    counts = {"killed": 0, "damaged": 0, "set aside": 0}
    for attempt in range(MAX_STARTS):
        STEP.value = 0
        strikes_at = training.num_steps + 1
        if attempt < draw.randrange(1, 5):
            strikes_at = draw.randrange(training.num_steps)
        process = start(training, folder, notes)
        deadline = time.monotonic() + HANG_S
        while process.exitcode is None and STEP.value < strikes_at:
            assert time.monotonic() < deadline, f"seed {seed}: hangs after {counts}"
            process.join(0.002)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            counts["killed"] += 1
            if draw.random() < 0.4:
                counts["damaged"] += damage(draw, folder)
            continue
        assert process.exitcode == 0, f"seed {seed}: exit code {process.exitcode}"
        counts["set aside"] = len(notes.read_text().splitlines()) if notes.exists() else 0
        return counts
    raise AssertionError(f"seed {seed}: not done after {MAX_STARTS} starts")


def test_faults_at_random_neither_hang_a_run_nor_change_its_student(ready, tmp_path):
    training, expected = ready
    totals = {"killed": 0, "damaged": 0, "set aside": 0}
    for seed in range(RUNS):
        place = tmp_path / str(seed)
        for name, count in one_run(training, seed, place).items():
            totals[name] += count
        final = load_file(place / "final.safetensors")
        for name, value in expected.items():
            assert torch.equal(final[name], value), f"seed {seed}: {name}"
        assert not list((place / "checkpoints").glob(".tmp-*"))
    print(f"{RUNS} runs: {totals}")
    assert totals["killed"] >= RUNS
    # Every damage that was not overwritten before it was read was seen, and notes.
    assert 0 < totals["set aside"] <= totals["damaged"]
