"""The models of TextBrewer's experiments: teachers' hub ids, and where each student comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODELS: Mapping[str, str] = {
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "roberta-wwm-ext": "hfl/chinese-roberta-wwm-ext",
    "electra-base": "hfl/chinese-electra-base-discriminator",
    "electra-small": "hfl/chinese-electra-small-discriminator",
}
"""What is fine-tuned, by the name that rows use."""

_MSE_AND_MMD = ("hidden_mse", "hidden_smmd")
_EVERY_SECOND = tuple({"preset": kind, "every": 2} for kind in _MSE_AND_MMD)


@dataclass(frozen=True)
class Origin:
    """Where a student starts from, and what of its teacher's layers it is compared with.

    Args:
        matches: of the objective; kinds are generated for the sizes of both models.
        layers: so many of the first layers of the teacher, or of what the teacher was made from.
        preset: one of raybrew's, with random weights.
        model: one of `MODELS`, pretrained; what the teachers are made from if all are left out.
    """

    matches: tuple[Any, ...] = _MSE_AND_MMD
    layers: int = 0
    preset: str | None = None
    model: str | None = None

    def section(self, base: str, teacher: str | None) -> dict[str, Any]:
        """Return the job's section.

        Args:
            base: name of the model that the row's teacher is made from.
            teacher: the job's teacher; None without teachers.
        """
        if self.layers:
            return {"layers_from": [teacher or MODELS[base], list(range(self.layers))]}
        if self.preset is not None:
            own = {} if teacher else {"tokenizer_from": MODELS[base]}
            return {"preset": self.preset, **own}
        return {"model": MODELS[self.model or base]}


STUDENTS: Mapping[str, Origin] = {
    "T6": Origin(layers=6),
    "T3": Origin(layers=3),
    "T3-small": Origin(preset="T3-small"),
    "T4-tiny": Origin(preset="T4-tiny"),
    "T4-tiny-emd": Origin(preset="T4-tiny", matches=("hidden_emd",)),
    "T12-nano": Origin(preset="T12-nano", matches=_EVERY_SECOND),
    "BiGRU": Origin(preset="BiGRU", matches=()),
    "Electra-small": Origin(model="electra-small", matches=_EVERY_SECOND),
    # What several teachers teach: a model of their own size, by their logits alone.
    "base": Origin(matches=()),
    "T3-two-matches": Origin(
        layers=3,
        matches=(
            {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse"},
            {"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse"},
        ),
    ),
}
"""By the name that rows use."""
