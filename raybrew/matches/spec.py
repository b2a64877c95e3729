"""Matches as a job states them: match losses by name, MatchSpec, CustomMatch, projections."""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

import torch
from jaxtyping import Float
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    validate_call,
)
from torch import Tensor, nn

from raybrew.errors import ConfigError, import_callable
from raybrew.losses.hidden import cos, emd, fsp, hidden_mse, mmd, pkd
from raybrew.losses.match_loss import Axis, Feature, Features, MatchLoss, Partial, examples
from raybrew.losses.numerics import Keep, stacked_layers, widen
from raybrew.losses.registry import unknown_name
from raybrew.losses.relations import (
    attention_ce,
    attention_ce_mean,
    attention_mse,
    attention_mse_sum,
    attention_transfer,
    cka,
    minilm_attention,
    minilm_value_relation,
    minilmv2_relation,
    rkd_angle,
    rkd_distance,
    sp,
)

# A match loss from a function of full tensors that returns one number, as in TextBrewer.

ScalarLoss = Callable[..., Tensor]

_AXES: dict[Feature, tuple[Axis, ...]] = {
    "hidden": ("token", "hidden"),
    "attention": ("head", "token", "token"),
    "query": ("head", "token", "hidden"),
    "key": ("head", "token", "hidden"),
    "value": ("head", "token", "hidden"),
}


def from_function(
    name: str, function: ScalarLoss, feature: Feature = "hidden", *, several_layers: bool = False
) -> MatchLoss:
    """Make a match loss of a function (student, teacher, mask=…) → one number.

    The function sees one batch at a time, so over ranks and micro-batches its values are averaged
    with the number of examples as weight; nothing is reduced at the teacher but padding.

    Args:
        name: shown in messages and metrics.
        function: takes the features of one layer of each side, or a list of them, and the mask as
            TextBrewer's do.
        feature: what it compares.
        several_layers: whether the function gets a list of layers on each side.

    Returns:
        The loss, at module level so that workers can import it.
    """
    return MatchLoss(
        name=name,
        features=(feature,),
        num_layers=None if several_layers else 1,
        axes=("layer", *_AXES[feature]) if several_layers else _AXES[feature],
        statistic=stacked_layers if several_layers else _whole_feature,
        compare=partial(_spread, function=function, several_layers=several_layers),
        count=examples,
        # What the function does with padding is its own affair.
        padding_counts=True,
    )


def _whole_feature(features: Features, keep: Keep) -> Tensor:
    return features[0]


def _spread(
    student: Features,
    keep: Keep,
    statistic: Tensor,
    function: ScalarLoss,
    several_layers: bool,
) -> Float[Tensor, " batch"]:
    num_rows = student[0].shape[0]
    present = torch.ones(num_rows, device=student[0].device) if keep is None else keep.any(dim=1)
    if not bool(present.any()):
        # Nothing to compare, but a graph to go through: the function may not stand an empty batch.
        return widen(student[0]).reshape(num_rows, -1)[:, :0].sum(dim=1)
    own = [widen(layer) for layer in student]
    if several_layers:
        value = function(own, list(statistic.unbind(dim=1)), mask=keep)
    else:
        value = function(own[0], statistic, mask=keep)
    return value * present.to(value.dtype)


# Match losses on intermediate features, by name.
#
# `match_loss("hidden_mse")` gives the object that states the teacher's statistic and the student's
# side. A loss of the user's own is registered under a name (`raybrew.objective.extensions`), or
# named by its import path, "package.module:name": a MatchLoss, a function that builds
# one from its options, or a function (student, teacher, mask=None) → one number, as TextBrewer
# takes them.

MATCH_LOSSES: dict[str, MatchLoss | Callable[..., Any]] = {
    "attention_mse": attention_mse,
    "attention_mse_sum": attention_mse_sum,
    "attention_ce": attention_ce,
    "attention_ce_mean": attention_ce_mean,
    "hidden_mse": hidden_mse,
    "cos": cos,
    "pkd": pkd,
    "fsp": fsp,
    "gram": fsp,
    "mmd": mmd,
    "nst": mmd,
    "attention_transfer": attention_transfer,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "sp": sp,
    "cka": cka,
    "minilm_attention": minilm_attention,
    "minilm_value_relation": minilm_value_relation,
    "minilmv2_relation": minilmv2_relation,
    "emd": emd,
}
"""Name → what builds the loss from its options, or one of the user's."""

BUILT_IN_MATCH_LOSSES = frozenset(MATCH_LOSSES)


def match_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    feature: Feature = "hidden",
    *,
    several_layers: bool = False,
) -> MatchLoss:
    """Build the match loss of a name.

    Args:
        name: a key of MATCH_LOSSES, or "package.module:name" for one of the user's own.
        options: keyword options of the loss, such as {"pooling": "first"} for `rkd_distance`.
        feature: what a function of the user's that returns one number is to be given.
        several_layers: whether such a function gets a list of layers on each side.

    Returns:
        The loss.

    Raises:
        ConfigError: an unknown name (with the nearest ones), an option the loss hasn't got, or a
            value that the option can't have.
    """
    options = dict(options or {})
    found = _imported(name) if ":" in name else MATCH_LOSSES.get(name)
    if found is None:
        nearest = difflib.get_close_matches(name, MATCH_LOSSES, n=3, cutoff=0.4)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        raise ConfigError(
            f"There is no match loss {name!r}.{hint} The names are {', '.join(MATCH_LOSSES)}; one "
            'of your own is registered, or given as "package.module:name".'
        )
    found = as_match_loss(name, found, feature, several_layers=several_layers)
    if isinstance(found, MatchLoss):
        if options:
            raise ConfigError(f"Match loss {name!r} takes no options; got {sorted(options)}.")
        return found
    _check_options(name, found, options)
    loss = _built(name, found, options) if name in BUILT_IN_MATCH_LOSSES else found(**options)
    if not isinstance(loss, MatchLoss):
        raise ConfigError(
            f"{name!r} built a {type(loss).__name__}; expected a MatchLoss, or a function "
            "(student, teacher, mask=None) that returns one number."
        )
    return loss


def as_match_loss(
    name: str, found: object, feature: Feature = "hidden", *, several_layers: bool = False
) -> MatchLoss | Callable[..., Any]:
    """Take in a match loss of the user's.

    Args:
        name: for messages.
        found: a MatchLoss, a function that builds one from its options, or a function
            (student, teacher, mask=None) → one number; or an import path to one of them.
        feature: what a function that returns one number is to be given.
        several_layers: whether such a function gets a list of layers on each side.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(found, str):
        found = _imported(found)
    if isinstance(found, MatchLoss):
        return found
    if not callable(found):
        raise ConfigError(
            f"{name!r} is a {type(found).__name__}; expected a MatchLoss, a function that builds "
            "one, or a function (student, teacher, mask=None) that returns one number."
        )
    function: Callable[..., Any] = found
    if not _takes_two_features(function):
        return function
    return from_function(name, function, feature, several_layers=several_layers)


def _built(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Build a loss of this package; its signature says what values its options can have."""
    try:
        return _validated(build)(**options)
    except ValidationError as error:
        mistakes = "; ".join(
            f"option {'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}"
            for each in error.errors()
        )
        raise ConfigError(f"Match loss {name!r}: {mistakes}.") from error


@functools.cache
def _validated(build: Callable[..., Any]) -> Callable[..., Any]:
    # It takes a millisecond to make, and losses are built for each batch.
    return validate_call(build)


def _imported(path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The match loss {path!r} can't be imported: {error}. Give it as "
            '"package.module:name", from a module that every worker can import.'
        ) from error


def _takes_two_features(function: Callable[..., Any]) -> bool:
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) >= 2


def _check_options(name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = f"its options are {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"Match loss {name!r} has no option {', '.join(unknown)}: {takes}.")


# Kinds of projections by name: what builds the map from the student's size to the teacher's.

INITIAL_STD = 0.02


def as_projection(name: str, value: Any) -> Callable[[int, int], nn.Module]:
    """Take in a projection of the user's: (student's size, teacher's size) -> module.

    Raises:
        ConfigError: it can't be called.
    """
    if not callable(value):
        raise ConfigError(
            f"Projection {name!r}: expected a function of the student's and the teacher's size "
            f"that builds a module, got {type(value).__name__}."
        )
    builder: Callable[..., Any] = value
    return builder


def projection_builder(kind: str) -> Callable[[int, int], nn.Module]:
    """Find a projection by name, or the user's by its import path.

    Raises:
        ConfigError: neither leads anywhere.
    """
    if ":" in kind:
        return import_callable(kind, "projection")
    if kind not in PROJECTIONS:
        raise unknown_name("projection", kind, PROJECTIONS)
    return PROJECTIONS[kind]


def _mapped(student_size: int, teacher_size: int, activation: type[nn.Module]) -> nn.Module:
    """Build act(W x + b), W from N(0, 0.02²), b = 0, as TextBrewer does."""
    linear = nn.Linear(student_size, teacher_size)
    nn.init.normal_(linear.weight, std=INITIAL_STD)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, activation())


PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": partial(_mapped, activation=nn.Identity),
    "relu": partial(_mapped, activation=nn.ReLU),
    "tanh": partial(_mapped, activation=nn.Tanh),
}


# What a match is, as written in a config: TextBrewer's spelling, and a teacher's name.

Layer: TypeAlias = Annotated[int, Field(ge=0, strict=True)]
Layers: TypeAlias = Layer | tuple[Layer, ...]


def _with_options(value: Any) -> Any:
    """TextBrewer leaves the options out when there are none."""
    return (*value, {}) if isinstance(value, list | tuple) and len(value) == 3 else value


def _known(kind: str) -> str:
    projection_builder(kind)
    return kind


ProjectionSpec: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_known)], PositiveInt, PositiveInt, dict[str, Any]],
    BeforeValidator(_with_options),
]
"""Kind (linear, relu, tanh, or the user's), student's size, teacher's, optimizer's options."""


class MatchSpec(BaseModel):
    """One match between layers of a teacher and layers of the student."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer_T: Layers = Field(
        description="Teacher's layer, an index into the adaptor's list (hidden: 0 is the embedding "
        "output); two of them for fsp and mmd; any number for emd and for a loss of your own, "
        "which then gets lists."
    )
    layer_S: Layers = Field(description="Student's layer or layers, as layer_T.")
    feature: Feature = Field(
        description="hidden, attention, or the query, key or value vectors of self-attention."
    )
    loss: str = Field(
        description='Name of the match loss, or "package.module:name" for one of your own.'
    )
    weight: float = Field(default=1.0, description="Factor of this match in the total loss.")
    proj: ProjectionSpec | None = Field(
        default=None,
        description="Projection of the student's vectors: [linear | relu | tanh, dim_S, dim_T, "
        "{optimizer options}]; the options may be left out.",
    )
    teacher: str | None = Field(
        default=None,
        description="Name of the teacher whose features are matched; none where a task has one.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description='Options of the loss, such as {"pooling": "first"} for rkd_distance.',
    )

    @property
    def label(self) -> str:
        """How messages name this match."""
        whose = f"teacher {self.teacher!r}" if self.teacher else "teacher"
        return (
            f"match {self.loss!r} on {self.feature} ({whose} layer {_spelled(self.layer_T)} → "
            f"student layer {_spelled(self.layer_S)})"
        )

    @property
    def metric_name(self) -> str:
        """How metrics name this match, as in TextBrewer: feature_loss_S_T."""
        layers = "_".join("-".join(map(str, _as_tuple(x))) for x in (self.layer_S, self.layer_T))
        own = f"_{self.teacher}" if self.teacher else ""
        return f"{self.feature}_{self.loss.rpartition(':')[2]}_{layers}{own}"

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Teacher's layers, also where there is one."""
        return _as_tuple(self.layer_T)

    @property
    def student_layers(self) -> tuple[int, ...]:
        """Student's layers, also where there is one."""
        return _as_tuple(self.layer_S)

    def build_loss(self) -> MatchLoss:
        """Build the loss this match names.

        Raises:
            ConfigError: an unknown name or option.
        """
        several = isinstance(self.layer_T, tuple)
        return match_loss(self.loss, self.options, self.feature, several_layers=several)


def _as_tuple(layers: int | tuple[int, ...]) -> tuple[int, ...]:
    return (layers,) if isinstance(layers, int) else layers


def _spelled(layers: int | tuple[int, ...]) -> str:
    return str(layers if isinstance(layers, int) else list(layers))


# Projections that bring the student's vectors to the teacher's size, trained with the student.


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


# A match between the outputs of any two modules, with a loss and a projection of the user's.


class CustomMatch(BaseModel):
    """A match between the outputs of two modules, named as in `model.named_modules()`.

    It holds values and callables alone, so it can be pickled to any worker; a callable that a
    config file has to name is given as its import path, "package.module:name".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module_T: str = Field(description="Teacher's module, as model.named_modules() names it.")
    module_S: str = Field(description="Student's module.")
    loss: Callable[..., Any] | str = Field(
        description="(output_S, output_T, mask_S, mask_T) → one number, or Partial of (B,) each."
    )
    weight: float = Field(default=1.0, description="Factor of this match in the total loss.")
    proj_func: ProjectionSpec | Callable[..., Any] | str | None = Field(
        default=None,
        description="Applied to the student's output: [kind, dim_S, dim_T, {options}], or what "
        "builds a module without arguments, as a callable or an import path.",
    )
    proj_group: dict[str, Any] = Field(
        default_factory=dict, description="Optimizer options of the projection."
    )
    teacher: str | None = Field(default=None, description="Name of the teacher.")
    output_index: int = Field(
        default=0, ge=0, description="Which entry is meant where a module returns a tuple."
    )
    axes: tuple[Axis, ...] = Field(
        default=("token", "hidden"),
        description="What each axis of the teacher's output after the batch is; padding is left "
        "out along token axes when it is shipped.",
    )

    @property
    def label(self) -> str:
        """How messages name this match."""
        whose = f"teacher {self.teacher!r}" if self.teacher else "teacher"
        return f"custom match ({whose} {self.module_T!r} → student {self.module_S!r})"

    @property
    def loss_path(self) -> str:
        """Import path of the loss, as a saved config records it."""
        return _path_of(self.loss)

    def build_projection(self, seed: int = 0) -> nn.Module | None:
        """Build the module to apply to the student's output; None where there is none.

        Args:
            seed: of the weights of a projection given as [kind, dim_S, dim_T].

        Raises:
            ConfigError: an import path that leads nowhere, or something that builds no module.
        """
        if self.proj_func is None:
            return None
        if isinstance(self.proj_func, tuple):
            generator = torch.Generator().manual_seed(seed)
            return _OfOneTensor(Projection(self.proj_func, 1, generator))
        module = import_callable(self.proj_func, f"{self.label}: proj_func")()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.label}: proj_func built a {type(module).__name__}; expected a "
                "torch.nn.Module, or give [linear | relu | tanh, dim_S, dim_T]."
            )
        return module

    def projection_options(self) -> dict[str, Any]:
        """Optimizer options of the projection's parameters, from wherever they were given."""
        own = self.proj_func[3] if isinstance(self.proj_func, tuple) else {}
        return {**own, **self.proj_group}

    def compute(
        self,
        student: Tensor,
        teacher: Tensor,
        student_mask: Tensor | None = None,
        teacher_mask: Tensor | None = None,
    ) -> Partial:
        """Call the loss and give its value numerators and denominators.

        Args:
            student: output of the student's module, projected.
            teacher: output of the teacher's.
            student_mask: (B, L) real tokens.
            teacher_mask: (B, L) real tokens.

        Returns:
            The loss's own Partial, or its one number as the mean over the batch's examples.

        Raises:
            ConfigError: the loss gave neither.
        """
        function = import_callable(self.loss, f"{self.label}: loss")
        value = function(student, teacher, student_mask, teacher_mask)
        if isinstance(value, Partial):
            return value
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"{self.label}: the loss returned {got}; expected one number, or "
                "raybrew.losses.match_loss.Partial of numerators and denominators, (B,) each."
            )
        present = torch.ones(student.shape[0], dtype=torch.bool, device=value.device)
        if student_mask is not None:
            present = student_mask.ne(0).any(dim=1).to(value.device)
        numerator = value.reshape(()).expand(present.shape).masked_fill(~present, 0.0)
        return Partial(numerator, present.to(value.dtype))


class _OfOneTensor(nn.Module):
    """A projection that takes a tensor rather than a list of layers."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, states: Tensor) -> Tensor:
        return self.projection([states])[0]


def _path_of(target: Callable[..., Any] | str) -> str:
    if isinstance(target, str):
        return target
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', type(target).__module__)}:{name}"
