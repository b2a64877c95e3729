"""Knowledge distillation losses on logits: each returns one value per row and takes no mean.

    raw logits ──► log softmax(z / T), or k + 1 buckets ──► divergence ──► (*rows) ──► × T² if asked

Shapes: `*rows` is (B,) or (B, L). p is the teacher's distribution at the temperature, q the
student's. A loss in the space of log-probabilities takes log q and log p; a loss in the space of
logits takes raw logits, in which −inf marks a class that is masked out, and the temperature, a
number or one per row. `KD_LOSSES` states the space of each loss and the ranges of its options.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid

from raybrew.errors import ConfigError, import_object, unknown_name
from raybrew.losses.numerics import (
    LOG_ZERO,
    Temperature,
    class_mean,
    expectation,
    log_mixture,
    log_probs,
    present_classes,
    promoted,
    tempered,
)
from raybrew.losses.registry import KDLoss, Limits, OptionValue

Logits = Float[Tensor, "*rows classes"]
LogProbs = Float[Tensor, "*rows classes"]
PerRow = Float[Tensor, "*rows"]


def ce(student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> PerRow:
    """Cross-entropy of the student under the teacher, −Σ_c p_c log q_c; TextBrewer's default.

    Returns:
        (*rows), in nats.

    Reference:
        Hinton et al. 2015, arXiv:1503.02531, without the factor T², as in TextBrewer.
    """
    return -expectation(teacher_log_probs.exp(), student_log_probs)


def kl(student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> PerRow:
    """KL(p‖q) = Σ_c p_c (log p_c − log q_c): the student covers the teacher.

    Returns:
        (*rows), in nats; the gradient is that of `ce`.

    Reference:
        Hinton et al. 2015, arXiv:1503.02531.
    """
    return expectation(teacher_log_probs.exp(), teacher_log_probs - student_log_probs)


def reverse_kl(student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> PerRow:
    """KL(q‖p) = Σ_c q_c (log q_c − log p_c): the student stays where the teacher is.

    Returns:
        (*rows), in nats; infinite where only the teacher has masked a class out.

    Reference:
        MiniLLM, Gu et al. 2023, arXiv:2306.08543.
    """
    return kl(student_log_probs=teacher_log_probs, teacher_log_probs=student_log_probs)


def jsd(
    student_log_probs: LogProbs, teacher_log_probs: LogProbs, *, beta: float | int = 0.5
) -> PerRow:
    """Generalised Jensen-Shannon divergence, β KL(p‖m) + (1 − β) KL(q‖m) with m = β p + (1 − β) q.

    Args:
        student_log_probs: log q.
        teacher_log_probs: log p.
        beta: β in (0, 1), the teacher's share of the mixture.

    Returns:
        (*rows), in nats, at most the entropy of (β, 1 − β).

    Reference:
        GKD, Agarwal et al. 2023, arXiv:2306.13649.
    """
    mixture_log_probs = log_mixture(teacher_log_probs, student_log_probs, beta)
    teacher_term = kl(mixture_log_probs, teacher_log_probs)
    student_term = kl(mixture_log_probs, student_log_probs)
    return beta * teacher_term + (1 - beta) * student_term


def skew_kl(
    student_log_probs: LogProbs, teacher_log_probs: LogProbs, *, skew: float | int = 0.1
) -> PerRow:
    """Skew KL divergence, KL(p‖λ p + (1 − λ) q).

    Args:
        student_log_probs: log q.
        teacher_log_probs: log p.
        skew: λ in [0, 1); at 0 it is `kl`.

    Returns:
        (*rows), in nats, at most −log λ.

    Reference:
        DistiLLM, Ko et al. 2024, arXiv:2402.03898.
    """
    if skew == 0:
        return kl(student_log_probs, teacher_log_probs)
    return kl(log_mixture(teacher_log_probs, student_log_probs, skew), teacher_log_probs)


def skew_reverse_kl(
    student_log_probs: LogProbs, teacher_log_probs: LogProbs, *, skew: float | int = 0.1
) -> PerRow:
    """Skew reverse KL divergence, KL(q‖λ q + (1 − λ) p).

    Args:
        student_log_probs: log q.
        teacher_log_probs: log p.
        skew: λ in [0, 1); at 0 it is `reverse_kl`.

    Returns:
        (*rows), in nats, at most −log λ.

    Reference:
        DistiLLM, Ko et al. 2024, arXiv:2402.03898.
    """
    return skew_kl(
        student_log_probs=teacher_log_probs, teacher_log_probs=student_log_probs, skew=skew
    )


def adaptive_kl(
    student_log_probs: LogProbs, teacher_log_probs: LogProbs, *, mu: float | int = 0.5
) -> PerRow:
    """Forward and reverse KL, mixed by the gap between p and q at the head and at the tail.

    (g_head KL(p‖q) + g_tail KL(q‖p)) / (g_head + g_tail) with g = Σ |p_c − q_c| over the part. The
    head is the fewest classes, the teacher's largest, whose mass reaches μ; classes that tie are
    taken by index. The weights carry no gradient.

    Args:
        student_log_probs: log q.
        teacher_log_probs: log p.
        mu: μ in (0, 1), the mass of the head.

    Returns:
        (*rows), in nats.

    Reference:
        Wu et al. 2024, arXiv:2404.02657. (Their script leaves the class that crosses μ out of the
        head, unless it is the first; the paper's definition takes it in, and so do we.)
    """
    head_share = _head_share(student_log_probs.exp(), teacher_log_probs.exp(), mu)
    forward = kl(student_log_probs, teacher_log_probs)
    backward = reverse_kl(student_log_probs, teacher_log_probs)
    # An infinite divergence of no weight counts for nothing.
    forward = forward.masked_fill(head_share == 0, 0.0)
    backward = backward.masked_fill(head_share == 1, 0.0)
    return head_share * forward + (1 - head_share) * backward


@torch.no_grad()
def _head_share(student_probs: Tensor, teacher_probs: Tensor, mu: float | int) -> Tensor:
    """Return g_head / (g_head + g_tail); ½ where p = q and it doesn't matter."""
    sorted_probs, order = teacher_probs.sort(dim=-1, descending=True, stable=True)
    gap = (sorted_probs - student_probs.gather(-1, order)).abs()
    mass_before = sorted_probs.cumsum(dim=-1) - sorted_probs
    head_gap = gap.masked_fill(mass_before >= mu, 0.0).sum(dim=-1)
    total = gap.sum(dim=-1)
    return torch.where(total > 0, head_gap / total, 0.5)


def tvd(student_log_probs: LogProbs, teacher_log_probs: LogProbs) -> PerRow:
    """Total variation distance, ½ Σ_c |p_c − q_c|.

    Returns:
        (*rows), in [0, 1].

    Reference:
        f-distill, Wen et al. 2023, arXiv:2307.15190.
    """
    return 0.5 * (teacher_log_probs.exp() - student_log_probs.exp()).abs().sum(dim=-1)


def mse(student_logits: Logits, teacher_logits: Logits, temperature: Temperature) -> PerRow:
    """Mean over classes of ((s_c − t_c) / T)²; classes at −inf on both sides are left out.

    Returns:
        (*rows).

    Reference:
        TextBrewer's `kd_mse_loss`.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = tempered(student_logits, temperature, dtype)
    teacher = tempered(teacher_logits, temperature, dtype)
    return class_mean(student - teacher, present_classes(student_logits, teacher_logits), power=2)


def bce(student_logits: Logits, teacher_logits: Logits, temperature: Temperature) -> PerRow:
    """Binary cross-entropy, for multi-label tasks: each class has a logit of its own.

    Mean over classes of −y log σ(s/T) − (1 − y) log(1 − σ(s/T)) with y = σ(t/T); classes at −inf
    on both sides are left out.

    Returns:
        (*rows), in nats; its minimum is the mean entropy of the teacher's labels.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = tempered(student_logits, temperature, dtype)
    teacher = tempered(teacher_logits, temperature, dtype)
    yes, no = teacher.sigmoid(), (-teacher).sigmoid()
    # A label of probability 0 adds 0 even where the student's logit is infinite.
    yes_term = yes * logsigmoid(student).masked_fill(yes == 0, 0.0)
    no_term = no * logsigmoid(-student).masked_fill(no == 0, 0.0)
    return class_mean(-(yes_term + no_term), present_classes(student_logits, teacher_logits))


def logit_std(
    student_logits: Logits,
    teacher_logits: Logits,
    temperature: Temperature,
    *,
    unbiased: bool = False,
    eps: float | int = 1e-7,
) -> PerRow:
    """KL of z-scored logits: KL(softmax(Z(t)/T) ‖ softmax(Z(s)/T)), Z(z) = (z − mean)/(std + ε).

    Args:
        student_logits: raw; masked classes are left out of mean and std.
        teacher_logits: raw.
        temperature: T.
        unbiased: divide the variance by C − 1, as the authors' code does; the paper divides by C.
        eps: ε, added to the standard deviation.

    Returns:
        (*rows), in nats.

    Reference:
        Sun et al. 2024, arXiv:2403.01427.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = _standardised(student_logits.to(dtype), unbiased, eps)
    teacher = _standardised(teacher_logits.to(dtype), unbiased, eps)
    return kl(log_probs(student, temperature), log_probs(teacher, temperature))


def _standardised(logits: Tensor, unbiased: bool, eps: float | int) -> Tensor:
    """Z-score over the classes that aren't masked; −inf stays −inf."""
    masked = logits.isneginf()
    count = (~masked).sum(dim=-1, keepdim=True)
    filled = logits.masked_fill(masked, 0.0)
    mean = filled.sum(dim=-1, keepdim=True) / count.clamp(min=1)
    centred = (filled - mean).masked_fill(masked, 0.0)
    divisor = (count - 1 if unbiased else count).clamp(min=1)
    variance = centred.square().sum(dim=-1, keepdim=True) / divisor
    # A constant row has std 0, where the root has no derivative: it is taken as constant there.
    constant = variance == 0
    deviation = variance.masked_fill(constant, 1.0).sqrt().masked_fill(constant, 0.0)
    return (centred / (deviation + eps)).masked_fill(masked, float("-inf"))


def dkd(
    student_logits: Logits,
    teacher_logits: Logits,
    temperature: Temperature,
    labels: Int64[Tensor, "*rows"],
    *,
    alpha: float | int = 1.0,
    beta: float | int = 8.0,
) -> PerRow:
    """Decoupled distillation, α TCKD + β NCKD; plain KL(p‖q) in rows without a label.

    TCKD = KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)); NCKD = KL(p̂ ‖ q̂), the two softmaxes without the
    class y. Since KL(p‖q) = TCKD + (1 − p_y) NCKD, a row of negative label is worth that sum.

    Args:
        student_logits: raw.
        teacher_logits: raw.
        temperature: T.
        labels: true classes; negative = no label, plain KL in that row.
        alpha: weight of TCKD.
        beta: weight of NCKD, which is 0 when there are two classes only.

    Returns:
        (*rows), in nats.

    Reference:
        Zhao et al. 2022, arXiv:2203.08679.
    """
    dtype = promoted(student_logits, teacher_logits)
    student = tempered(student_logits, temperature, dtype)
    teacher = tempered(teacher_logits, temperature, dtype)
    student_log_probs, teacher_log_probs = student.log_softmax(-1), teacher.log_softmax(-1)
    target = labels.clamp(min=0).unsqueeze(-1)
    target_term = kl(_binary(student_log_probs, target), _binary(teacher_log_probs, target))
    rest_term = kl(_without(student, target), _without(teacher, target))
    # A teacher with all its mass on the target has no distribution over the others.
    nothing_left = teacher.scatter(-1, target, LOG_ZERO).amax(dim=-1) <= LOG_ZERO
    rest_term = rest_term.masked_fill(nothing_left, 0.0)
    plain = kl(student_log_probs, teacher_log_probs)
    return torch.where(labels < 0, plain, alpha * target_term + beta * rest_term)


def _binary(log_p: Tensor, target: Tensor) -> Tensor:
    """Return (log p_y, log(1 − p_y)), the second from its own terms, exact where p_y is near 1."""
    others = log_p.scatter(-1, target, LOG_ZERO).clamp(min=LOG_ZERO)
    rest = others.logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_p.gather(-1, target), rest], dim=-1)


def _without(logits: Tensor, target: Tensor) -> Tensor:
    """Return the log-softmax of the other classes; the target's own is a huge negative number."""
    return logits.scatter(-1, target, LOG_ZERO).log_softmax(dim=-1)


def dist(
    student_logits: Logits,
    teacher_logits: Logits,
    temperature: Temperature,
    mask: Bool[Tensor, "*rows"] | None = None,
    *,
    beta: float | int = 1.0,
    gamma: float | int = 1.0,
) -> PerRow:
    """DIST: Pearson correlations ρ of probabilities, between classes and between examples.

    β (1 − ρ(q_row, p_row)) + γ mean over classes of (1 − ρ(q_class, p_class)): ρ across the classes
    of a row, and across the valid rows for a class. The second part is one number for the batch,
    given to each valid row, so that the sum over valid rows divided by their count is right. It
    relates the rows of one call: with micro-batches or several ranks, each relates its own.

    Where the teacher's probabilities don't vary (one valid row, a uniform row) there is no
    relation to learn, and the part is 0. Where only the student's don't, ρ is 0.

    Args:
        student_logits: raw.
        teacher_logits: raw. Classes at −inf on both sides are left out.
        temperature: T.
        mask: True for valid rows; None = all are.
        beta: weight of the part between classes.
        gamma: weight of the part between examples.

    Returns:
        (*rows); 0 in rows that aren't valid.

    Reference:
        Huang et al. 2022, arXiv:2205.10536.
    """
    dtype = promoted(student_logits, teacher_logits)
    student_probs = log_probs(student_logits, temperature, dtype).exp()
    teacher_probs = log_probs(teacher_logits, temperature, dtype).exp()
    present = present_classes(student_logits, teacher_logits)
    rows, classes = present.shape[:-1], present.shape[-1]
    valid = present.new_ones(rows) if mask is None else mask
    between_classes = _pearson_distance(student_probs, teacher_probs, present, dim=-1)
    pairs = (present & valid.unsqueeze(-1)).reshape(-1, classes)
    by_class = _pearson_distance(
        student_probs.reshape(-1, classes), teacher_probs.reshape(-1, classes), pairs, dim=0
    )
    between_rows = by_class.sum() / pairs.any(dim=0).sum().clamp(min=1)
    return torch.where(valid, beta * between_classes + gamma * between_rows, 0.0)


def _pearson_distance(student: Tensor, teacher: Tensor, present: Tensor, dim: int) -> Tensor:
    """Return 1 − ρ along a dimension, over the entries that are present."""
    student, student_norm, _ = _centred(student, present, dim)
    teacher, teacher_norm, varies = _centred(teacher, present, dim)
    correlation = (student * teacher).sum(dim=dim) / (student_norm * teacher_norm)
    return (1 - correlation).masked_fill(~varies, 0.0)


def _centred(values: Tensor, present: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract the mean; also return the norm, and whether values vary beyond their rounding.

    The norm is kept above that rounding: scale-free, and it bounds the gradient at a student
    whose values are all alike.
    """
    values = values.masked_fill(~present, 0.0)
    mean = values.sum(dim=dim, keepdim=True) / present.sum(dim=dim, keepdim=True).clamp(min=1)
    centred = (values - mean).masked_fill(~present, 0.0)
    information = torch.finfo(values.dtype)
    rounding = (4 * information.eps) ** 2 * values.detach().square().sum(dim=dim)
    floor = rounding + information.tiny
    energy = centred.square().sum(dim=dim)
    return centred, torch.maximum(energy, floor).sqrt(), energy > floor


_POSITIVE_SHARE = Limits(0.0, 1.0, low_open=True, high_open=True)
_SKEW = {"skew": Limits(0.0, 1.0, high_open=True)}

KD_LOSSES: dict[str, KDLoss] = {
    loss.name: loss
    for loss in (
        KDLoss("ce", ce, "log_probs", top_k=True),
        KDLoss("mse", mse),
        KDLoss("kl", kl, "log_probs", top_k=True),
        KDLoss("reverse_kl", reverse_kl, "log_probs", top_k=True),
        KDLoss("jsd", jsd, "log_probs", top_k=True, limits={"beta": _POSITIVE_SHARE}),
        KDLoss("skew_kl", skew_kl, "log_probs", top_k=True, limits=_SKEW),
        KDLoss("skew_reverse_kl", skew_reverse_kl, "log_probs", top_k=True, limits=_SKEW),
        KDLoss("adaptive_kl", adaptive_kl, "log_probs", limits={"mu": _POSITIVE_SHARE}),
        KDLoss("tvd", tvd, "log_probs", top_k=True),
        KDLoss("dkd", dkd, needs_labels=True, limits={"alpha": Limits(0.0), "beta": Limits(0.0)}),
        KDLoss("dist", dist, needs_mask=True, limits={"beta": Limits(0.0), "gamma": Limits(0.0)}),
        KDLoss("logit_std", logit_std, limits={"eps": Limits(0.0, low_open=True)}),
        KDLoss("bce", bce),
    )
}
"""By name: the losses of this package, and those that a user registers."""


def make_kd_loss(
    name: str, options: Mapping[str, OptionValue] | None = None, *, scale_t2: bool = False
) -> KDLoss:
    """Build a KD loss from its name and options.

    Args:
        name: a key of `KD_LOSSES`, or an import path "package.module:function", which the process
            that builds the loss resolves, so that it reaches Ray workers by itself.
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
        loss = import_object(loss, "KD loss")
    if isinstance(loss, KDLoss):
        return loss
    if callable(loss):
        return KDLoss.from_function(name, loss)
    raise ConfigError(
        f"KD loss {name!r}: expected a function or a KDLoss, got {type(loss).__name__}."
    )
