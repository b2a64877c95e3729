"""Bytes per example that each preset ships: padded float32 tensors against reduced statistics.

    python experiments/benchmarks/payload_bytes.py
    python experiments/benchmarks/payload_bytes.py --lengths lengths.txt --json table.json

Without a file of lengths (one number a line) a made distribution stands in for MR's sentences: a
gamma distribution of mean 27 and standard deviation 12 over 3 to 64 tokens, by its quantiles, so
the table is the same on any machine. Sizes are BERT-base's. Deterministic: nothing is timed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import gamma

from raybrew.data.files import to_json
from raybrew.matches.presets import PRESETS, ModelGeometry, generate_matches, statistic_sizes
from raybrew.matches.spec import MatchSpec

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


if __name__ == "__main__":
    main()
