"""Tiny models, tokenizers and data of every task type; the data is made, the texts are real."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from tests.made import SPECIAL, WORDS, like_bert, make_tokenizer

TAGS = ("O", "B-PER", "I-PER", "B-LOC")
TOPICS = ("sport", "money", "art")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MODELS: dict[str, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "multi-label": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "causal-lm": AutoModelForCausalLM,
}
PASSAGES = (
    "The Rhine begins in the Swiss Alps and reaches the North Sea near Rotterdam",
    "Marie Curie won the Nobel Prize in physics in 1903 and in chemistry in 1911",
    "Water boils at 100 degrees at sea level and at lower degrees on a mountain",
)


def wordpiece(*whole: str, letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """BERT's uncased form, which cuts words that aren't `whole` into letters."""
    tokens = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *whole, *".,-!?"]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    return like_bert(tokenizer)


def byte_pairs() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes: every letter of a word is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[assignment]
        add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return like_bert(tokenizer)


def lm_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and one that ends a text."""
    tokenizer = make_tokenizer([*WORDS, "</s>"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="$A", pair="$A $B", special_tokens=[]
    )
    tokenizer.eos_token = "</s>"
    return tokenizer


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind == "question-answering":
        return wordpiece("the", "in", "at", "and", "where", "when", "who")
    return lm_tokenizer() if kind == "causal-lm" else make_tokenizer()


def names_of(kind: str) -> tuple[str, ...]:
    return {
        "multi-label": TOPICS,
        "regression": ("label",),
        "token-classification": TAGS,
        "question-answering": ("start", "end"),
    }.get(kind, ())


def config_of(kind: str, vocabulary: int, **changes: Any) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    } | changes
    if kind == "causal-lm":
        return LlamaConfig(**sizes, num_key_value_heads=2, bos_token_id=None, eos_token_id=None)
    names = names_of(kind)
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    return BertConfig(**sizes, **labels)


def make_task_model(
    folder: Path, kind: str, seed: int, tokenizer: PreTrainedTokenizerFast | None = None
) -> str:
    """Save a random model of a task type with clear answers, with its tokenizer."""
    tokenizer = tokenizer or tokenizer_of(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[kind].from_config(config_of(kind, len(tokenizer)))
        head = model.get_output_embeddings() if kind == "causal-lm" else _head(model)
        torch.nn.init.normal_(head.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def _head(model: Any) -> torch.nn.Linear:
    return model.qa_outputs if hasattr(model, "qa_outputs") else model.classifier


def make_rows(kind: str, rows: int, seed: int = 0) -> Dataset:
    """Return data that a task type reads under its columns' usual names."""
    generator = np.random.default_rng(seed)
    if kind == "question-answering":
        return Dataset.from_list([_question(generator, row) for row in range(rows)])
    lengths = generator.integers(3, 12, rows)
    numbers = [generator.integers(0, len(WORDS), n) for n in lengths]
    texts = [" ".join(WORDS[n] for n in each) for each in numbers]
    if kind == "token-classification":
        tags = [[TAGS[int(n) % 4] for n in each] for each in numbers]
        return Dataset.from_dict({"words": [t.split() for t in texts], "tags": tags})
    if kind == "multi-label":
        topics = [[TOPICS[t] for t in range(3) if each[t] > 20] for each in numbers]
        return Dataset.from_dict({"text": texts, "label": topics})
    if kind == "regression":
        return Dataset.from_dict({"text": texts, "label": [float(n.mean()) / 10 for n in numbers]})
    return Dataset.from_dict({"text": texts})


def _question(generator: np.random.Generator, row: int) -> dict[str, Any]:
    passage = PASSAGES[row % len(PASSAGES)]
    words = passage.split()
    first = int(generator.integers(0, len(words) - 2))
    answer = " ".join(words[first : first + int(generator.integers(1, 3))])
    found = {"text": [answer], "answer_start": [passage.index(answer)]}
    if row % 5 == 4:
        found = {"text": [], "answer_start": []}
    return {"id": str(row), "question": f"where {row}", "context": passage, "answers": found}
