"""Bytes of a label on the wire against the padded float32 tensors that it stands for.

    python -m experiments.benchmarks wire_bytes

Teachers of BERT-base's sizes, lengths of MR's training sentences (MiniLM's tokens, which are
BERT's) padded to 64. What is shipped is made by the code that teachers run, of random features of
each length that occurs, with its offsets; nothing is timed. `L4t_hidden_mse` ships whole hidden
states of the real tokens, of which the lengths alone save 2 to 3 times: its figure is that of
`labels.dtype: bfloat16`. The others' are float32's, the default.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoTokenizer

from experiments.benchmarks.payload_bytes import BERT_BASE, padded_bytes, presets
from experiments.benchmarks.record import Record
from experiments.data import encoder, mr
from raybrew.matches.capture import pack_features, signal_of
from raybrew.matches.spec import MatchSpec

PADDED_LENGTH = 64
TARGET = 4.0
ASKED = {
    "L4t_hidden_mse": "bfloat16",
    "L4_hidden_smmd": "float32",
    "L3_attention_mse_sum": "float32",
    "pkd (5 layers)": "float32",
}


def records() -> list[Record]:
    """Count the bytes of the presets that the figure names."""
    lengths = mr_lengths()
    found = []
    for preset, dtype in ASKED.items():
        matches = presets()[preset]
        padded = padded_bytes(matches, BERT_BASE, PADDED_LENGTH)
        shipped = {each: shipped_bytes(matches, lengths, each) for each in {dtype, "float32"}}
        note = "; ".join(
            f"{each}: {count:,.0f} of {padded:,} bytes an example, {padded / count:.1f} × fewer"
            for each, count in sorted(shipped.items())
        )
        name = f"bytes_{preset.split()[0]}_{dtype}"
        found.append(Record(name, padded / shipped[dtype], "× fewer", TARGET, "≥", note=note))
    return found


def mr_lengths() -> np.ndarray:
    """Return the tokens of each of MR's training sentences, at most 64."""
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    ids = tokenizer(mr()["train"]["text"][:], truncation=True, max_length=PADDED_LENGTH)
    return np.array([len(each) for each in ids["input_ids"]])


def shipped_bytes(matches: Sequence[MatchSpec], lengths: np.ndarray, dtype: str) -> float:
    """Return the mean bytes of an example, each distinct signal once."""
    signals = {signal.name: signal for signal in (signal_of(match, dtype) for match in matches)}
    total = 0
    for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
        for signal in signals.values():
            payload, _ = pack_features(
                signal,
                [features(signal.recipe.feature, int(length)) for _ in signal.layers],
                torch.ones(1, int(length)),
            )
            total += int(count) * payload.nbytes
    return total / len(lengths)


def features(kind: str, length: int) -> torch.Tensor:
    """Return one layer's features of one example."""
    generator = torch.Generator().manual_seed(length)
    shape = (1, length, BERT_BASE.hidden_size)
    if kind == "attention":
        shape = (1, BERT_BASE.num_heads, length, length)
    return torch.rand(shape, generator=generator)
