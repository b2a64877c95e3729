"""`raybrew inspect`: the parameter tree, memory, latency, throughput."""

from raybrew.inspection import inspect_model, render_inspection

__all__ = ["inspect"]


def inspect(model: str, *, max_level: int, length: int, batch_size: int) -> None:
    """Look at a model and print what was found; see `inspect_model`."""
    for found in inspect_model(model, max_level=max_level, length=length, batch_size=batch_size):
        print(render_inspection(found))
