"""TextBrewer's `utils.display_parameters`: the table and the tree behind it."""

from torch import nn

from raybrew.models import parameters
from raybrew.models.parameters import ParameterNode


def display_parameters(model: nn.Module, max_level: int | None = None) -> tuple[str, ParameterNode]:
    """Return how many parameters each part of a model has, as a table and as a tree.

    Args:
        model: any module.
        max_level: levels below the root; all if None.
    """
    table = parameters.display_parameters(model, max_level)
    return table, parameters.parameter_tree(model, max_level)
