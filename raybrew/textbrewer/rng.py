"""The generators that a script draws from: PyTorch's, NumPy's and Python's, as plain values."""

import random
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """Return the state of all of them, for JSON."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, state, following = random.getstate()
    # Asking begins a context on every GPU, also for a script that computes on the CPU.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [each.numpy().tobytes().hex() for each in cuda],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "python": [version, list(state), following],
    }


def restore_generators(state: dict[str, Any]) -> None:
    """Bring all of them back to where they were."""
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(each) for each in state["cuda"]])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
