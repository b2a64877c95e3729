"""The module that is trained: the student's model with the projections of its matches.

    batch ──► model ──► adaptor ──► view
                 └─ features of each match ──► projection ──► features, of the teacher's size

DDP and FSDP wrap it whole, so that they sync the projections too. The model inside stays what
transformers loads.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from raybrew.data.split import IGNORED
from raybrew.matches.capture import (
    CapturedFeatures,
    FeatureReader,
    needs_attention,
    use_eager_attention,
)
from raybrew.matches.plan import TaskMatch
from raybrew.matches.spec import Projections
from raybrew.models.pretrained import describe_names, own_generator
from raybrew.objective.balancing import Balancer
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.task_type import Adaptor, TaskType, View

logger = logging.getLogger(__name__)


StudentModuleOutput = tuple[View, dict[str, tuple[Tensor, ...]], Tensor | None]
"""What the adaptor returns, with the labels of the batch where it gives none; by match term one
tensor a layer, projected; what the balancing of tasks learns for this one, if it learns anything.
"""


class TaskReader:
    """How a task reads the student.

    Args:
        model: the bare model that the task reads.
        adaptor: reads its outputs.
        matches: whose features it reads.
        task_type: gives the labels where the adaptor gives none.
        terms: of the task's objective.
    """

    def __init__(
        self,
        model: nn.Module,
        adaptor: Adaptor,
        matches: Sequence[TaskMatch] = (),
        task_type: TaskType = TASK_TYPES["sequence-classification"],
        terms: Collection[str] = ("kd", "hard"),
    ):
        self.model, self.matches, self.terms = model, tuple(matches), frozenset(terms)
        self._task_type = task_type
        self._features = FeatureReader(model, adaptor, [m.spec for m in matches], "student")

    def read(self, inputs: Mapping[str, Tensor], labels: Tensor) -> CapturedFeatures:
        """Run the model; return what the terms read of it, and the features of each match."""
        outputs: Any = self.model(**inputs, **self._features.flags)
        view, features = self._features.read({**inputs, "labels": labels}, outputs)
        if not view.labels:
            view = replace(view, labels=self._task_type.labels_of(labels))
        return CapturedFeatures(self._detach_unread(view), features)

    def _detach_unread(self, view: View) -> View:
        # DDP waits for the gradients of all that the outputs depend on.
        view = replace(view, hidden=(), attention=())
        if "hard" not in self.terms:
            view = replace(view, losses=tuple(each.detach() for each in view.losses))
        # An adaptor's own losses stand in for the hard loss of the logits.
        if "kd" not in self.terms and ("hard" not in self.terms or view.losses):
            view = replace(view, logits=tuple(each.detach() for each in view.logits))
        return view


class StudentModule(nn.Module):
    """A student's model, its projections, and how each task reads it.

    Args:
        model: the bare model; a `MultiTaskStudent` for several tasks.
        tasks: how each reads it.
        seed: of the projections' weights, which are the same on every rank.
        balancer: weighs the tasks' losses; all alike if left out.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[TaskReader],
        seed: int,
        balancer: Balancer | None = None,
    ):
        super().__init__()
        self.model = model
        self.balancer = balancer or Balancer()
        self._tasks = list(tasks)
        specs = [match.spec for task in tasks for match in task.matches]
        if needs_attention(specs):
            for task in tasks:
                use_eager_attention(task.model)
        self.projections = Projections(specs, seed)
        self.projections.to(next(model.parameters()).device)
        # Projections are counted over the matches of all tasks.
        counts = [len(task.matches) for task in tasks]
        self._first_match = [sum(counts[:number]) for number in range(len(tasks))]

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
            return self._forward_empty(inputs, labels, task)
        reader = self._tasks[task]
        view, captured = reader.read(inputs, labels)
        features = {
            match.term: self.projections.project(position, each)
            for position, (match, each) in enumerate(
                zip(reader.matches, captured, strict=True), self._first_match[task]
            )
        }
        return view, features, self.balancer.parameter_of(task)

    def _forward_empty(
        self, inputs: Mapping[str, Tensor], labels: Tensor, task: int
    ) -> StudentModuleOutput:
        # Models of transformers refuse an empty batch: they read one example, which is dropped.
        fill = {"attention_mask": 1, "input_ids": _token_of_any_text(self._tasks[task].model)}
        example = {
            name: each.new_full((1, *each.shape[1:]), fill.get(name, 0))
            for name, each in inputs.items()
        }
        no_label = labels.new_full((1, *labels.shape[1:]), IGNORED)
        view, features, balance = self.forward(example, no_label, task)
        empty = {name: tuple(f[:0] for f in fs) for name, fs in features.items()}
        return view.without_examples(), empty, balance

    def model_of(self, task: int) -> nn.Module:
        """Return the bare model that a task reads."""
        return self._tasks[task].model

    @property
    def may_skip_parameters(self) -> bool:
        """Whether a step may leave parameters without a gradient.

        It does with the heads of tasks that are not in the step, and with what lies behind the last
        layer that is matched, where no term reads the logits.
        """
        return len(self._tasks) > 1 or not self._tasks[0].terms & {"kd", "hard"}

    @property
    def extra_modules(self) -> nn.ModuleDict:
        """What a checkpoint keeps besides the model."""
        return nn.ModuleDict({**dict(self.projections.items()), "balancer": self.balancer})


def _token_of_any_text(model: Any) -> int:
    """Return a token that a model accepts a text of: an encoder-decoder reads at the last one."""
    config = getattr(model, "config", None)
    return config.eos_token_id if config is not None and config.is_encoder_decoder else 0


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
            read |= _leaves(list(_outputs(*module(*sample))))
    module.train()
    return [n for n, p in module.named_parameters() if p.requires_grad and p not in read]


def _outputs(
    view: View, features: Mapping[str, tuple[Tensor, ...]], balance: Tensor | None
) -> Iterator[Tensor]:
    for tensors in (view.logits, view.losses, view.hidden, view.attention):
        yield from tensors
    for layers in features.values():
        yield from layers
    if balance is not None:
        yield balance


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
