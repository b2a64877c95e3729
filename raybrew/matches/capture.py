"""The features of a model: captured by hooks, read by layer, packed as a signal's payload.

batch ──► model(**batch, **reader.flags) ──► reader.read ──► view, features of each match
teacher's features ──► statistic of the loss ──► pack_features ──► payload of signal_of(match)
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.config.section import import_path_of
from raybrew.data.payload import Payload, Signal, to_storage, torch_dtype
from raybrew.errors import ConfigError, did_you_mean
from raybrew.matches.spec import CustomMatch, MatchSpec
from raybrew.models.layers import layer_stack
from raybrew.tasks.task_type import Adaptor, View, view_of

Side = Literal["teacher", "student"]
Match = MatchSpec | CustomMatch
ModuleOutput = tuple[str, int]
"""A module as `model.named_modules()` names it, and the entry meant where it returns a tuple."""

QKV_MODULES = {
    "query": ("query", "q_lin", "q_proj", "query_proj", "q"),
    "key": ("key", "k_lin", "k_proj", "key_proj", "k"),
    "value": ("value", "v_lin", "v_proj", "value_proj", "v"),
}
"""By feature, how models call the linear module that makes it in each layer."""


class ModuleCapture:
    """Keeps the last outputs of named modules until they are taken.

        with ModuleCapture(student, [("encoder.layer.1.output", 0)]) as captured:
            student(**batch)
            outputs = captured.take()          # {("encoder.layer.1.output", 0): tensor}

    Args:
        model: the model, not wrapped (give `ddp.module`).
        outputs: which ones.

    Raises:
        ConfigError: a name that the model doesn't have, with the nearest ones.
    """

    def __init__(self, model: nn.Module, outputs: Iterable[ModuleOutput]) -> None:
        self._captured: dict[ModuleOutput, Tensor] = {}
        # All names are looked up before the first hook, so that an error leaves none behind.
        modules = {output: find_module(model, output[0]) for output in outputs}
        self._handles = [
            module.register_forward_hook(self._hook(output)) for output, module in modules.items()
        ]
        self._outputs = list(modules)

    def take(self) -> dict[ModuleOutput, Tensor]:
        """Return the outputs of the last forward, and forget them.

        Raises:
            ConfigError: a module that the forward didn't call.
        """
        missing = [output[0] for output in self._outputs if output not in self._captured]
        if missing:
            raise ConfigError(
                f"The forward didn't call {', '.join(missing)}: no output to match. Name modules "
                "that this model's forward runs, and run it before each take()."
            )
        outputs = dict(self._captured)
        self._captured.clear()
        return outputs

    def remove(self) -> None:
        """Take the hooks off the model; may be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captured.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _hook(self, output: ModuleOutput) -> Callable[[nn.Module, Any, Any], None]:
        def keep_output(module: nn.Module, arguments: Any, result: Any) -> None:
            self._captured[output] = _chosen_tensor(*output, result)

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


def _chosen_tensor(name: str, index: int, result: Any) -> Tensor:
    chosen = result
    if isinstance(result, tuple | list):
        if index >= len(result):
            raise ConfigError(
                f"Module {name!r} returns {len(result)} outputs; none at output_index {index}."
            )
        chosen = result[index]
    if not isinstance(chosen, Tensor):
        raise ConfigError(
            f"Module {name!r} returns a {type(chosen).__name__}; a custom match takes a tensor, or "
            "a tuple with one at output_index."
        )
    return chosen


def module_outputs(match: Match, model: nn.Module, side: Side) -> list[ModuleOutput]:
    """Return the module outputs that a match compares; none where the adaptor gives its features.

    Raises:
        ConfigError: a module that the model doesn't have.
    """
    if isinstance(match, CustomMatch):
        name = match.module_T if side == "teacher" else match.module_S
        find_module(model, name)
        return [(name, match.output_index)]
    if match.feature not in QKV_MODULES:
        return []
    return [(_qkv_module(model, match.feature, n), 0) for n in match.layers_of(side)]


def _qkv_module(model: nn.Module, feature: str, layer: int) -> str:
    """Return the name of the module whose output is a layer's query, key or value.

    Raises:
        ConfigError: the layer has no such module, or several.
    """
    assert isinstance(model, PreTrainedModel), "matches on query, key and value read transformers"
    prefix = f"{layer_stack(model)}.{layer}."
    found = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and name.rpartition(".")[2] in QKV_MODULES[feature]
        and hasattr(module, "weight")
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{feature} of layer {layer}: expected one module for the {feature} vectors in "
            f"{prefix[:-1]} of {type(model).__name__} (named {', '.join(QKV_MODULES[feature])}), "
            f"got {', '.join(found) or 'none'}; match hidden states instead"
        )
    return found[0]


def _split_heads(model: nn.Module, vectors: Tensor) -> Tensor:
    """Cut the vectors of all heads side by side, (B, L, A·d), into (B, A, L, d)."""
    config = getattr(model, "config")  # noqa: B009  nn.Module types its attributes as tensors
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return vectors.unflatten(-1, (-1, size)).transpose(1, 2)


class CapturedFeatures(NamedTuple):
    """What a model gives for its matches.

    Args:
        view: what the adaptor gives.
        features: of each match, one tensor a layer; the same object where a layer comes twice.
    """

    view: View
    features: tuple[tuple[Tensor, ...], ...]


class FeatureReader:
    """Reads the features of matches off a model.

    Args:
        model: the bare model; hooks are put on it where a match asks for them.
        adaptor: what its outputs mean.
        matches: whose features to read.
        side: which of the two the model is.

    Raises:
        ConfigError: a module that the model doesn't have.
    """

    def __init__(self, model: nn.Module, adaptor: Adaptor, matches: Sequence[Match], side: Side):
        self._model, self._adaptor, self._matches = model, adaptor, tuple(matches)
        self._side: Side = side
        self.flags = _flags(matches)
        self._modules = [module_outputs(match, model, side) for match in matches]
        self._capture = ModuleCapture(model, [each for one in self._modules for each in one])

    def read(self, batch: Mapping[str, Any], outputs: Any) -> CapturedFeatures:
        """Read a forward's outputs.

        Raises:
            ConfigError: a layer or an attention map that the model or its adaptor doesn't give;
                names the match.
        """
        view = view_of(self._adaptor, batch, outputs)
        captured = self._capture.take()
        self._check_mask(batch, view)
        features = []
        for match, modules in zip(self._matches, self._modules, strict=True):
            if isinstance(match, CustomMatch):
                features.append(tuple(captured[each] for each in modules))
            elif modules:
                vectors = {each: _split_heads(self._model, captured[each]) for each in modules}
                features.append(tuple(vectors[each] for each in modules))
            else:
                features.append(self._of_layers(match, view))
        return CapturedFeatures(view, tuple(features))

    def _check_mask(self, batch: Mapping[str, Any], view: View) -> None:
        """Refuse features without a mask of their padding: they change with the batch."""
        mask = batch.get("attention_mask")
        if not self._matches or view.inputs_mask is not None or mask is None:
            return
        if not bool(mask.all()):
            raise ConfigError(
                f"{self._matches[0].label}: the {self._side}'s adaptor gives no `inputs_mask`, and "
                'the batch is padded: have it give batch["attention_mask"] under that key.'
            )

    def _of_layers(self, match: MatchSpec, view: View) -> tuple[Tensor, ...]:
        layers = match.layers_of(self._side)
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


def signal_of(match: MatchSpec | CustomMatch, dtype: str) -> Signal:
    """Return the signal of a match's statistic: equal statistics have equal names, kept once.

        hidden_mse and cos of layer 4  ──►  hidden.states-L4-float32
        mmd of layers 2 and 2          ──►  hidden.shipped_token_gram.divisor=hidden-L2-L2-float32

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

    What it computes is kept beyond the run, so another version of it must not find it.
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
    # Names are directories of the store: a built-in's is that of its function, wherever it lies.
    if function.__module__.startswith("raybrew."):
        return function.__qualname__.lstrip("_")
    return code_name(function)


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._=-" else "_" for c in text)


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
    loss = recipe.build_loss()
    ragged = loss.pack(loss.teacher_statistic(features, mask), mask)
    values, offsets = ragged.values.to(torch_dtype(signal.dtype)), ragged.offsets
    unusable = _first_unusable_row(values, offsets, signal)
    kept = to_storage(values, signal.dtype)
    if "token" not in loss.axes:
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
