"""Tiny checkpoints of several architectures, with a tokenizer of eight words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from raybrew.config import Student, Teacher
from raybrew.models.pretrained import quiet_transformers
from raybrew.models.students import Head, build_student, student_config
from raybrew.tasks import TASK_TYPES

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}


def bert(**changes) -> BertConfig:
    return BertConfig(**{**SIZES, "num_hidden_layers": 4, **changes})


def distilbert() -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=len(WORDS),
        dim=16,
        n_heads=2,
        n_layers=4,
        hidden_dim=32,
        max_position_embeddings=24,
    )


def roberta() -> RobertaConfig:
    return RobertaConfig(
        **SIZES, num_hidden_layers=4, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )


def electra() -> ElectraConfig:
    return ElectraConfig(**SIZES, embedding_size=8, num_hidden_layers=4)


def gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=len(WORDS),
        n_embd=16,
        n_head=2,
        n_layer=4,
        n_positions=24,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def modernbert() -> ModernBertConfig:
    return ModernBertConfig(
        **SIZES,
        num_hidden_layers=4,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )


def save_tokenizer(folder: Path, **special: str) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", **special
    ).save_pretrained(folder)


def save_teacher(folder: Path, config: PreTrainedConfig, num_labels: int = 2, seed: int = 1) -> str:
    config.num_labels = num_labels
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return str(folder)


def weights(path: str) -> dict[str, torch.Tensor]:
    with quiet_transformers():
        return AutoModelForSequenceClassification.from_pretrained(path).state_dict()


def one_head(names: Sequence[str], kind: str = "sequence-classification") -> list[Head]:
    """The head of the only task."""
    return [Head("t", TASK_TYPES[kind], tuple(names))]


def build(
    student: Student, teachers: dict[str, Teacher], num_labels: int = 2, seed: int = 0
) -> tuple[Any, Any]:
    heads = one_head([f"class {index}" for index in range(num_labels)])
    return build_student(student, heads, teachers, seed=seed)


def check(
    student: Student, teachers: dict[str, Teacher], num_labels: int = 2, what: str = "student"
) -> tuple[Any, Any]:
    heads = one_head([f"LABEL_{index}" for index in range(num_labels)])
    return student_config(student, heads, teachers, what)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def one_teacher(folder: Path, config: PreTrainedConfig, name: str) -> dict[str, Teacher]:
    return {name: Teacher(name=name, task="t", model=save_teacher(folder, config))}
