"""Adaptors of a user's own, as a driver script would bring them."""


def last_layer_first(batch, outputs):
    found = {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
    if outputs.get("hidden_states") is not None:
        found["hidden"] = list(reversed(outputs.hidden_states))
    return found


def no_attention(batch, outputs):
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}


def without_mask(batch, outputs):
    return {"logits": outputs.logits, "hidden": outputs.hidden_states}
