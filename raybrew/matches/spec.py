"""Matches as a job states them: MatchSpec, CustomMatch, and the projections of either."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from torch import Tensor, nn

from raybrew.config.section import Section
from raybrew.errors import ConfigError, import_callable, unknown_name
from raybrew.losses.match_loss import Axis, Feature, Features, MatchLoss, Partial, examples
from raybrew.losses.numerics import Keep
from raybrew.losses.registry import find_method
from raybrew.matches.match_losses import match_loss, whole_feature

INITIAL_STD = 0.02


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
"""Name → what builds the map from the student's size to the teacher's, or one of the user's."""


def projection_builder(name: str) -> Callable[[int, int], nn.Module]:
    """Find a projection by name, or the user's by its import path.

    Raises:
        ConfigError: neither leads anywhere.
    """
    return find_method("projection", name, PROJECTIONS)


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


def _with_options(value: Any) -> Any:
    """Add the options, which TextBrewer leaves out where there are none."""
    return (*value, {}) if isinstance(value, list | tuple) and len(value) == 3 else value


def _known(name: str) -> str:
    projection_builder(name)
    return name


ProjectionSpec: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_known)], PositiveInt, PositiveInt, dict[str, Any]],
    BeforeValidator(_with_options),
]
"""Name (linear, relu, tanh, or the user's), student's size, teacher's, optimizer's options."""


class Projection(nn.Module):
    """The projection of one match.

    Its layers share one map, as both layers of an fsp match do; a match of many layers (emd) has
    one map for each.

    Args:
        spec: name, student's size, teacher's size, optimizer options (not used here).
        num_maps: 1, or one for each layer of the student.
        generator: where the weights are drawn from.
    """

    def __init__(self, spec: ProjectionSpec, num_maps: int, generator: torch.Generator) -> None:
        super().__init__()
        name, student_size, teacher_size, _ = spec
        build = projection_builder(name)
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
            projected = {key: self.maps[0](state) for key, state in distinct.items()}
            return [projected[id(state)] for state in states]
        if len(states) != len(self.maps):
            raise ConfigError(
                f"A projection of {len(self.maps)} layers got the hidden states of {len(states)}."
            )
        return [each(state) for each, state in zip(self.maps, states, strict=True)]


class _OneTensorProjection(nn.Module):
    """A projection that takes a tensor rather than a list of layers."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, states: Tensor) -> Tensor:
        return self.projection([states])[0]


Layer: TypeAlias = Annotated[int, Field(ge=0, strict=True)]
Layers: TypeAlias = Layer | tuple[Layer, ...]


class MatchSpec(Section):
    """One match between layers of a teacher and layers of the student."""

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

    def layers_of(self, side: Literal["teacher", "student"]) -> tuple[int, ...]:
        """Layers of one of the two models."""
        return self.teacher_layers if side == "teacher" else self.student_layers

    def build_loss(self) -> MatchLoss:
        """Build the loss this match names.

        Raises:
            ConfigError: an unknown name or option.
        """
        several = isinstance(self.layer_T, tuple)
        return match_loss(self.loss, self.options, self.feature, several_layers=several)

    def build_projection(self, generator: torch.Generator) -> Projection | None:
        """Build the projection, float32 on the CPU; None where there is none."""
        if self.proj is None:
            return None
        per_layer = self.build_loss().projection_per_layer
        return Projection(self.proj, len(self.student_layers) if per_layer else 1, generator)

    def projection_options(self) -> dict[str, Any]:
        """Optimizer options of the projection's parameters."""
        return {} if self.proj is None else self.proj[3]


def _as_tuple(layers: int | tuple[int, ...]) -> tuple[int, ...]:
    return (layers,) if isinstance(layers, int) else layers


def _spelled(layers: int | tuple[int, ...]) -> str:
    return str(layers if isinstance(layers, int) else list(layers))


class CustomMatch(Section):
    """A match between the outputs of two modules, named as in `model.named_modules()`.

    It holds values and callables alone, so it can be pickled to any worker; a callable that a
    config file has to name is given as its import path, "package.module:name".
    """

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
    def metric_name(self) -> str:
        """How metrics name this match."""
        own = f"_{self.teacher}" if self.teacher else ""
        return f"custom_{self.module_S}_{self.module_T}{own}"

    def build_loss(self) -> MatchLoss:
        """Build the loss between the outputs of both modules; the teacher's is shipped whole."""
        return MatchLoss(
            name=self.label,
            axes=self.axes,
            statistic=whole_feature,
            compare=partial(_compare_outputs, match=self),
            count=examples,
            features=(),
            # The loss is the user's: it may average over padding.
            padding_counts=True,
        )

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
            return _OneTensorProjection(Projection(self.proj_func, 1, generator))
        module = import_callable(self.proj_func, f"{self.label}: proj_func")()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.label}: proj_func built a {type(module).__name__}; expected a "
                "torch.nn.Module, or give [linear | relu | tanh, dim_S, dim_T]."
            )
        return module

    def projection_options(self) -> dict[str, Any]:
        """Optimizer options of the projection's parameters, from wherever they are given."""
        own = self.proj_func[3] if isinstance(self.proj_func, tuple) else {}
        return {**own, **self.proj_group}

    def compute(
        self,
        student: Tensor,
        teacher: Tensor,
        student_mask: Tensor | None = None,
        teacher_mask: Tensor | None = None,
    ) -> Partial:
        """Call the loss, and split its value into numerators and denominators.

        Args:
            student: output of the student's module, projected.
            teacher: output of the teacher's.
            student_mask: (B, L) real tokens.
            teacher_mask: (B, L) real tokens.

        Returns:
            The loss's own Partial, or its one number as the mean over the batch's examples.

        Raises:
            ConfigError: the loss returned neither.
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


def _compare_outputs(
    student: Features, keep: Keep, statistic: Tensor, match: CustomMatch
) -> Float[Tensor, " batch"]:
    output, mask = student[0], None if keep is None else keep.long()
    teacher = statistic.to(output.dtype)
    numerators, denominators = match.compute(output, teacher, mask, mask)
    present = output.new_ones(len(output)) if keep is None else keep.any(dim=1)
    # What a user's function divides by is known only now: its mean over the pass's examples.
    value = numerators.sum() / denominators.sum().clamp_min(1e-12)
    return value * present.to(value.dtype)


class Projections(nn.ModuleDict):
    """The projections of a student's matches, which are trained with it.

    Keys are `match_n`, n counting the MatchSpecs, and `custom_n`, n counting all matches.

    Args:
        matches: in the order of the config.
        seed: the weights are a function of it and of the matches, the same on every rank.

    Raises:
        ConfigError: a projection that can't be built, or one module that serves twice.
    """

    def __init__(self, matches: Sequence[MatchSpec | CustomMatch], seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layered = [(n, m) for n, m in enumerate(matches) if isinstance(m, MatchSpec)]
        built: dict[int, tuple[str, nn.Module | None]] = {
            position: (f"match_{number}", match.build_projection(generator))
            for number, (position, match) in enumerate(layered)
        }
        built |= {
            position: (f"custom_{position}", match.build_projection(seed + position))
            for position, match in enumerate(matches)
            if isinstance(match, CustomMatch)
        }
        self._matches = tuple(matches)
        self._keys = {position: key for position, (key, each) in built.items() if each is not None}
        self.update({key: each for key, each in built.values() if each is not None})
        if len({id(p) for p in self.parameters()}) != len(list(self.parameters())):
            raise ConfigError(
                "projections: expected modules of their own, got one that serves twice"
            )

    def project(self, position: int, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Project the student's features of the match at a position; as they are without one."""
        key = self._keys.get(position)
        if key is None:
            return tuple(features)
        if isinstance(self._matches[position], CustomMatch):
            return (self[key](features[0]),)
        return tuple(self[key](features))

    def groups(
        self, optimizer_class: type[torch.optim.Optimizer] | None = None
    ) -> list[dict[str, Any]]:
        """Give each projection an optimizer group of its own, with the options of its match.

        Args:
            optimizer_class: where given, options that it doesn't know are refused.

        Returns:
            Groups for `optimizer.add_param_group`; what a group leaves out is the optimizer's
            default.

        Raises:
            ConfigError: an option that the optimizer doesn't have, naming the match.
        """
        groups = []
        for position, key in self._keys.items():
            match = self._matches[position]
            check_projection_options(match, optimizer_class)
            if parameters := list(self[key].parameters()):
                groups.append({"params": parameters, **match.projection_options()})
        return groups


def check_projection_options(
    match: MatchSpec | CustomMatch, optimizer_class: type[torch.optim.Optimizer] | None
) -> None:
    """Refuse options of a match's projection that its optimizer group can't have.

    Args:
        match: which.
        optimizer_class: None if it isn't known: then it takes any.

    Raises:
        ConfigError: names the match and the nearest options.
    """
    options = match.projection_options()
    if "params" in options:
        raise ConfigError(f"{match.label}: `params` of its projection is the library's to set.")
    if optimizer_class is None:
        return
    known = [name for name in inspect.signature(optimizer_class).parameters if name != "params"]
    for name in options:
        if name not in known:
            what = f"option of {optimizer_class.__name__}"
            raise ConfigError(f"{match.label}: {unknown_name(what, name, known)}")
