"""What a model gives for matches: hidden states, attention, query, key and value, module outputs.

batch ──► model(**batch, **reader.flags) ──► reader.read ──► view, features of each match
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from raybrew.errors import ConfigError
from raybrew.losses.match_spec import MatchSpec
from raybrew.matching.projection_modules import VECTORS, projection_module, split_heads
from raybrew.models.adaptors import Adaptor, View, view_of
from raybrew.models.custom_match import CustomMatch
from raybrew.models.hooks import ModuleCapture

__all__ = ["FeatureReader", "Reading", "Side", "needs_attention", "use_eager_attention"]

Side = Literal["teacher", "student"]
Match = MatchSpec | CustomMatch


@dataclass(frozen=True)
class Reading:
    """A model's answer, read.

    Args:
        view: what the adaptor says.
        features: of each match, one tensor a layer; the same object where a layer comes twice.
    """

    view: View
    features: tuple[tuple[Tensor, ...], ...]


class FeatureReader:
    """Reads the features of matches off a model.

    Args:
        model: the bare model; hooks are put on it where a match asks for them.
        adaptor: says what its outputs mean.
        matches: whose features to read.
        side: which of the two the model is.

    Raises:
        ConfigError: a module that the model hasn't got.
    """

    def __init__(self, model: nn.Module, adaptor: Adaptor, matches: Sequence[Match], side: Side):
        self._model, self._adaptor = model, adaptor
        self._matches, self._side = tuple(matches), side
        self.flags = _flags(matches)
        self._modules = {
            name: index for match in matches for name, index in self._modules_of(match).items()
        }
        # An output of a module at two indices is two captures.
        self._captures = [
            (index, ModuleCapture(model, names, dict.fromkeys(names, index)))
            for index, names in _by_index(self._modules).items()
        ]

    def read(self, batch: Mapping[str, Any], outputs: Any) -> Reading:
        """Read a forward's outputs.

        Raises:
            ConfigError: a layer or an attention map that the model or its adaptor doesn't give;
                names the match.
        """
        view = view_of(self._adaptor, batch, outputs)
        captured: dict[tuple[str, int], Tensor] = {}
        for index, capture in self._captures:
            captured |= {(name, index): tensor for name, tensor in capture.take().items()}
        self._check_mask(batch, view)
        return Reading(view, tuple(self._features(m, view, captured) for m in self._matches))

    def _check_mask(self, batch: Mapping[str, Any], view: View) -> None:
        """Refuse features of which nobody says what is padding: they change with the batch."""
        mask = batch.get("attention_mask")
        if not self._matches or view.inputs_mask is not None or mask is None:
            return
        if not bool(mask.all()):
            raise ConfigError(
                f"{self._matches[0].label}: the {self._side}'s adaptor gives no `inputs_mask`, and "
                'the batch is padded: have it give batch["attention_mask"] under that key.'
            )

    def _layers(self, match: MatchSpec) -> tuple[int, ...]:
        return match.teacher_layers if self._side == "teacher" else match.student_layers

    def _module(self, match: CustomMatch) -> str:
        return match.module_T if self._side == "teacher" else match.module_S

    def _modules_of(self, match: Match) -> dict[tuple[str, int], int]:
        if isinstance(match, CustomMatch):
            name = self._module(match)
            return {(name, match.output_index): match.output_index}
        if match.feature not in VECTORS:
            return {}
        names = [
            projection_module(self._model, match.feature, n, match.label)
            for n in self._layers(match)
        ]
        return {(name, 0): 0 for name in names}

    def _features(
        self, match: Match, view: View, captured: Mapping[tuple[str, int], Tensor]
    ) -> tuple[Tensor, ...]:
        if isinstance(match, CustomMatch):
            return (captured[self._module(match), match.output_index],)
        layers = self._layers(match)
        if match.feature in VECTORS:
            names = [projection_module(self._model, match.feature, n, match.label) for n in layers]
            split = {name: split_heads(self._model, captured[name, 0]) for name in names}
            return tuple(split[name] for name in names)
        found = view.hidden if match.feature == "hidden" else view.attention
        if match.feature == "attention" and (not found or any(m is None for m in found)):
            raise ConfigError(
                f"{match.label}: the {self._side}'s attention kernel returned no attention maps: "
                'load it with attn_implementation="eager", and have its adaptor give `attention`.'
            )
        absent = [layer for layer in layers if layer >= len(found)]
        if absent:
            has = f"0 to {len(found) - 1}" if found else "none"
            raise ConfigError(
                f"{match.label}: the {self._side}'s adaptor gives no {match.feature} of layer "
                f"{', '.join(map(str, absent))}: it gives {has}."
            )
        return tuple(found[layer] for layer in layers)


def needs_attention(matches: Sequence[Match]) -> bool:
    """Whether any match compares attention maps."""
    return any(isinstance(m, MatchSpec) and m.feature == "attention" for m in matches)


def use_eager_attention(model: Any) -> None:
    """Have a transformers model compute attention in the one way that returns its maps."""
    model.set_attn_implementation("eager")


def _flags(matches: Sequence[Match]) -> dict[str, bool]:
    features = {match.feature for match in matches if isinstance(match, MatchSpec)}
    names = {"hidden": "output_hidden_states", "attention": "output_attentions"}
    return {name: True for feature, name in names.items() if feature in features}


def _by_index(modules: Mapping[tuple[str, int], int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for (name, index), _ in modules.items():
        found.setdefault(index, []).append(name)
    return found
