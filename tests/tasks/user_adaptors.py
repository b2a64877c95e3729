"""An adaptor as a user brings it, for a model whose answer is more than one row of logits."""


def there_and_back(batch, outputs):
    found = {
        "logits": [outputs.logits, outputs.logits.flip(-1)],
        "inputs_mask": batch["attention_mask"],
    }
    if "labels" in batch:
        found["labels"] = [batch["labels"], outputs.logits.shape[-1] - 1 - batch["labels"]]
    return found
