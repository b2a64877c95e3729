"""Placeholder version."""

from datasets import Dataset


def load_source(source, what):
    return Dataset.from_parquet(source) if isinstance(source, str) else source
