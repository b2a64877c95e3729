"""A BERT is distilled into one of three layers on random tokens, by a script for TextBrewer.

It is valid for both packages and gives the same losses with either: the name of the package is all
that differs.

    python -m experiments.textbrewer.random_tokens --package textbrewer
    python -m experiments.textbrewer.random_tokens --package raybrew.textbrewer
"""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

EXAMPLES, LENGTH, CLASSES, BATCH_SIZE = 100, 128, 2, 32
# A teacher's layer for a student's: states token by token, and how tokens relate to each other.
LAYERS = ((0, 0), (8, 2))
MATCHES = [
    *(
        {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for t, s in LAYERS
    ),
    *(
        {"layer_T": [t, t], "layer_S": [s, s], "feature": "hidden", "loss": "nst", "weight": 1}
        for t, s in LAYERS
    ),
]


def main(arguments: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", default="raybrew.textbrewer")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=768, help="hidden size of both models")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the published package's own
        package: Any = import_module(given.package)
    losses = distil(package, given.hidden, given.epochs, given.seed)
    for step, loss in enumerate(losses):
        print(f"step {step:3d}  loss {loss:.6f}")
    return losses


def distil(textbrewer: Any, hidden: int, epochs: int, seed: int) -> list[float]:
    """Distil with a package; return the loss of each step."""
    torch.manual_seed(seed)
    teacher, student = bert(12, hidden), bert(3, hidden)
    for name, model in (("teacher", teacher), ("student", student)):
        print(f"{name}\n{textbrewer.utils.display_parameters(model, max_level=2)[0]}")
    loader = DataLoader(random_rows(), batch_size=BATCH_SIZE)
    num_steps = len(loader) * epochs
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        distiller = textbrewer.GeneralDistiller(
            train_config=textbrewer.TrainingConfig(device="cpu", output_dir=folder),
            distill_config=textbrewer.DistillationConfig(
                temperature=8, hard_label_weight=0, intermediate_matches=MATCHES
            ),
            model_T=teacher,
            model_S=student,
            adaptor_T=adaptor,
            adaptor_S=adaptor,
        )
        distiller.write_loss = lambda loss, step, parts: losses.append(float(loss.detach()))
        with distiller:
            distiller.train(
                torch.optim.AdamW(student.parameters(), lr=1e-4),
                loader,
                num_epochs=epochs,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args={
                    "num_warmup_steps": num_steps // 10,
                    "num_training_steps": num_steps,
                },
                callback=partial(evaluate, rows=random_rows()),
            )
    return losses


def bert(layers: int, hidden: int) -> torch.nn.Module:
    build: Any = BertConfig
    config = build(
        vocab_size=100,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_labels=CLASSES,
        output_hidden_states=True,
    )
    return BertForSequenceClassification(config)


def random_rows() -> Any:
    """Return examples of tokens drawn at random, and classes likewise."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 100, (EXAMPLES, LENGTH), generator=generator)
    labels = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    return [
        {"input_ids": each, "attention_mask": torch.ones_like(each), "labels": label}
        for each, label in zip(ids, labels, strict=True)
    ]


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Say what a model's outputs mean."""
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "inputs_mask": batch["attention_mask"],
    }


@torch.no_grad()
def evaluate(model: torch.nn.Module, step: int, rows: Any) -> None:
    """Print the accuracy."""
    model.eval()
    right = 0
    for batch in DataLoader(rows, batch_size=BATCH_SIZE):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        right += int((logits.argmax(dim=-1) == batch["labels"]).sum())
    model.train()
    print(f"step {step}: accuracy {right / len(rows):.2f}")


if __name__ == "__main__":
    main()
