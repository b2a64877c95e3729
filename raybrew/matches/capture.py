"""The features of a model: captured by hooks, read by layer, packed as a signal's payload."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.config.section import import_path_of
from raybrew.data.payload import DTYPES, Payload, Signal, to_storage
from raybrew.errors import ConfigError, did_you_mean
from raybrew.losses.match_loss import pack
from raybrew.matches.spec import CustomMatch, MatchSpec
from raybrew.models.layers import layer_stack
from raybrew.tasks.adaptors import Adaptor, View, view_of

# The outputs of named modules, by forward hooks; what custom matches compare.
#
# with ModuleCapture(student, ["encoder.layer.1.output"]) as captured:
#     student(**batch)
#     outputs = captured.take()          # {"encoder.layer.1.output": tensor}


class ModuleCapture:
    """Keeps the last output of each named module until it is taken.

    Args:
        model: the model, not wrapped (give `ddp.module`).
        names: modules as `model.named_modules()` names them.
        output_indices: which entry is meant where a module returns a tuple; 0 where not given.

    Raises:
        ConfigError: a name the model hasn't got, with the nearest ones.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        output_indices: dict[str, int] | None = None,
    ) -> None:
        self._outputs: dict[str, Tensor] = {}
        indices = output_indices or {}
        # All names are looked up before the first hook, so that an error leaves none behind.
        modules = {name: find_module(model, name) for name in names}
        self._handles = [
            module.register_forward_hook(self._hook(name, indices.get(name, 0)))
            for name, module in modules.items()
        ]
        self._names = list(modules)

    def take(self) -> dict[str, Tensor]:
        """Give the outputs of the last forward, and forget them.

        Raises:
            ConfigError: a module that the forward didn't call.
        """
        missing = [name for name in self._names if name not in self._outputs]
        if missing:
            raise ConfigError(
                f"The forward didn't call {', '.join(missing)}: no output to match. Name modules "
                "that this model's forward runs, and run it before each take()."
            )
        outputs = dict(self._outputs)
        self._outputs.clear()
        return outputs

    def remove(self) -> None:
        """Take the hooks off the model; may be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _hook(self, name: str, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep_output(module: nn.Module, arguments: Any, output: Any) -> None:
            self._outputs[name] = _chosen_tensor(name, output, index)

        return keep_output


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Look a module up by its dotted name.

    Raises:
        ConfigError: the model has no such module; names the nearest ones.
    """
    modules = dict(model.named_modules())
    if name in modules:
        return modules[name]
    raise ConfigError(
        f"{type(model).__name__} has no module {name!r}{did_you_mean(name, modules) or '.'} "
        "model.named_modules() lists them."
    )


def _chosen_tensor(name: str, output: Any, index: int) -> Tensor:
    chosen = output
    if isinstance(output, tuple | list):
        if index >= len(output):
            raise ConfigError(
                f"Module {name!r} returns {len(output)} outputs; none at output_index {index}."
            )
        chosen = output[index]
    if not isinstance(chosen, Tensor):
        raise ConfigError(
            f"Module {name!r} returns a {type(chosen).__name__}; a custom match takes a tensor, or "
            "a tuple with one at output_index."
        )
    return chosen


# Query, key and value vectors: outputs of the linear modules that make them in each layer.

VECTORS = {
    "query": ("query", "q_lin", "q_proj", "query_proj", "q"),
    "key": ("key", "k_lin", "k_proj", "key_proj", "k"),
    "value": ("value", "v_lin", "v_proj", "value_proj", "v"),
}
"""By feature, how models call the module that makes it."""


def qkv_module(model: nn.Module, feature: str, layer: int, what: str) -> str:
    """Return the name of the module whose output is a layer's query, key or value.

    Args:
        model: a transformers model.
        feature: a key of `VECTORS`.
        layer: from 0.
        what: whose message an error is.

    Raises:
        ConfigError: the layer has no such module, or several.
    """
    assert isinstance(model, PreTrainedModel), "matches on query, key and value read transformers"
    prefix = f"{layer_stack(model)}.{layer}."
    found = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and name.rpartition(".")[2] in VECTORS[feature]
        and hasattr(module, "weight")
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{what}: expected one module for the {feature} vectors in {prefix[:-1]} of "
            f"{type(model).__name__} (named {', '.join(VECTORS[feature])}), got "
            f"{', '.join(found) or 'none'}; match hidden states instead"
        )
    return found[0]


def split_heads(model: nn.Module, vectors: Tensor) -> Tensor:
    """Cut the vectors of all heads side by side, (B, L, A·d), into (B, A, L, d)."""
    config = getattr(model, "config")  # noqa: B009  nn.Module types its attributes as tensors
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return vectors.unflatten(-1, (-1, size)).transpose(1, 2)


# What a model gives for matches: hidden states, attention, query, key and value, module outputs.
#
# batch ──► model(**batch, **reader.flags) ──► reader.read ──► view, features of each match

Side = Literal["teacher", "student"]
Match = MatchSpec | CustomMatch


@dataclass(frozen=True)
class CapturedFeatures:
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

    def read(self, batch: Mapping[str, Any], outputs: Any) -> CapturedFeatures:
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
        return CapturedFeatures(
            view, tuple(self._features(m, view, captured) for m in self._matches)
        )

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
            qkv_module(self._model, match.feature, n, match.label) for n in self._layers(match)
        ]
        return {(name, 0): 0 for name in names}

    def _features(
        self, match: Match, view: View, captured: Mapping[tuple[str, int], Tensor]
    ) -> tuple[Tensor, ...]:
        if isinstance(match, CustomMatch):
            return (captured[self._module(match), match.output_index],)
        layers = self._layers(match)
        if match.feature in VECTORS:
            names = [qkv_module(self._model, match.feature, n, match.label) for n in layers]
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


# Names of what teachers ship for matches: equal statistics have equal names, and are kept once.
#
# hidden_mse and cos of layer 4  ──►  hidden.states-L4-float32
# mmd of layers 2 and 2          ──►  hidden.shipped_token_gram.divisor=hidden-L2-L2-float32

_BUILT_IN = "raybrew."


def signal_of(match: MatchSpec | CustomMatch, dtype: str) -> Signal:
    """Return what the teacher is asked for.

    Args:
        match: how the statistic is made.
        dtype: precision that it is kept in.
    """
    if isinstance(match, CustomMatch):
        axes = "".join(axis[0] for axis in match.axes)
        name = f"module.{_safe(match.module_T)}.{match.output_index}.{axes}"
        return Signal(name, dtype=dtype, recipe=match)
    loss = match.build_loss()
    function: Any = loss.statistic
    options: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        options = {**function.keywords, **options}
        function = function.func
    parts = [match.feature, _statistic_name(function)]
    parts += [f"{key}={value}" for key, value in sorted(options.items()) if value is not None]
    return Signal(".".join(map(_safe, parts)), match.teacher_layers, dtype, recipe=match)


def code_name(function: Callable[..., Any] | str) -> str:
    """Name a user's function by its import path and a hash of its source.

    What it makes is kept beyond the run, so another version of it must not find it.
    """
    if isinstance(function, str):
        return function
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # typed into a shell, or an object that is called
        code = getattr(function, "__code__", None)
        source = repr(function) if code is None else f"{code.co_code!r}{code.co_consts!r}"
    digest = hashlib.blake2b(source.encode(), digest_size=4).hexdigest()
    return f"{import_path_of(function)}.{digest}"


def _statistic_name(function: Callable[..., Any]) -> str:
    if function.__module__.startswith(_BUILT_IN):
        return function.__qualname__.lstrip("_")
    return code_name(function)


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._=-" else "_" for c in text)


# A teacher's features as a payload: reduced, without padding, in the label's precision.


def pack_features(
    signal: Signal, features: Sequence[Tensor], mask: Tensor | None
) -> tuple[Payload, int | None]:
    """Reduce a teacher's features to what the signal asks for.

    Args:
        signal: with a match for its recipe.
        features: of a `FeatureReader`, one a layer.
        mask: (b, L), real tokens.

    Returns:
        b rows: of one width where no axis grows with the tokens, else ragged; and the first of
        them with NaN or infinity in it, None if there is none.
    """
    recipe: MatchSpec | CustomMatch = signal.recipe
    if isinstance(recipe, CustomMatch):
        axes, statistic = recipe.axes, features[0]
        length = statistic.shape[1 + axes.index("token")] if "token" in axes else 1
        keep = statistic.new_ones(len(statistic), length) if mask is None else mask
        ragged = pack(statistic, keep != 0, axes)
    else:
        loss = recipe.build_loss()
        axes = loss.axes
        ragged = loss.pack(loss.teacher_statistic(features, mask), mask)
    values, offsets = ragged.values.to(DTYPES[signal.dtype][0]), ragged.offsets
    unusable = _first_unusable_row(values, offsets, signal)
    kept = to_storage(values, signal.dtype)
    if "token" not in axes:
        return Payload(kept.reshape(len(offsets) - 1, -1)), unusable
    return Payload(kept, offsets.cpu().numpy().astype(np.int64)), unusable


def _first_unusable_row(values: Tensor, offsets: Tensor, signal: Signal) -> int | None:
    """Look for NaN and infinity where the values are, which is quicker than on the host.

    Raw attention scores may hold −∞ where a key may not be looked at.
    """
    usable = values.isfinite()
    if getattr(signal.recipe, "feature", None) == "attention":
        usable |= values.isneginf()
    if bool(usable.all()):
        return None
    first = usable.logical_not().nonzero()[0]
    return int(torch.searchsorted(offsets.to(first.device), first, right=True)) - 1
