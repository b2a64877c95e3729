"""What it takes to turn a language model's logits into top-k labels: memory and time.

    python -m experiments.benchmarks label_logits

Logits are random, in bf16 on the device, 50 are kept a token. Memory is what the process (on a GPU
PyTorch's allocator) needs at its peak beyond the logits, divided by their number. Time is set
against the same numbers from one float32 copy of all logits.
"""

import ctypes
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from experiments.benchmarks.measuring import Record, ratio
from raybrew.data.payload import Signal
from raybrew.labels.logits import pack_logits

VOCABULARIES, NUM_TOKENS, ROUNDS = (49_152, 151_936), 512, 5
SIGNAL = Signal(dtype="bfloat16", top_k=50, temperatures=(1.0, 2.0))


def records(
    vocabularies: tuple[int, ...] = VOCABULARIES, num_tokens: int = NUM_TOKENS, rounds: int = ROUNDS
) -> list[Record]:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        record for size in vocabularies for record in measured(size, num_tokens, rounds, device)
    ]


def measured(vocabulary: int, num_tokens: int, rounds: int, device: torch.device) -> list[Record]:
    logits = torch.randn(1, num_tokens, vocabulary, dtype=torch.bfloat16, device=device)
    mask = torch.ones(1, num_tokens, dtype=torch.int64, device=device)
    with torch.inference_mode():
        label(logits[:, :8], mask[:, :8])
        before = _begin(device)
        label(logits, mask)
        extra_bytes = _peak(device) - before
        ours, plain = [], []
        for _ in range(rounds):
            ours.append(_seconds(device, lambda: label(logits, mask)))
            plain.append(_seconds(device, lambda: whole(logits)))
    where = f"{num_tokens} tokens, {vocabulary:,} classes, bf16, top 50, {device.type}"
    return [
        Record(
            name=f"top-k labels of {vocabulary:,} classes, extra memory",
            value=extra_bytes / logits.numel(),
            unit="bytes a logit",
            target=4.0,
            bound="≤",
            note=where,
        ),
        ratio(
            f"top-k labels of {vocabulary:,} classes, time against whole tensors",
            ours,
            plain,
            target=1.1,
            bound="≤",
            note=f"{where}; {sorted(ours)[rounds // 2]:.2f} s",
        ),
    ]


def label(logits: Tensor, mask: Tensor) -> None:
    _, unusable = pack_logits((logits,), mask, "token", SIGNAL)
    assert unusable is None


def whole(logits: Tensor) -> None:
    """Compute the same numbers from a float32 copy of all logits, as short as PyTorch has it."""
    copy = logits[0].float()
    assert copy.isfinite().all()
    copy.topk(50)
    for temperature in SIGNAL.temperatures:
        (copy / temperature).logsumexp(dim=-1)


def _begin(device: torch.device) -> int:
    """Forget the peak so far; return what is in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _seconds(device: torch.device, work) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
