"""Bytes and time of an example's labels: by preset, as shipped, and of top-k logits."""

import argparse
import ctypes
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import gamma
from torch import Tensor
from transformers import AutoTokenizer

from experiments.benchmarks.measuring import Record, ratio
from experiments.data import encoder, mr
from raybrew.data.files import to_json
from raybrew.data.payload import Signal
from raybrew.labels.logits import pack_logits
from raybrew.matches.capture import pack_features, signal_of
from raybrew.matches.presets import PRESETS, ModelGeometry, generate_matches, statistic_sizes
from raybrew.matches.spec import MatchSpec

# Bytes of an example's labels: by preset, and as they are shipped.

# Bytes per example that each preset ships: padded float32 tensors against reduced statistics.
#
#     python experiments/benchmarks/payload_bytes.py
#     python experiments/benchmarks/payload_bytes.py --lengths lengths.txt --json table.json
#
# Without a file of lengths (one number a line) a made distribution stands in for MR's sentences: a
# gamma distribution of mean 27 and standard deviation 12 over 3 to 64 tokens, by its quantiles, so
# the table is the same on any machine. Sizes are BERT-base's. Deterministic: nothing is timed.

BERT_BASE = ModelGeometry(num_layers=12, hidden_size=768, num_heads=12)
BYTES_OF = {"float32": 4, "bfloat16": 2}
NUM_QUANTILES = 1000


@dataclass(frozen=True)
class PayloadRow:
    """Mean bytes per example of one preset."""

    preset: str
    padded_float32_bytes: float
    reduced_bytes: dict[str, float]  # by the dtype that is shipped

    def ratio(self, dtype: str) -> float:
        return self.padded_float32_bytes / self.reduced_bytes[dtype]


def made_lengths(mean: float = 27, deviation: float = 12, longest: int = 64) -> list[int]:
    """Quantiles of a gamma distribution, cut to what a tokenizer could give."""
    shape = (mean / deviation) ** 2
    probabilities = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    quantiles = gamma.ppf(probabilities, a=shape, scale=mean / shape)
    return np.clip(np.rint(quantiles), 3, longest).astype(int).tolist()


def padded_bytes(matches: Sequence[MatchSpec], teacher: ModelGeometry, padded_length: int) -> int:
    """Full tensors of the layers that the matches read, each once, in float32."""
    layers = {(match.feature, layer) for match in matches for layer in match.teacher_layers}
    attention = teacher.num_heads * padded_length**2
    hidden = padded_length * teacher.hidden_size
    return sum(4 * (attention if feature == "attention" else hidden) for feature, _ in layers)


def reduced_entries(matches: Sequence[MatchSpec], teacher: ModelGeometry, num_tokens: int) -> int:
    """How many numbers the match losses say they ship for one example."""
    total = 0
    for match in matches:
        sizes = statistic_sizes(match, teacher)
        total += torch.Size(match.build_loss().payload_shape(num_tokens, sizes)).numel()
    return total


def presets() -> dict[str, Sequence[MatchSpec]]:
    """TextBrewer's names, and one for each loss that they leave out."""
    layers = [match.layer_T for match in PRESETS["L4t_hidden_mse"]]
    named: dict[str, Sequence[MatchSpec]] = dict(PRESETS)
    student = replace(BERT_BASE, num_layers=4)
    named["pkd (5 layers)"] = generate_matches("hidden_pkd", BERT_BASE, student)
    named["pkd (1 layer)"] = named["pkd (5 layers)"][:1]
    for loss in ("attention_transfer", "rkd_distance", "sp", "cka"):
        named[f"{loss} (5 layers)"] = [
            MatchSpec(layer_T=layer, layer_S=0, feature="hidden", loss=loss) for layer in layers
        ]
    named["minilm_value_relation (1 layer)"] = [
        MatchSpec(layer_T=11, layer_S=3, feature="value", loss="minilm_value_relation")
    ]
    named["emd (12 → 4 layers)"] = [
        MatchSpec(layer_T=tuple(range(1, 13)), layer_S=(1, 2, 3, 4), feature="hidden", loss="emd")
    ]
    return named


def payload_table(lengths: Sequence[int], padded_length: int) -> list[PayloadRow]:
    """One row per preset, averaged over the sentences."""
    counts = np.bincount(np.asarray(lengths)).tolist()
    rows = []
    for name, matches in presets().items():
        entries = sum(
            count * reduced_entries(matches, BERT_BASE, num_tokens)
            for num_tokens, count in enumerate(counts)
            if count
        )
        mean = entries / len(lengths)
        reduced = {dtype: mean * size for dtype, size in BYTES_OF.items()}
        rows.append(PayloadRow(name, padded_bytes(matches, BERT_BASE, padded_length), reduced))
    return rows


def printed(rows: Sequence[PayloadRow], title: str) -> Table:
    table = Table(title=title)
    table.add_column("preset")
    for column in (
        "padded float32",
        *(f"{x}{dtype}" for dtype in BYTES_OF for x in ("", "ratio, ")),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row.padded_float32_bytes:,.0f}"]
        for dtype in BYTES_OF:
            cells += [f"{row.reduced_bytes[dtype]:,.0f}", f"{row.ratio(dtype):,.1f} ×"]
        table.add_row(row.preset, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lengths", type=Path, help="file of sentence lengths, one a line")
    parser.add_argument("--padded-length", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    lengths = made_lengths(longest=arguments.padded_length)
    if arguments.lengths:
        given = [int(line) for line in arguments.lengths.read_text().split()]
        lengths = [min(length, arguments.padded_length) for length in given]
    rows = payload_table(lengths, arguments.padded_length)
    title = (
        f"Bytes per example: BERT-base, {len(lengths)} sentences of {np.mean(lengths):.1f} tokens "
        f"on average, padded to {arguments.padded_length}"
    )
    Console(width=110).print(printed(rows, title))
    if arguments.json:
        arguments.json.write_text(to_json([asdict(row) for row in rows], indent=2))


# Bytes of a label on the wire against the padded float32 tensors that it stands for.
#
#     python -m experiments.benchmarks wire_bytes
#
# Teachers of BERT-base's sizes, lengths of MR's training sentences (MiniLM's tokens, which are
# BERT's) padded to 64. What is shipped is made by the code that teachers run, of random features of
# each length that occurs, with its offsets; nothing is timed. `L4t_hidden_mse` ships whole hidden
# states of the real tokens, of which the lengths alone save 2 to 3 times: its figure is that of
# `labels.dtype: bfloat16`. The others' are float32's, the default.

PADDED_LENGTH = 64
TARGET = 4.0
ASKED = {
    "L4t_hidden_mse": "bfloat16",
    "L4_hidden_smmd": "float32",
    "L3_attention_mse_sum": "float32",
    "pkd (5 layers)": "float32",
}


def wire_bytes() -> list[Record]:
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


# What it takes to turn a language model's logits into top-k labels: memory and time.
#
#     python -m experiments.benchmarks label_logits
#
# Logits are random, in bf16 on the device, 50 are kept a token. Memory is what the process (on a
# GPU PyTorch's allocator) needs at its peak beyond the logits, divided by their number. Time is
# set against the same numbers from one float32 copy of all logits.

SIGNAL = Signal(dtype="bfloat16", top_k=50, temperatures=(1.0, 2.0))


def label_logits(
    vocabularies: tuple[int, ...] = (49_152, 151_936), num_tokens: int = 512, rounds: int = 5
) -> list[Record]:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        record
        for size in vocabularies
        for record in measure_label_logits(size, num_tokens, rounds, device)
    ]


def measure_label_logits(
    vocabulary: int, num_tokens: int, rounds: int, device: torch.device
) -> list[Record]:
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
            to_reach=("≤", 1.1),
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


if __name__ == "__main__":
    main()
