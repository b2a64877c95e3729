"""KD losses by name: the dict, and the way from a name to a callable.

A name is a built-in one, one that the user registered (`raybrew.extensions`), or an import path
"package.module:function". An import path is resolved by the process that builds the loss, so
it reaches Ray workers by itself.
"""

import importlib
from collections.abc import Mapping

from raybrew.errors import ConfigError
from raybrew.losses.soft.adaptive_kl import ADAPTIVE_KL
from raybrew.losses.soft.bce import BCE
from raybrew.losses.soft.ce import CE
from raybrew.losses.soft.dist import DIST
from raybrew.losses.soft.dkd import DKD
from raybrew.losses.soft.jsd import JSD
from raybrew.losses.soft.kd_loss import BoundKDLoss, KDLoss
from raybrew.losses.soft.kl import KL
from raybrew.losses.soft.logit_std import LOGIT_STD
from raybrew.losses.soft.mse import MSE
from raybrew.losses.soft.options import OptionValue, unknown_name
from raybrew.losses.soft.reverse_kl import REVERSE_KL
from raybrew.losses.soft.skew_kl import SKEW_KL
from raybrew.losses.soft.skew_reverse_kl import SKEW_REVERSE_KL
from raybrew.losses.soft.tvd import TVD

__all__ = ["KD_LOSSES", "as_kd_loss", "make_kd_loss"]

KD_LOSSES: dict[str, KDLoss] = {
    "ce": CE,
    "mse": MSE,
    "kl": KL,
    "reverse_kl": REVERSE_KL,
    "jsd": JSD,
    "skew_kl": SKEW_KL,
    "skew_reverse_kl": SKEW_REVERSE_KL,
    "adaptive_kl": ADAPTIVE_KL,
    "tvd": TVD,
    "dkd": DKD,
    "dist": DIST,
    "logit_std": LOGIT_STD,
    "bce": BCE,
}


def make_kd_loss(
    name: str, options: Mapping[str, OptionValue] | None = None, *, scale_t2: bool = False
) -> BoundKDLoss:
    """Build a KD loss from its name and options.

    Args:
        name: a key of `KD_LOSSES`, or an import path "package.module:function".
        options: the loss's options; what isn't given keeps its default.
        scale_t2: multiply by T², so that gradients keep their size as T grows.

    Returns:
        (student_logits, teacher_logits, temperature, labels=None, mask=None) -> (*rows).

    Raises:
        ConfigError: an unknown name (the nearest ones are named), an import path that can't be
            resolved, or options that don't fit.
    """
    if ":" in name:
        loss = as_kd_loss(name, name)
    elif name in KD_LOSSES:
        loss = KD_LOSSES[name]
    else:
        raise unknown_name("KD loss", name, KD_LOSSES)
    return loss.bind(options or {}, scale_t2=scale_t2)


def as_kd_loss(name: str, loss: object) -> KDLoss:
    """Take in a KD loss of the user's.

    Args:
        name: for messages.
        loss: a function of (student_logits, teacher_logits, temperature) that returns (*rows),
            with `labels` and `mask` among its parameters if it needs them and its options as
            keyword-only ones; or a `KDLoss`; or an import path to either.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(loss, str):
        loss = _imported(loss)
    if isinstance(loss, KDLoss):
        return loss
    if callable(loss):
        return KDLoss.from_function(name, loss)
    raise ConfigError(
        f"KD loss {name!r}: expected a function or a KDLoss, got {type(loss).__name__}."
    )


def _imported(path: str) -> object:
    """Resolve "package.module:attribute" in this process."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"Expected an import path 'package.module:function', got {path!r}.")
    try:
        value: object = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"KD loss {path!r}: module {module_name!r} can't be imported here ({error}). It must "
            "be importable on every worker, e.g. through the runtime environment's py_modules."
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise unknown_name(f"KD loss {path!r}, attribute", part, _public_names(value))
        value = getattr(value, part)
    return value


def _public_names(value: object) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]
