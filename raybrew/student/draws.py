"""What a step draws, such as dropout: a function of (seed, step, rank) alone."""

import numpy as np
import torch

__all__ = ["seed_draws"]


def seed_draws(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed PyTorch for a step: a resumed run draws what it would have drawn.

    Args:
        seed: of the run.
        step: counts from 0.
        rank: counts from 0.
        device: where the model is.
    """
    parts = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    value = int(parts[0] >> np.uint64(1))
    # torch.manual_seed queues a call, with its stack, for every kind of device that isn't in use:
    # each step would take longer for it, and the queue would grow with the run.
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
