"""The objective's share of a student step: forward and backward, with and without it.

    python -m experiments.benchmarks objective_overhead
    python -m experiments.benchmarks.objective_overhead --pairs 100 --threads 2

The step is that of a BERT of 2 layers × 384 on 32 × 64 tokens. With the objective it takes the
loss on the logits and four matches of hidden states, from labels as the store gives them; without
it, the cross-entropy with the true labels. Repetitions of the two alternate, in an order that is
drawn for each pair; median and quartiles of the pairs' ratios are printed. On one core it is
the process's CPU time that counts, so that what else runs on the machine says little.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

import raybrew as rb
from experiments.benchmarks.measuring import Record, interleaved
from raybrew.data.files import to_json
from raybrew.data.payload import Payload, Signal, to_storage
from raybrew.labels.logits import tensors_of
from raybrew.matches.capture import pack_features
from raybrew.matches.plan import geometry_of, plan_matches
from raybrew.objective import Objective, TrainProgress
from raybrew.tasks import TASK_TYPES
from raybrew.training.module import StudentModule, TaskReader
from raybrew.training.prefetch import map_tensors

BATCH, LENGTH, CLASSES, SIZE = 32, 64, 3, 384
TARGET = 0.05
LAYERS = ((0, 0), (4, 1), (8, 2), (12, 2))


def models() -> tuple[BertConfig, BertConfig]:
    """Student and teacher, the teacher by its sizes alone."""
    common: dict[str, Any] = {
        "hidden_size": SIZE,
        "num_attention_heads": 12,
        "intermediate_size": 4 * SIZE,
    }
    common["id2label"] = {n: str(n) for n in range(CLASSES)}
    return (
        BertConfig(num_hidden_layers=2, **common),
        BertConfig(num_hidden_layers=12, **common),
    )


def make_steps(device: torch.device) -> dict[str, Callable[[], None]]:
    student, teacher = models()
    torch.manual_seed(0)
    config = rb.DistillationConfig(
        temperature=8,
        matches=[
            {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse"}
            for t, s in LAYERS
        ],
    )
    teachers = {"a": geometry_of(teacher)}
    matches = plan_matches(config.matches, "t", teachers, ["a"], geometry_of(student), "float32")
    adaptor = TASK_TYPES["sequence-classification"].adaptor
    model: Any = BertForSequenceClassification(student)
    model.to(device)
    with_matches = StudentModule(model, [TaskReader(model, adaptor, matches)], 0)
    without = StudentModule(model, [TaskReader(model, adaptor)], 0)
    lengths = np.random.default_rng(0).integers(LENGTH // 2, LENGTH + 1, BATCH)
    lengths[0] = LENGTH
    mask = torch.from_numpy(np.arange(LENGTH) < lengths[:, None])
    inputs = {
        "input_ids": torch.randint(1000, 20000, (BATCH, LENGTH)).to(device),
        "attention_mask": mask.long().to(device),
    }
    labels = torch.randint(0, CLASSES, (BATCH,)).to(device)
    payloads = {
        match.signal: pack_features(match.signal, [torch.randn(BATCH, LENGTH, SIZE)], mask)[0]
        for match in matches
    }
    payloads[Signal()] = Payload(to_storage(torch.randn(BATCH, CLASSES), "float32"))
    objective = Objective(config, {"a": 1.0}, None, matches)
    hard = Objective(None, {})
    batch = labels.cpu().numpy(), [lengths]

    def distilled() -> None:
        host = {"a": {s.name: tensors_of(p, s) for s, p in payloads.items()}}
        soft = map_tensors(host, lambda tensor: tensor.to(device))
        view, features, _ = with_matches(inputs, labels)
        sums = objective.numerators(view, soft, TrainProgress(), features=features)
        objective.total(sums, objective.denominators(*batch), TrainProgress()).backward()
        finish()

    def alone() -> None:
        view, *_ = without(inputs, labels)
        sums = hard.numerators(view, {}, TrainProgress())
        hard.total(sums, hard.denominators(*batch), TrainProgress()).backward()
        finish()

    def finish() -> None:
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {"with": distilled, "without": alone}


def seconds(step: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def measured(pairs: int, threads: int) -> Record:
    """Time both steps in turn."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = make_steps(device)
    for step in list(steps.values()) * 3:
        step()
    # On one core, the time that the process has had of it: what else runs doesn't count.
    clock = time.perf_counter if device.type == "cuda" or threads > 1 else time.process_time
    contenders = {name: partial(seconds, step, clock) for name, step in steps.items()}
    times = interleaved(contenders, pairs, what="objective", seed=1)
    shares = np.array(times["with"]) / np.array(times["without"]) - 1
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75]).tolist()
    best = min(times["with"]) / min(times["without"]) - 1
    return Record(
        name="objective: share of a step that it adds",
        value=middle,
        unit="of a step",
        target=TARGET,
        bound="≤",
        spread=(low, high),
        repetitions=pairs,
        note=f"BERT of 2 × {SIZE}, {BATCH} × {LENGTH} tokens, logits and 4 hidden matches, "
        f"{threads} threads, {device.type}; step without it {np.median(times['without']):.3f} s; "
        f"fastest of each {best:+.1%}",
    )


def records() -> list[Record]:
    return [measured(pairs=30, threads=1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(to_json(measured(arguments.pairs, arguments.threads).to_plain(), indent=1))


if __name__ == "__main__":
    main()
