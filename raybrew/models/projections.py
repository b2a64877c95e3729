"""Projections that bring the student's vectors to the teacher's size, trained with the student."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.errors import ConfigError
from raybrew.losses.match_spec import MatchSpec, ProjectionSpec
from raybrew.losses.projection_kinds import projection_builder

__all__ = [
    "Projection",
    "build_projections",
    "check_projection_options",
    "projection_key",
    "projection_param_groups",
]


class Projection(nn.Module):
    """The projection of one match.

    Its layers share one map, as both layers of an fsp match do; a match of many layers (emd) has
    one map for each.

    Args:
        spec: kind, student's size, teacher's size, optimizer options (not used here).
        num_maps: 1, or one for each layer of the student.
        generator: where the weights are drawn from.
    """

    def __init__(self, spec: ProjectionSpec, num_maps: int, generator: torch.Generator) -> None:
        super().__init__()
        kind, student_size, teacher_size, _ = spec
        build = projection_builder(kind)
        # What builds it draws from the global generator, whose state is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.maps = nn.ModuleList(build(student_size, teacher_size) for _ in range(num_maps))

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Project the student's hidden states of each layer of the match.

        Args:
            states: one (…, student_size) per layer.

        Returns:
            One (…, teacher_size) per layer; one tensor twice where it came twice.
        """
        if len(self.maps) == 1:
            # A layer matched with itself is projected once.
            distinct = {id(state): state for state in states}
            projected = {key: self._project(0, state) for key, state in distinct.items()}
            return [projected[id(state)] for state in states]
        if len(states) != len(self.maps):
            raise ConfigError(
                f"A projection of {len(self.maps)} layers got the hidden states of {len(states)}."
            )
        return [self._project(i, state) for i, state in enumerate(states)]

    def _project(self, index: int, state: Tensor) -> Tensor:
        return self.maps[index](state)


def projection_key(position: int) -> str:
    """Name of a match's projection by the match's place in the list."""
    return f"match_{position}"


def build_projections(matches: Sequence[MatchSpec], seed: int = 0) -> nn.ModuleDict:
    """Make the projections of the matches that have one.

    Args:
        matches: in the order of the config.
        seed: the weights are a function of it and of the matches before, on any rank.

    Returns:
        `projection_key(position)` → Projection, float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    projections = nn.ModuleDict()
    for position, match in enumerate(matches):
        if match.proj is not None:
            per_layer = match.build_loss().projection_per_layer
            num_maps = len(match.student_layers) if per_layer else 1
            projections[projection_key(position)] = Projection(match.proj, num_maps, generator)
    return projections


def projection_param_groups(
    projections: nn.ModuleDict,
    matches: Sequence[MatchSpec],
    optimizer_class: type[torch.optim.Optimizer] | None = None,
) -> list[dict[str, Any]]:
    """Give each projection an optimizer group of its own, with the options of its match.

    Args:
        projections: of `build_projections`, of the same matches.
        matches: in the same order.
        optimizer_class: where given, options it doesn't know are refused (torch takes any).

    Returns:
        Groups for `optimizer.add_param_group`; what a group leaves out is the optimizer's default.

    Raises:
        ConfigError: an option the optimizer hasn't got, naming the match and the nearest names.
    """
    groups = []
    for position, match in enumerate(matches):
        if match.proj is None:
            continue
        options = match.proj[3]
        check_projection_options(match.label, options, optimizer_class)
        parameters = list(projections[projection_key(position)].parameters())
        groups.append({"params": parameters, **options})
    return groups


def check_projection_options(
    what: str,
    options: dict[str, Any],
    optimizer_class: type[torch.optim.Optimizer] | None,
) -> None:
    """Refuse options of a projection that its optimizer group can't have.

    Args:
        what: the match, for the message.
        options: of the group.
        optimizer_class: None if it isn't known: then it takes any.

    Raises:
        ConfigError: names the match and the nearest options.
    """
    if "params" in options:
        raise ConfigError(f"{what}: `params` of its projection is the library's to set.")
    if optimizer_class is None:
        return
    known = [name for name in inspect.signature(optimizer_class).parameters if name != "params"]
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=2)
            hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
            raise ConfigError(
                f"{what}: {optimizer_class.__name__} has no option {name!r}.{hint} Its "
                f"options are {', '.join(known)}."
            )
