"""A teacher's adaptor in which faults happen, in the middle of its forward, as a folder says.

The folder is RAYBREW_TEST_FAULTS, which replicas inherit. In it, made by tests:

    kill-*   the forward that finds it takes it away and is killed
    hang-*   the forward that finds it takes it away and never returns
    device-* the forward that finds it takes it away and has an error of its GPU
    sick     the first replica that finds it has an error of its GPU in each forward of all its
             processes
    memory   examples of a forward beyond which there is too little memory
    sleep    seconds that each forward takes
    slow     seconds that each forward of the first replica that found it takes

and by the adaptor: `forwards-<pid>`, a line with the number of examples for each forward begun, and
`node-<pid>`, the Ray node that it runs on.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import ray
import torch

ENVIRONMENT = "RAYBREW_TEST_FAULTS"


def folder() -> Path:
    return Path(os.environ[ENVIRONMENT])


def clear() -> None:
    for path in folder().iterdir():
        path.unlink()


def plan(name: str, text: str = "") -> None:
    (folder() / name).write_text(text)


def forwards() -> dict[int, list[int]]:
    """Return, by process, the examples of each forward that it began."""
    return {
        int(path.name.removeprefix("forwards-")): [int(n) for n in path.read_text().split()]
        for path in folder().glob("forwards-*")
    }


def nodes() -> dict[int, str]:
    """Return the Ray node of each process."""
    return {
        int(path.name.removeprefix("node-")): path.read_text() for path in folder().glob("node-*")
    }


def faulty(batch, outputs):
    examples = len(batch["input_ids"])
    if ray.is_initialized():
        node = folder() / f"node-{os.getpid()}"
        node.write_text(ray.get_runtime_context().get_node_id())
    with (folder() / f"forwards-{os.getpid()}").open("a") as file:
        file.write(f"{examples}\n")
    if _took("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if _took("hang"):
        time.sleep(3600)
    if _took("device") or _is_sick():
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if (folder() / "memory").exists() and examples > int((folder() / "memory").read_text()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    time.sleep(_seconds())
    # Rounded, so that bits don't depend on which examples a forward has besides.
    return {"logits": torch.round(outputs.logits * 256) / 256}


def _took(kind: str) -> bool:
    for path in sorted(folder().glob(f"{kind}-*")):
        try:
            path.unlink()
        except FileNotFoundError:  # another replica was faster
            continue
        return True
    return False


def _is_sick() -> bool:
    if not ray.is_initialized():
        return False
    owner = folder() / f"sick.{ray.get_runtime_context().get_actor_id()}"
    with contextlib.suppress(FileNotFoundError):  # there is none, or another replica was faster
        (folder() / "sick").rename(owner)
    return owner.exists()


def _seconds() -> float:
    slow, owner = folder() / "slow", folder() / f"slow.{os.getpid()}"
    if slow.exists():
        try:
            slow.rename(owner)
        except FileNotFoundError:
            return _seconds()
    for path in (owner, folder() / "sleep"):
        if path.exists():
            return float(path.read_text())
    return 0.0
