"""Adaptors that write down, in the middle of a forward, on which of Ray's nodes it is.

The file `<who>-<node>` in the folder RAYBREW_TEST_WITNESSES gets the number of examples as a line.
"""

import os
from pathlib import Path

import ray


def teacher(batch, outputs):
    return _seen("teacher", batch, outputs)


def student(batch, outputs):
    return _seen("student", batch, outputs)


def _seen(who, batch, outputs):
    # The driver tries adaptors before it has a Ray.
    if ray.is_initialized():
        node = ray.get_runtime_context().get_node_id()
        with Path(os.environ["RAYBREW_TEST_WITNESSES"], f"{who}-{node}").open("a") as file:
            file.write(f"{len(batch['input_ids'])}\n")
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
