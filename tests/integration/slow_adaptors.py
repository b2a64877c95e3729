"""Adaptors that make a tiny student take its time, so that faults find it at work."""

import time

import torch

STEP_S = 0.06
NAN_TOKEN = 44  # the last word of tests.made


def slow(batch, outputs):
    if torch.is_grad_enabled():
        time.sleep(STEP_S)
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}


def nan_at_a_word(batch, outputs):
    """Only the ranks with a row in their part of the batch that begins with the word see NaN."""
    logits = outputs.logits
    if torch.is_grad_enabled():
        has_it = batch["input_ids"][:, 1:2] == NAN_TOKEN
        logits = logits + torch.where(has_it, float("nan"), 0.0)
    return {"logits": logits, "inputs_mask": batch["attention_mask"]}
