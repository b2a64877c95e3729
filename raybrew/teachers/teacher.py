"""A teacher: a frozen model that answers ragged batches of examples with payloads.

    examples ──► sorted by length ──► chunks of at most `batch_tokens` ──► forward ──► reduce ──►
    back into the order of the question, as NumPy

A plain class: no Ray, no store. The answer to an example doesn't depend on who asks.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.config import Teacher
from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Payload, Signal, torch_dtype
from raybrew.data.split import STUDENT_VIEW, Padding, batches_by_length, collate
from raybrew.errors import ConfigError, LabelError, TeacherError
from raybrew.labels.logits import pack_logits
from raybrew.matches.capture import FeatureReader, pack_features, use_eager_attention
from raybrew.models.devices import check_device, device_for
from raybrew.models.inputs import set_padding_token
from raybrew.models.pretrained import load_model, read_config
from raybrew.objective.extensions import Extensions, install, registered
from raybrew.tasks import adaptor_of, task_type_of
from raybrew.tasks.task_type import Adaptor, Layout, View, first_classes

logger = logging.getLogger(__name__)

CPU_TOKENS, GPU_TOKENS = 512, 4096
"""Tokens of a forward where the job doesn't say: larger ones are no faster on a CPU."""


@dataclass(frozen=True)
class ResolvedTeacher:
    """A teacher that is known to fit its task: what every process of a run knows of it.

    Args:
        config: the job's section.
        kind: task type of its task.
        fingerprint: what its labels are filed under.
        signals: what is requested of it; the first one is its logits.
        view: the encoded view that it reads.
        model: folder that transformers loads; None if no process of the run hosts it.
        padding: what shorter examples are filled up with.
        adaptor: what its outputs mean; that of its task type if None.
        attention: whether attention maps are requested of it.
        num_classes: how many of its logits mean something; all if None.
        order: its number of each of the task's classes; None if they are the same.
        unnamed: whether no names say which of its classes is which of the task's.
        resources: Ray resources of each replica, once the cluster is known.
        device: that the resources of its host name, as PyTorch writes it.
        num_threads: PyTorch threads of its host.
        extensions: what the user registered in the driver's process.
    """

    config: Teacher
    kind: str
    fingerprint: str
    signals: tuple[Signal, ...]
    view: str = STUDENT_VIEW
    model: str | None = None
    padding: Padding = field(default_factory=lambda: Padding(0))
    adaptor: Adaptor | str | None = None
    attention: bool = False
    num_classes: int | None = None
    order: tuple[int, ...] | None = None
    unnamed: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    num_threads: int = 1
    extensions: Extensions = field(default_factory=registered)

    @property
    def name(self) -> str:
        """The job's name of it."""
        return self.config.name

    @property
    def is_column(self) -> bool:
        """Whether its logits are a column of the data, so that no model computes them."""
        return self.config.logits is not None

    @property
    def in_worker(self) -> bool:
        """Whether each student worker hosts it, and not the pool."""
        return self.model is not None and self.config.placement == "worker"

    @property
    def forward_tokens(self) -> int:
        """Most tokens of one forward, padding included."""
        if self.config.batch_tokens is not None:
            return self.config.batch_tokens
        return CPU_TOKENS if self.device == "cpu" else GPU_TOKENS

    def on(self, resources: Mapping[str, float]) -> "ResolvedTeacher":
        """Return it on the device, and with the threads, that Ray resources name."""
        return replace(
            self,
            device=str(device_for(resources.get("GPU", 0))),
            num_threads=max(1, int(resources.get("CPU", 1))),
        )

    def placed(self, default: Mapping[str, float]) -> "ResolvedTeacher":
        """Return it with its resources, or these where the job doesn't name any."""
        if self.model is None:
            return self
        given = self.config.resources
        resources = dict(default if given is None else given)
        if self.config.placement == "pool":
            logger.info(
                "teacher %r: each replica has %s%s and computes on the %s",
                self.name,
                ", ".join(f"{value:g} {name}" for name, value in resources.items()) or "nothing",
                " (the job doesn't name resources)" if given is None else "",
                "GPU" if resources.get("GPU", 0) > 0 else "CPU",
            )
        return replace(self, resources=resources)


class ModelTeacher:
    """A transformers model as a teacher."""

    def __init__(self, spec: ResolvedTeacher):
        self.spec = spec
        install(spec.extensions)
        self._device = torch.device(spec.device)
        setting = f"teachers[{spec.name}].resources to {{CPU: 1}}"
        check_device(self._device, f"teacher {spec.name!r}", setting)
        self._adaptor = first_classes(adaptor_of(spec.kind, spec.adaptor), spec.num_classes)
        self._layout: Layout = task_type_of(spec.kind).layout
        self._model = _load(spec).to(self._device)
        self._readers: dict[tuple[Signal, ...], FeatureReader] = {}

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        """Run the teacher.

        Args:
            view: n examples.
            signals: what is asked for.

        Returns:
            By signal name, n rows in the order of `view`.

        Raises:
            TeacherError: an answer is NaN or infinite; names teacher and example.
        """
        chunks = list(
            batches_by_length(
                view.lengths,
                max_tokens=self.spec.forward_tokens,
                one_length=self.spec.padding.is_read,
            )
        )
        answers = [self._forward(view, rows, signals) for rows in chunks]
        back = np.argsort(np.concatenate(chunks)) if chunks else np.empty(0, np.int64)
        return {
            signal.name: Payload.concat([answer[i] for answer in answers]).take(back)
            for i, signal in enumerate(signals)
        }

    @torch.inference_mode()
    def _forward(
        self, view: EncodedView, rows: np.ndarray, signals: tuple[Signal, ...]
    ) -> list[Payload]:
        batch = collate(view, rows, self.spec.padding)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        matched = tuple(signal for signal in signals if signal.recipe is not None)
        reader = self._reader(matched)
        answer = reader.read(batch, self._model(**batch, **reader.flags))
        features = dict(zip(matched, answer.features, strict=True))
        payloads = []
        for signal in signals:
            if signal in features:
                payload, unusable = pack_features(signal, features[signal], answer.view.inputs_mask)
            else:
                payload, unusable = self._logits(signal, answer.view, batch["attention_mask"])
            if unusable is not None:
                raise self._not_finite(view, rows[unusable], signal)
            payloads.append(payload)
        return payloads

    def _reader(self, matched: tuple[Signal, ...]) -> FeatureReader:
        if matched not in self._readers:
            recipes = [signal.recipe for signal in matched]
            try:
                self._readers[matched] = FeatureReader(
                    self._model, self._adaptor, recipes, "teacher"
                )
            except ConfigError as error:
                raise TeacherError(f"teacher {self.spec.name!r}: {error}") from error
        return self._readers[matched]

    def _logits(self, signal: Signal, view: View, mask: Tensor) -> tuple[Payload, int | None]:
        try:
            return pack_logits(view.logits, mask, self._layout, signal)
        except LabelError as error:
            raise TeacherError(f"teacher {self.spec.name!r}: {error}") from error

    def _not_finite(self, view: EncodedView, row: int, signal: Signal) -> TeacherError:
        ids = view.take(np.array([row])).input_ids
        return TeacherError(
            f"teacher {self.spec.name!r} ({self.spec.model}): expected finite {signal.statistic}, "
            "got NaN or infinity "
            f"for the example with key {view.keys[row, 0]:016x}{view.keys[row, 1]:016x} "
            f"(token ids {ids[:16].tolist()}{'…' if len(ids) > 16 else ''}); computed in "
            f"{self.spec.config.dtype} and kept in {signal.dtype}: check its weights, or choose "
            "another dtype"
        )


def _load(spec: ResolvedTeacher) -> nn.Module:
    assert spec.model is not None, "only models are hosted"
    torch.set_num_threads(spec.num_threads)
    what = f"teachers[{spec.name}].model"
    try:
        # A copy in memory: the weights of a teacher at work don't change with its files.
        # Has transformers know the configuration of a user's class first.
        kind = task_type_of(spec.kind, spec.config.architecture)
        config = read_config(spec.model, what, trust=spec.config.trust_remote_code)
        # Where a model looks for its last real token, padding has to look like padding.
        set_padding_token(config, spec.padding.token_id)
        dtype = torch_dtype(spec.config.dtype)
        model, info = load_model(kind.model_class, spec.model, what, config, dtype=dtype)
    except ConfigError as error:
        raise TeacherError(f"teacher {spec.name!r} can't be loaded: {error}") from error
    lacking = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
    if lacking:
        raise TeacherError(
            f"teacher {spec.name!r}: expected a fine-tuned model for {spec.kind} at {spec.model}, "
            f"got weights without {', '.join(lacking)}"
        )
    if spec.attention:
        use_eager_attention(model)
    return model.eval().requires_grad_(False)
