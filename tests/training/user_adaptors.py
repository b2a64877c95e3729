"""Adaptors of a user's own, as a driver script would bring them."""

import torch


def last_layer_first(batch, outputs):
    found = {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
    if outputs.get("hidden_states") is not None:
        found["hidden"] = list(reversed(outputs.hidden_states))
    return found


def no_attention(batch, outputs):
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}


def without_mask(batch, outputs):
    return {"logits": outputs.logits, "hidden": outputs.hidden_states}


def masked_class(batch, outputs):
    """A student that knows no class 2."""
    outside = torch.arange(outputs.logits.shape[-1], device=outputs.logits.device) == 2
    found = last_layer_first(batch, outputs)
    return {**found, "logits": outputs.logits.masked_fill(outside, -torch.inf)}


def with_a_loss(batch, outputs):
    """A loss of its own instead of that of the job."""
    found = last_layer_first(batch, outputs)
    loss = torch.nn.functional.cross_entropy(found["logits"], batch["labels"])
    return {**found, "losses": (loss,)}
