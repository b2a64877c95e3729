"""Tiny models, data and jobs that the tests are made of: real classes, random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import raybrew as rb
from raybrew.data.split import Padding
from raybrew.teachers.teacher import ResolvedTeacher

WORDS = [f"w{n}" for n in range(40)]
CLASSES = ("down", "level", "up")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STUDENT_CONFIG = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}


def make_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """BERT's form, one token a word."""
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *(words or WORDS)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return like_bert(tokenizer)


def like_bert(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return it with BERT's form of texts and pairs, and what transformers calls its tokens."""
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_data(rows: int, seed: int = 0, twice: int = 0) -> Dataset:
    """Sentences whose class is that of the sum of their words; the last `twice` rows are copies."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(rows - twice):
        words = generator.integers(0, len(WORDS), generator.integers(3, 12))
        texts.append(" ".join(WORDS[w] for w in words))
        labels.append(int(words.mean() > 15) + int(words.mean() > 23))
    texts, labels = texts + texts[:twice], labels + labels[:twice]
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(CLASSES))})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def make_yes_no_data(rows: int, seed: int = 0) -> Dataset:
    """Pairs of a word and a sentence; the class says whether the word is among the sentence's."""
    generator = np.random.default_rng(seed)
    firsts, seconds, labels = [], [], []
    for _ in range(rows):
        words = generator.integers(0, len(WORDS), generator.integers(4, 9))
        label = int(generator.integers(2))
        first = int(generator.choice(words)) if label else int(generator.integers(len(WORDS)))
        firsts.append(WORDS[first])
        seconds.append(" ".join(WORDS[word] for word in words))
        labels.append(int(first in words))
    features = Features(
        {
            "word": Value("string"),
            "sentence": Value("string"),
            "label": ClassLabel(names=["no", "yes"]),
        }
    )
    return Dataset.from_dict(
        {"word": firsts, "sentence": seconds, "label": labels}, features=features
    )


def make_model(
    folder: Path, seed: int, labels: tuple[str, ...] = CLASSES, words: list[str] | None = None
) -> str:
    """Save a random BERT of two layers, with its tokenizer."""
    tokenizer = make_tokenizer(words)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={name: n for n, name in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        # Random BERTs answer all the same; this one has opinions.
        torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def logits_of(model: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Return a model's logits of texts, padded to one length."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**batch).logits.numpy()


def make_nameless(folder: Path, names: tuple[str, ...]) -> tuple[str, Dataset]:
    """Save a model without names for its classes, and make 120 rows that it is right about.

    Args:
        folder: of the model.
        names: of its classes, which the rows have.

    Returns:
        The folder, and rows of `text`, `label` and `logits`, in which all classes come up.
    """
    path = make_model(folder, 0, labels=tuple(f"LABEL_{n}" for n in range(len(names))))
    model: Any = BertForSequenceClassification.from_pretrained(path)
    texts = list(make_data(120)["text"])
    with torch.no_grad():
        model.classifier.bias -= torch.from_numpy(logits_of(model, make_tokenizer(), texts).mean(0))
    model.save_pretrained(path)
    logits = logits_of(model, make_tokenizer(), texts)
    assert np.bincount(logits.argmax(1)).min() > 10
    labels = [names[n] for n in logits.argmax(1)]
    return path, Dataset.from_dict({"text": texts, "label": labels, "logits": logits.tolist()})


def made_teacher(
    name: str,
    model: str,
    fingerprint: str,
    kind: str,
    dtype: str,
    batch_tokens: int | None,
    padding: Padding,
    num_threads: int,
    **changes: Any,
) -> ResolvedTeacher:
    """Return a teacher as a process hosts it; `changes` are fields of it or of its section."""
    section = {name: changes.pop(name) for name in set(changes) & set(rb.Teacher.model_fields)}
    adaptor = section.pop("adaptor", None)
    section |= {"dtype": dtype, "batch_tokens": batch_tokens}
    return ResolvedTeacher(
        config=rb.Teacher(name=name, task="t", model=model).model_copy(update=section),
        kind=kind,
        fingerprint=fingerprint,
        signals=(),
        model=model,
        padding=padding,
        num_threads=num_threads,
        adaptor=adaptor,
        **changes,
    )


def make_job(models: dict[str, str], store: Path, **changes: Any) -> rb.DistillJob:
    """Return a job of these teachers on `make_data`; `changes` replace whole sections.

    Where a test says nothing else, the last step's student is kept, to be compared with others.
    """
    sections: dict[str, Any] = {
        "tasks": [
            rb.Task(
                name="sum", train=make_data(90, twice=6), eval=make_data(30, seed=1), max_length=32
            )
        ],
        "teachers": [
            rb.Teacher(name=name, task="sum", model=model, resources={"CPU": 0.25})
            for name, model in models.items()
        ],
        "student": rb.Student(config=STUDENT_CONFIG),
        "distillation": rb.DistillationConfig(temperature=2, hard_label_weight=0.5, scale_t2=False),
        "training": rb.TrainingConfig(
            num_epochs=2, batch_size=16, learning_rate=1e-3, num_threads=1
        ),
        "labels": rb.LabelConfig(store=str(store), window=3),
        "tracking": rb.TrackingConfig(log_every=1, progress=False),
    }
    sections |= changes
    training = sections["training"]
    if "keep" not in training.model_fields_set:
        sections["training"] = training.model_copy(update={"keep": "last"})
    return rb.DistillJob(**sections)
