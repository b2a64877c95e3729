"""What a script written for TextBrewer has: tiny models, a loader that shuffles, adaptors.

Every function takes the package, which is the published one or ours.
"""

import random
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

import raybrew.textbrewer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import textbrewer

PUBLISHED: Any = textbrewer
OURS: Any = raybrew.textbrewer
SHUFFLES = random.Random()
"""Stands where Python's generator is: checks of shapes, which beartype makes, draw from that."""
LENGTH, ROWS, CLASSES, VOCABULARY = 12, 40, 3, 50


class Losses:
    """Stands where the TensorBoard writer is."""

    def __init__(self):
        self.of: dict[str, list[float]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.of.setdefault(tag.removeprefix("scalar/"), []).append(value)

    def flush(self) -> None:
        pass

    @property
    def total(self) -> list[float]:
        return self.of["total_loss"]


def rows(seed: int = 0, *, per_token: bool = False) -> list[dict[str, torch.Tensor]]:
    """Examples padded to one length."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(ROWS):
        tokens = int(torch.randint(4, LENGTH + 1, (), generator=generator))
        ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=generator)
        mask = torch.arange(LENGTH) < tokens
        shape = (LENGTH,) if per_token else ()
        labels = torch.randint(0, CLASSES, shape, generator=generator)
        found.append(
            {
                "input_ids": ids * mask,
                "attention_mask": mask.long(),
                "labels": torch.where(mask, labels, -100) if per_token else labels,
            }
        )
    return found


def loader(seed: int = 0, **changes: Any) -> DataLoader:
    data: Any = rows(seed, per_token=changes.pop("per_token", False))
    return DataLoader(data, **{"batch_size": 8, "shuffle": True, **changes})


class KeptOrder:
    """The batches of one pass over a loader, shuffled for each pass: as caching reads them."""

    def __init__(self, loader: DataLoader):
        self._loader, self._batches = loader, []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self._batches = self._batches or list(self._loader)
        SHUFFLES.shuffle(self._batches)
        return iter(self._batches)


def model(
    seed: int, *, layers: int = 2, hidden: int = 16, per_token: bool = False, dropout: float = 0.1
) -> nn.Module:
    build: Any = BertConfig
    config = build(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    cls = BertForTokenClassification if per_token else BertForSequenceClassification
    found: Any = cls(config)
    nn.init.normal_(found.classifier.weight, std=1.0)
    return found


def adaptor(batch: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    return {
        "logits": outputs.logits,
        "losses": outputs.loss,
        "labels": batch["labels"],
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def token_adaptor(batch: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    return {**adaptor(batch, outputs), "logits_mask": batch["attention_mask"]}


def settings(package: Any, folder: Path, **changes: Any) -> Any:
    defaults = {"output_dir": str(folder), "log_dir": None, "device": "cpu"}
    return package.TrainingConfig.from_dict({**defaults, **changes})


ARGUMENTS = {"output_hidden_states": True, "output_attentions": True}


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    SHUFFLES.seed(seed)


def distil(
    package: Any,
    kind: str,
    folder: Path,
    distillation: Mapping[str, Any],
    teachers: Any,
    student: nn.Module,
    loaders: Any,
    *,
    adaptors: tuple[Any, Any] = (adaptor, adaptor),
    training: Mapping[str, Any] | None = None,
    custom_matches: Any = None,
    seed: int = 5,
    optimizer: Any = None,
    **train: Any,
) -> tuple[Losses, Any]:
    """Run the script; return the losses and the distiller."""
    seed_all(seed)
    extra = {} if custom_matches is None else {"custom_matches": custom_matches}
    distiller = getattr(package, kind)(
        train_config=settings(package, folder, **(training or {})),
        distill_config=package.DistillationConfig.from_dict(dict(distillation)),
        model_T=teachers,
        model_S=student,
        adaptor_T=adaptors[0],
        adaptor_S=adaptors[1],
        **extra,
    )
    losses = Losses()
    distiller.tb_writer = losses
    optimizer = optimizer or torch.optim.AdamW(student.parameters(), lr=1e-3)
    with distiller:
        distiller.train(optimizer, loaders, **{**ARGUMENTS, **train})
    return losses, distiller
