"""The module that is trained: the student's model with the projections of its matches.

    batch ──► model ──► adaptor ──► view
                 └─ features of each match ──► projection ──► features, of the teacher's size

DDP and FSDP wrap it whole, so that they sync the projections too. The model inside stays what
transformers loads.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.data.split import IGNORED
from raybrew.matches.capture import FeatureReader, needs_attention, use_eager_attention
from raybrew.matches.plan import TaskMatch
from raybrew.matches.spec import (
    CustomMatch,
    MatchSpec,
    build_projections,
    check_projection_options,
    projection_key,
    projection_param_groups,
)
from raybrew.models.pretrained import describe_names, own_generator
from raybrew.models.students import MultiTaskStudent
from raybrew.objective.balancing import Balancer
from raybrew.tasks import KINDS
from raybrew.tasks.adaptors import Adaptor, View
from raybrew.tasks.task_type import Kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentModuleOutput:
    """What the objective reads of the student.

    Args:
        view: what the adaptor returns, with the labels of the batch where it gives none.
        features: by match term, one tensor a layer, projected.
        balance: what the balancing of tasks learns for this one; None where it learns nothing.
    """

    view: View
    features: dict[str, tuple[Tensor, ...]]
    balance: Tensor | None = None


class StudentModule(nn.Module):
    """A student's model, its projections, and how each task reads it.

    Args:
        model: the bare model; a `MultiTaskStudent` for several tasks.
        adaptors: one a task.
        matches: one list a task.
        seed: of the projections' weights, which are the same on every rank.
        kinds: one a task; sequence classification if left out.
        balancer: weighs the tasks' losses; all alike if left out.
        terms: one a task, the terms of its objective; "kd" and "hard" if left out.
    """

    def __init__(
        self,
        model: nn.Module,
        adaptors: Sequence[Adaptor],
        matches: Sequence[Sequence[TaskMatch]],
        seed: int,
        kinds: Sequence[Kind] | None = None,
        balancer: Balancer | None = None,
        terms: Sequence[Collection[str]] | None = None,
    ):
        super().__init__()
        self.model = model
        self.balancer = balancer or Balancer()
        self._kinds = kinds or [KINDS["sequence-classification"]] * len(adaptors)
        self._terms = [set(each) for each in terms or [("kd", "hard")] * len(adaptors)]
        self._matches = tuple(tuple(each) for each in matches)
        flat = [match for each in self._matches for match in each]
        self._models = _models_of(model, len(self._matches))
        if needs_attention([match.spec for match in flat]):
            for each in self._models:
                use_eager_attention(each)
        self.projections = Projections([match.spec for match in flat], seed)
        self.projections.to(next(model.parameters()).device)
        self._readers = [
            FeatureReader(one, adaptor, [m.spec for m in each], "student")
            for one, adaptor, each in zip(self._models, adaptors, self._matches, strict=True)
        ]

    def forward(
        self, inputs: Mapping[str, Tensor], labels: Tensor, task: int = 0
    ) -> StudentModuleOutput:
        """Run the model as a task reads it.

        Args:
            inputs: arguments of the model.
            labels: (b, …) or (b, L), as the task type has them.
            task: which.
        """
        if not len(labels):
            # Models of transformers refuse an empty batch: they read one example, which is dropped.
            fill = {"attention_mask": 1, "input_ids": _token_of_any_text(self._models[task])}
            stand_in = {
                name: each.new_full((1, *each.shape[1:]), fill.get(name, 0))
                for name, each in inputs.items()
            }
            output = self.forward(stand_in, labels.new_full((1, *labels.shape[1:]), IGNORED), task)
            features = {name: tuple(f[:0] for f in fs) for name, fs in output.features.items()}
            return StudentModuleOutput(output.view.without_examples(), features, output.balance)
        reader = self._readers[task]
        outputs: Any = self._models[task](**inputs, **reader.flags)
        reading = reader.read({**inputs, "labels": labels}, outputs)
        view = reading.view
        if not view.labels:
            view = replace(view, labels=self._kinds[task].labels_of(labels))
        view = _detach_unread(view, self._terms[task])
        features = {
            match.term: self.projections.project(before + number, each)
            for number, (match, each) in enumerate(
                zip(self._matches[task], reading.features, strict=True)
            )
        }
        return StudentModuleOutput(view, features, self.balancer.parameter_of(task))

    def model_of(self, task: int) -> nn.Module:
        """Return the bare model that a task reads."""
        return self._models[task]

    @property
    def may_skip_parameters(self) -> bool:
        """Whether a step may leave parameters without a gradient.

        It does with the heads of tasks that are not in the step, and with what lies behind the last
        layer that is matched, where no term reads the logits.
        """
        return len(self._models) > 1 or not all(terms & {"kd", "hard"} for terms in self._terms)

    @property
    def extra_modules(self) -> nn.ModuleDict:
        """What a checkpoint keeps besides the model."""
        return nn.ModuleDict({**dict(self.projections.items()), "balancer": self.balancer})

    def projection_groups(
        self, optimizer_class: type[torch.optim.Optimizer]
    ) -> list[dict[str, Any]]:
        """Return an optimizer group for each projection, with its options."""
        return self.projections.groups(optimizer_class)


def _detach_unread(view: View, terms: Collection[str]) -> View:
    """Detach what no term reads: DDP waits for the gradients of all that the outputs depend on."""
    view = replace(view, hidden=(), attention=())
    if "hard" not in terms:
        view = replace(view, losses=tuple(each.detach() for each in view.losses))
    # An adaptor's own losses stand in for the hard loss of the logits.
    if "kd" not in terms and ("hard" not in terms or view.losses):
        view = replace(view, logits=tuple(each.detach() for each in view.logits))
    return view


def _token_of_any_text(model: Any) -> int:
    """Return a token that a model accepts a text of: an encoder-decoder reads at the last one."""
    config = getattr(model, "config", None)
    return config.eos_token_id if config is not None and config.is_encoder_decoder else 0


def _models_of(model: nn.Module, num_tasks: int) -> list[nn.Module]:
    if isinstance(model, MultiTaskStudent):
        return [model.model_of(task) for task in range(num_tasks)]
    return [model] * num_tasks


def check_projections(
    matches: Sequence[TaskMatch], optimizer_class: type[torch.optim.Optimizer]
) -> None:
    """Refuse optimizer options of projections that the optimizer hasn't got.

    Raises:
        ConfigError: names the match and the nearest options.
    """
    for match in matches:
        spec = match.spec
        options = (
            spec.projection_options()
            if isinstance(spec, CustomMatch)
            else spec.proj[3]
            if spec.proj is not None
            else {}
        )
        check_projection_options(spec.label, options, optimizer_class)


def _projections(
    matches: Sequence[TaskMatch], seed: int
) -> tuple[nn.ModuleDict, dict[tuple[str, str], str]]:
    """Build the projections, and say which match has which."""
    keys: dict[tuple[str, str], str] = {}
    layered = [match for match in matches if isinstance(match.spec, MatchSpec)]
    projections = build_projections(
        [m.spec for m in layered if isinstance(m.spec, MatchSpec)], seed
    )
    for position, match in enumerate(layered):
        if projection_key(position) in projections:
            keys[match.term, match.teacher] = projection_key(position)
    for position, match in enumerate(matches):
        if not isinstance(match.spec, CustomMatch):
            continue
        module = match.spec.build_projection(seed + position)
        if module is not None:
            key = f"custom_{position}"
            projections[key] = module
            keys[match.term, match.teacher] = key
    if len({id(p) for p in projections.parameters()}) != len(list(projections.parameters())):
        raise ConfigError("projections: expected modules of their own, got one that serves twice")
    return projections, keys


# Weights that no forward pass reads (BigBird's pooler, XLNet's mask embedding, an unused module of
# a user's class) never get a gradient. DDP waits for one of each weight, unless it looks for such
# weights in every step.

Sample = tuple[Mapping[str, Tensor], Tensor, int]
"""Arguments of `StudentModule.forward`: inputs, labels, task."""


def ddp_options(module: StudentModule, samples: Iterable[Sample]) -> dict[str, bool]:
    """Return DDP's arguments for a student; looking for unread weights costs time in each step.

    Args:
        module: the student.
        samples: a batch of each task.
    """
    if not module.may_skip_parameters and not _drops_layers(module):
        unread = unread_weights(module, samples)
        if not unread:
            return {}
        logger.info(
            "weights that the student never reads are not trained: %s", describe_names(unread)
        )
    return {"find_unused_parameters": True}


def unread_weights(module: StudentModule, samples: Iterable[Sample]) -> list[str]:
    """Return the names of trained weights that no output for any task depends on.

    The samples are read without dropout; the module is left in training mode and the global
    generator as it is.
    """
    read: set[Tensor] = set()
    module.eval()
    with own_generator(0):
        for sample in samples:
            read |= _leaves(list(_outputs(module(*sample))))
    module.train()
    return [n for n, p in module.named_parameters() if p.requires_grad and p not in read]


def _outputs(output: StudentModuleOutput) -> Iterator[Tensor]:
    view = output.view
    for tensors in (view.logits, view.losses, view.hidden, view.attention):
        yield from tensors
    for features in output.features.values():
        yield from features
    if output.balance is not None:
        yield output.balance


def _leaves(outputs: Sequence[Tensor]) -> set[Tensor]:
    """Return the tensors that a backward pass from these would give gradients."""
    found = {each for each in outputs if each.is_leaf}
    nodes = [each.grad_fn for each in outputs if each.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def _drops_layers(module: nn.Module) -> bool:
    """Whether whole layers are left out at random (LayerDrop), other ones in each step."""
    configs = [getattr(each, "config", None) for each in module.modules()]
    return any(
        value
        for config in configs
        if config is not None
        for name, value in vars(config).items()
        if name.endswith("layerdrop")
    )
