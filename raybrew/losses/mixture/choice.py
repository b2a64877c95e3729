"""The choice of a mixture: a combination and a weighting, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raybrew.errors import ConfigError
from raybrew.losses.mixture.rules import rule_of
from raybrew.losses.soft.options import Limits, OptionValue, checked_options, unknown_name

__all__ = ["MIXTURES", "Mixture", "make_mixture"]

COMBINATIONS = ("mean_logits", "mean_probs", "sum_losses")
SCORES = ("neg_ce", "neg_entropy", "max_prob")


@dataclass(frozen=True)
class Mixture:
    """How several teachers become one objective.

    Attributes:
        combination: mean_logits, mean_probs, or sum_losses.
        weighting: a key of `RULES`, or an import path of the user's.
        score: what `softmax` weighs by: neg_ce, neg_entropy, max_prob.
        alpha: factor on that score.
        seed: of the random pick.
    """

    combination: str = "mean_logits"
    weighting: str = "fixed"
    score: str = "neg_ce"
    alpha: float | int = 1.0
    seed: int = 0

    @property
    def sums_losses(self) -> bool:
        """Whether each teacher has a loss of its own, rather than one target for all."""
        return self.combination == "sum_losses"

    @property
    def needs_labels(self) -> bool:
        """Whether weights come from the cross-entropy with the true label."""
        by_score = self.weighting == "softmax" and self.score == "neg_ce"
        return by_score or "labels" in rule_of(self.weighting).needs

    @property
    def needs_route(self) -> bool:
        """Whether a column of the data names the teacher."""
        return "route" in rule_of(self.weighting).needs

    @property
    def needs_row_keys(self) -> bool:
        """Whether rows are told apart by their keys."""
        return "row_keys" in rule_of(self.weighting).needs


# One word for a combination and a weighting that go together. Those that pick one teacher have
# its logits for a target; CA-MKD and MT-BERT weigh losses, as their papers do.
MIXTURES: dict[str, Mixture] = {
    "mean_logits": Mixture("mean_logits"),
    "mean_probs": Mixture("mean_probs"),
    "sum_losses": Mixture("sum_losses"),
    "min_ce": Mixture("mean_logits", "min_ce"),
    "random": Mixture("mean_logits", "random"),
    "route": Mixture("mean_logits", "route"),
    "ca_mkd": Mixture("sum_losses", "ca_mkd"),
    "mt_bert": Mixture("sum_losses", "mt_bert"),
    "softmax_neg_ce": Mixture("mean_probs", "softmax", "neg_ce"),
    "softmax_neg_entropy": Mixture("mean_probs", "softmax", "neg_entropy"),
    "softmax_max_prob": Mixture("mean_probs", "softmax", "max_prob"),
}
CHOICES = {"combination": COMBINATIONS, "score": SCORES}


def make_mixture(name: str, options: Mapping[str, OptionValue] | None = None) -> Mixture:
    """Build a mixture from its name.

    Args:
        name: a key of `MIXTURES`.
        options: combination, weighting, score, alpha, seed: what differs from the named one.

    Returns:
        The mixture.

    Raises:
        ConfigError: an unknown name, option or choice, or a value out of range.
    """
    if name not in MIXTURES:
        raise unknown_name("mixture", name, MIXTURES)
    options = options or {}
    checked_options(f"Mixture {name!r}", _options, options, {"alpha": Limits(0.0)})
    for option, choices in CHOICES.items():
        if option in options and options[option] not in choices:
            raise unknown_name(f"{option} of mixture {name!r}", str(options[option]), choices)
    if not isinstance(options.get("seed", 0), int):
        raise ConfigError(f"Mixture {name!r}, option 'seed': expected an integer.")
    mixture = replace(MIXTURES[name], **options)
    rule_of(mixture.weighting)
    return mixture


def _options(
    *,
    combination: str = "",
    weighting: str = "",
    score: str = "",
    alpha: float = 1.0,
    seed: int = 0,
) -> None:
    """Say by its signature what `make_mixture` takes."""
