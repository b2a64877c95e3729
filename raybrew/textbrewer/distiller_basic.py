"""TextBrewer's `BasicDistiller`, which the other distillers build on.

batch ──► student, teachers (live, or from the labels that are kept) ──► adaptors
results_S, results_T ──► compute_loss ──► Σ weight · term
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.config.section import is_uri, user_path
from raybrew.data.payload import Signal
from raybrew.errors import ConfigError
from raybrew.textbrewer.configurations import DistillationConfig, IntermediateMatch, TrainingConfig
from raybrew.textbrewer.distiller_train import (  # noqa: F401  scripts find BasicTrainer here
    BasicTrainer,
    Callback,
    Postprocessor,
    Trainer,
    sum_of_means,
)
from raybrew.textbrewer.distiller_utils import (
    Adaptor,
    Results,
    auto_forward,
    bare,
    check_logits,
    match_features,
    move_to_device,
    probability_shift_,
    read_results,
    run_teacher,
    select_logits_with_mask,
    sides_of,
)
from raybrew.textbrewer.label_cache import (
    Asked,
    LabelCache,
    all_tokens,
    asked_of,
    axes_of,
    mask_that_suffices,
    size_of,
    take_rows,
    teacher_fingerprint,
)
from raybrew.textbrewer.presets import KD_LOSS_MAP, PROJ_MAP

logger = logging.getLogger(__name__)

Terms = tuple[Tensor, dict[str, Tensor]]
"""The loss of a batch, with a graph, and its terms without their weights, by TextBrewer's names."""
Teachers = dict[str, tuple[nn.Module, Adaptor]]
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class BasicDistiller(Trainer):
    """One teacher, one task, losses on logits and labels.

    Args:
        train_config: how, and where to.
        distill_config: what the loss is.
        model_T: the teacher; a list of them, or a dict by task, where a distiller takes several.
        model_S: the student.
        adaptor_T: the teacher's; likewise.
        adaptor_S: the student's; by task where there are several.

    Raises:
        ConfigError: what can't be, such as a match with a teacher that isn't there.
    """

    _compares_layers = False
    _shares_teachers = True
    """Whether a match that names no teacher is of the one that there is."""
    _keeps_pass = True
    """Whether `is_caching_logits` keeps the batches of one pass over the loader."""

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
    ):
        super().__init__(train_config, model_S)
        self.d_config = distill_config
        self.model_T, self.adaptor_T, self.adaptor_S = model_T, adaptor_T, adaptor_S
        self.kd_loss = KD_LOSS_MAP.method(distill_config.kd_loss_type)
        self.projs: list[Any] = []
        self.projs_group: list[Any] = []
        self._caches: dict[str, LabelCache] = {}
        self._computed = self._found = 0
        self._has_warned = False
        self._check_matches(list(self._pairs()))
        for match in distill_config.intermediate_matches if self._compares_layers else ():
            name, *sizes, options = match.proj or (None, {})
            self.projs.append(name and PROJ_MAP.method(name)(*sizes).to(self.device))
            self.projs_group.append(options)

    @property
    def label_counts(self) -> dict[str, int]:
        """How many answers of teachers were computed, and how many were found in the store."""
        found = self._found + sum(cache.found for cache in self._caches.values())
        return {"computed": self._computed, "found": found}

    def train_on_batch(self, batch: Any, args: Mapping[str, Any]) -> Terms:
        """Return the loss of a batch, with a graph, and its terms without their weights."""
        results_S, results_T = self._results(batch, args, self._pairs(), self.adaptor_S)
        return self.compute_loss(results_S, results_T["0"])

    def compute_loss(self, results_S: Results, results_T: Any) -> Terms:
        """Combine the terms of a batch, from what the student's and the teacher's adaptors give.

        Raises:
            ConfigError: there is nothing to learn from.
            TeacherError: logits of another shape than the student's.
        """
        return self._combined(results_S, {"0": results_T})

    def _wrap_models(self) -> None:
        super()._wrap_models()
        if self.local_rank != -1:
            self.projs = [each and self._wrapped(each) for each in self.projs]
        elif self.t_config.data_parallel:
            self.model_T = _each(self.model_T, self._wrapped)
        # Teachers may have changed since.
        self._found += sum(cache.found for cache in self._caches.values())
        self._caches = {}

    def _pairs(self) -> Teachers:
        """Return the teachers with their adaptors, by name."""
        return {"0": (self.model_T, self.adaptor_T)}

    def _teachers(self) -> list[nn.Module]:
        return [model for model, _ in self._pairs().values()]

    def _keeps_batches(self) -> bool:
        return self._keeps_pass and self.d_config.is_caching_logits

    def _check_matches(self, teachers: Sequence[str]) -> None:
        matches = self.d_config.intermediate_matches
        if matches and not self._compares_layers:
            logger.warning(
                "%s compares no layers: its %d intermediate_matches are not used; take "
                "GeneralDistiller",
                type(self).__name__,
                len(matches),
            )
            return
        for match in matches:
            if match.teacher is None and len(teachers) > 1 and not self._shares_teachers:
                raise ConfigError(
                    f'{match.spec.label}: expected "teacher", the number of one of '
                    f"{len(teachers)} teachers ({', '.join(teachers)}), got none"
                )
            if match.teacher is not None and match.teacher not in teachers:
                raise ConfigError(
                    f"{match.spec.label}: expected a teacher of {', '.join(teachers)}, got "
                    f"{match.teacher!r}"
                )

    def _projections(self) -> list[tuple[nn.Module, Mapping[str, Any]]]:
        options = [*self.projs_group, *[None] * len(self.projs)]
        pairs = zip(self.projs, options, strict=False)
        return [(module, group or {}) for module, group in pairs if module is not None]

    def _matches(self, teachers: Iterable[str]) -> list[tuple[int, IntermediateMatch, str]]:
        """Return the matches with some teachers: number, match, the teacher's name."""
        names = list(teachers)
        return [
            (number, match, match.teacher or names[0])
            for number, match in enumerate(self.d_config.intermediate_matches)
            if self._compares_layers and (match.teacher or names[0]) in names
        ]

    def _results(
        self, batch: Any, args: Mapping[str, Any], teachers: Teachers, adaptor_S: Adaptor
    ) -> tuple[Results, dict[str, Results]]:
        """Run the student, and its teachers or the labels in their place."""
        batch_T, batch_S, cached = sides_of(batch)
        moved = move_to_device(batch_S, self.device)
        results_S = read_results(adaptor_S, moved, auto_forward(self.model_S, moved, args))
        logits = results_S.get("logits", ()) if self._uses_logits() else ()
        results_T: dict[str, Results] = {}
        for number, (name, pair) in enumerate(teachers.items()):
            matches = [match for _, match, teacher in self._matches(teachers) if teacher == name]
            outputs = cached if cached is None or len(teachers) == 1 else cached[number]
            if not matches and not self._uses_logits():
                results_T[name] = {}
            elif outputs is None and self._caches_labels():
                asked = asked_of(results_S, logits, matches)
                reads_padding = batch_T is not batch_S or any(m.reads_padding for m in matches)
                mask = None if reads_padding else mask_that_suffices(batch_T, results_S, asked)
                answer = self._checked_answer(name, pair, asked, matches, args)
                cache = self._cache(name, pair, args)
                results_T[name] = self._labels(cache, batch_T, asked, mask, answer)
            else:
                results_T[name] = self._answer(pair, batch_T, args, outputs)
            if "logits_mask" in results_S:
                # Of a teacher that gives no mask the rows are taken that the student has.
                results_T[name].setdefault("logits_mask", results_S["logits_mask"])
        return results_S, results_T

    def _answer(
        self, pair: tuple[nn.Module, Adaptor], batch: Any, args: Any, cached: Any = None
    ) -> Results:
        moved = move_to_device(batch, self.device)
        outputs = run_teacher(pair[0], moved, args, move_to_device(cached, self.device))
        results = read_results(pair[1], moved, outputs)
        self._computed += size_of(results) if cached is None else 0
        return results

    def _checked_answer(
        self,
        name: str,
        pair: tuple[nn.Module, Adaptor],
        asked: Asked,
        matches: Sequence[IntermediateMatch],
        args: Mapping[str, Any],
    ) -> Callable[[Any], dict[Signal, Tensor]]:
        """Return what runs a teacher on a batch, for the tensors that are asked for."""

        def answer(batch: Any) -> dict[Signal, Tensor]:
            found = self._answer(pair, batch, args)
            own = [each[: size_of(found)] for key, _, each in asked.values() if key == "logits"]
            check_logits(name, found.get("logits", ()) if own else (), own)
            for match in matches:
                match_features(found, match, "teacher")
            return {signal: found[key][place] for signal, (key, place, _) in asked.items()}

        return answer

    def _labels(
        self,
        cache: LabelCache,
        batch: Any,
        asked: Asked,
        mask: Tensor | None,
        answer: Callable[[Any], dict[Signal, Tensor]],
    ) -> Results:
        """Return a teacher's results from the labels that are kept; see `LabelCache`."""
        results: Results = {}
        if asked:
            axes = {signal: axes_of(each) for signal, each in asked.items()}
            places = all_tokens(asked) if mask is None else mask
            tensors = cache.tensors(
                batch,
                places,
                mask is None,
                axes,
                lambda rows: answer(take_rows(batch, rows, len(places))),
            )
            for signal, (key, place, _) in asked.items():
                layers = results.setdefault(key, [])
                layers += [None] * (place + 1 - len(layers))
                layers[place] = tensors[signal].to(self.device)
        return results

    def _cache(
        self, name: str, pair: tuple[nn.Module, Adaptor], args: Mapping[str, Any]
    ) -> LabelCache:
        if name not in self._caches:
            given, model = self.t_config.label_store, bare(pair[0])
            root = str(Path(self.t_config.output_dir) / "labels" if given is None else given)
            self._caches[name] = LabelCache(
                root if is_uri(root) else os.path.abspath(user_path(root, "label_store")),
                teacher_fingerprint(model, pair[1], args, _PRECISIONS[self._precision]),
                teacher=name,
                model=f"{type(model).__qualname__} of a script",
            )
        return self._caches[name]

    def _caches_labels(self) -> bool:
        # A compute_loss of the script's own may read any layer.
        return self.d_config.is_caching_logits and not (
            self._compares_layers and self._computes_own_loss()
        )

    def _computes_own_loss(self) -> bool:
        return not type(self).compute_loss.__module__.startswith(__package__ or "")

    def _uses_logits(self) -> bool:
        """Whether anything is learnt from the teachers' logits."""
        config = self.d_config
        scheduled = config.kd_loss_weight_scheduler is not None
        return bool(config.kd_loss_weight or scheduled or self._computes_own_loss())

    def _combined(self, results_S: Results, results_T: Mapping[str, Results]) -> Terms:
        config = self.d_config
        parts: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        if "logits" in results_S and self._uses_logits():
            parts["unweighted_kd_loss"] = kd = self._kd_loss(results_S, results_T)
            terms.append(kd * config.kd_loss_weight)
        for number, match, teacher in self._matches(results_T):
            value = self._match_loss(match, number, results_S, results_T[teacher])
            parts[f"unweighted_{match.spec.metric_name}"] = value
            terms.append(value * match.weight)
        if "losses" in results_S:
            parts["unweighted_hard_label_loss"] = hard = sum_of_means(results_S["losses"])
            terms.append(hard * config.hard_label_weight)
        elif config.hard_label_weight and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "hard_label_weight is %s, but the student's adaptor gives no losses: as in "
                "TextBrewer, nothing is learnt from labels",
                config.hard_label_weight,
            )
        if not terms:
            raise ConfigError(
                "the student's adaptor gives neither logits nor losses, and there is no match: "
                "there is nothing to learn from"
            )
        return torch.stack(terms).sum(), parts

    def _kd_loss(self, results_S: Results, results_T: Mapping[str, Results]) -> Tensor:
        config, own = self.d_config, _rows_of(results_S)
        theirs = []
        for name, results in results_T.items():
            given = results.get("logits", ())
            theirs.append(_rows_of(results) if len(given) == len(own) else given)
            check_logits(name, theirs[-1], own)
        labels = _labels_of(results_S) if config.probability_shift else [None] * len(own)
        losses = []
        for l_S, label, *each in zip(own, labels, *theirs, strict=True):
            l_T = torch.stack(each).mean(dim=0)
            if label is not None:
                l_T = probability_shift_(l_T, label)
            temperature = config.temperature
            if config.temperature_scheduler is not None:
                temperature = config.temperature_scheduler(l_S, l_T, temperature)
            # A loss of the script's own may give a value for each row.
            losses.append(self.kd_loss(l_S, l_T, temperature).mean())
        return torch.stack(losses).sum()

    def _match_loss(
        self, match: IntermediateMatch, number: int, results_S: Results, results_T: Results
    ) -> Tensor:
        state_T = match_features(results_T, match, "teacher")
        state_S = match_features(results_S, match, "student")
        projection = self.projs[number] if number < len(self.projs) else None
        if projection is not None and isinstance(state_S, list):
            # A layer that is matched with itself is projected once.
            projected = {id(state): projection(state) for state in state_S}
            state_S = [projected[id(state)] for state in state_S]
        elif projection is not None:
            state_S = projection(state_S)
        try:
            return match.function(state_S, state_T, mask=results_S.get("inputs_mask"))
        except ConfigError as error:
            raise ConfigError(f"{match.spec.label}: {error}") from error

    def _after_step(self, progress: float) -> None:
        config = self.d_config
        if config.kd_loss_weight_scheduler is not None:
            config.kd_loss_weight = config.kd_loss_weight_scheduler(progress)
        if config.hard_label_weight_scheduler is not None:
            config.hard_label_weight = config.hard_label_weight_scheduler(progress)

    def _values(self) -> dict[str, Any]:
        self._flush_labels()
        return self.d_config.numbers()

    def _restore_values(self, values: Mapping[str, Any]) -> None:
        for name in self.d_config.numbers():
            setattr(self.d_config, name, values[name])

    def _settings(self) -> dict[str, str]:
        return self.d_config.settings()

    def _ended(self) -> None:
        self._flush_labels()
        super()._ended()

    def _flush_labels(self) -> None:
        for cache in self._caches.values():
            cache.flush()


def _each(models: Any, change: Callable[[nn.Module], nn.Module]) -> Any:
    if isinstance(models, list | tuple):
        return [change(model) for model in models]
    if isinstance(models, Mapping):
        return {name: change(model) for name, model in models.items()}
    return change(models)


def _rows_of(results: Results) -> Sequence[Tensor]:
    """Return the logits of each output, in the rows that its mask keeps."""
    logits, masks = results.get("logits", ()), results.get("logits_mask")
    return logits if masks is None else select_logits_with_mask(logits, masks)


def _labels_of(results: Results) -> list[Tensor]:
    """Return the labels of each output in the rows of `_rows_of`.

    Raises:
        ConfigError: there are not as many labels as logits.
    """
    logits, labels = results["logits"], results.get("labels", ())
    if len(labels) != len(logits):
        raise ConfigError(
            f"probability_shift: expected an adaptor that gives labels for each of {len(logits)} "
            f"logits, got {len(labels)}"
        )
    masks = results.get("logits_mask", [None] * len(logits))
    return [
        label if each.dim() < 3 or mask is None else label[mask != 0]
        for each, label, mask in zip(logits, labels, masks, strict=True)
    ]
