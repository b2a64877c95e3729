"""Adaptors that make tiny models take their time, so that faults find them at work."""

import os
import time
from pathlib import Path

import torch

STEP_S = 0.06
STEPS_ALONE, JOINED_S = 5, 100.0
NAN_TOKEN = 44  # the last word of tests.made

_alone: list[int] = []


def slow(batch, outputs):
    if torch.is_grad_enabled():
        time.sleep(STEP_S)
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}


def alone_until_the_others_come(batch, outputs):
    """A rank that is alone takes a few steps, and waits: that another joins is what ends it."""
    if torch.is_grad_enabled() and torch.distributed.get_world_size() == 1:
        _alone.append(1)
        if len(_alone) > STEPS_ALONE:
            time.sleep(JOINED_S)
    return slow(batch, outputs)


def rounded(batch, outputs):
    """A teacher's answers whose bits don't depend on which examples a forward has besides."""
    logits = torch.round(outputs.logits * 256) / 256
    return {"logits": logits, "inputs_mask": batch["attention_mask"]}


def nan_at_a_word(batch, outputs):
    """Only the ranks with a row in their part of the batch that begins with the word see NaN."""
    logits = outputs.logits
    if torch.is_grad_enabled():
        has_it = batch["input_ids"][:, 1:2] == NAN_TOKEN
        logits = logits + torch.where(has_it, float("nan"), 0.0)
    return {"logits": logits, "inputs_mask": batch["attention_mask"]}


def slow_teacher(batch, outputs):
    """Take a while, and write down how many rows a forward had."""
    with Path(os.environ["RAYBREW_TEST_FORWARDS"]).open("a") as log:
        log.write(f"{len(outputs.logits)}\n")
    time.sleep(0.3)
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
