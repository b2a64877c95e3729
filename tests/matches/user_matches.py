"""A custom match's loss and projection, as a driver script would bring them."""

import torch
from torch import nn

from raybrew.losses.match_loss import Partial


def squared_error(output_S, output_T, mask_S, mask_T):
    return ((output_S - output_T) ** 2).mean()


def masked_squared_error(output_S, output_T, mask_S, mask_T):
    error = ((output_S - output_T) ** 2).sum(-1) * mask_S
    return Partial(error.sum(1), mask_S.sum(1).to(error) * output_S.shape[-1])


def not_a_loss(output_S, output_T, mask_S, mask_T):
    return output_S - output_T


def own_projection():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU())


def builds_no_module():
    return 3
