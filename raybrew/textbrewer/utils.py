"""TextBrewer's `utils`: how large the parts of a model are, and small helpers of its scripts.

LAYER NAME        #PARAMS    RATIO   MEM(MB)
--model:               66  100.00%      0.00
  --embedding:         40   60.61%      0.00
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_MB = 2**20


class LayerNode(dict[str, "LayerNode"]):
    """A module, a parameter or a buffer: a dict of what is below it.

    Args:
        name: the last part of its name; "(shared)" is appended if it is counted elsewhere.
        parent: the module that it is in.
        fullname: all parts of its name.

    Attributes:
        value: numbers, and MB of 2²⁰ bytes.
    """

    def __init__(self, name: str, parent: "LayerNode | None" = None, fullname: str | None = None):
        super().__init__()
        self.name, self.parent, self.fullname = name, parent, fullname
        self.value: list[Any] = [0, 0.0]

    @property
    def children_name(self) -> dict[str, "LayerNode"]:
        """What is below it, by name."""
        return self

    def format(self, max_level: int | None = None) -> str:
        """Return a table of this node and what is below it, down to a level."""
        rows = list(self._rows(0, max_level))
        width = max(len(label) for label, _, _ in rows) + 1
        lines = [f"{'LAYER NAME':<{width}}\t{'#PARAMS':>15}\t{'RATIO':>10}\t{'MEM(MB)':>8}"]
        for label, node, has_numbers in rows:
            count, megabytes = node.value
            line = f"{label + ':':<{width}}\t{count:15,d}\t{count / self.value[0]:>10.2%}"
            lines.append(f"{line}\t{megabytes:>8.2f}" if has_numbers else f"{label:{width}}")
        return "\n" + "".join(f"{line}\n" for line in lines)

    def _rows(self, level: int, max_level: int | None) -> Iterator[tuple[str, "LayerNode", bool]]:
        is_last = max_level is not None and level == max_level
        # The numbers of an only child are shown, and are its parent's too.
        yield "  " * level + "--" + self.name, self, is_last or len(self) != 1
        if not is_last:
            for child in self.values():
                yield from child._rows(level + 1, max_level)


def display_parameters(
    model: nn.Module | Mapping[str, Tensor], max_level: int | None = None
) -> tuple[str, LayerNode]:
    """Return how many numbers each part of a model has, as a table and as a tree.

    Args:
        model: a module, or the dict of its state.
        max_level: levels below the root; all if None.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(model, nn.Module | Mapping):
        raise TypeError(f"model: expected a module or the dict of a state, got {type(model)}")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    root = LayerNode("model", fullname="model")
    seen: set[int] = set()
    for key, tensor in state.items():
        path, parts = [root], key.split(".")
        for number, part in enumerate(parts, start=1):
            if part not in path[-1]:
                fullname = ".".join(parts[:number])
                path[-1][part] = LayerNode(part, parent=path[-1], fullname=fullname)
            path.append(path[-1][part])
        if tensor.data_ptr() in seen:
            path[-1].name += "(shared)"
            path[-1].fullname = f"{path[-1].fullname}(shared)"
            continue
        seen.add(tensor.data_ptr())
        for node in path:
            megabytes = tensor.numel() * tensor.element_size() / _MB
            node.value = [node.value[0] + tensor.numel(), node.value[1] + megabytes]
    return root.format(max_level), root


def cycle(iterable: Iterable[Any]) -> Iterator[Any]:
    """Yield what an iterable holds, again and again."""
    while True:
        yield from iterable


def initializer_builder(std: float) -> Callable[[nn.Module], None]:
    """Return what draws the weights of a linear map or an embedding from N(0, std²)."""

    def initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    return initialize
