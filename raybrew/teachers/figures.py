"""What a teacher's replicas did in all their lives, and what they are at, as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from raybrew.teachers.tickets import RouterCounts

__all__ = ["figures_of"]

_OF_NOW = ("forward_s", "others_s", "queue_age_s", "waiting", "examples")
"""What health tells that is no sum, and what the router counts itself."""


def figures_of(
    lives: Sequence[Mapping[str, Mapping[str, float]]],
    counts: RouterCounts,
    batch_tokens: int,
    queued_tokens: int,
) -> dict[str, float]:
    """Add the lives up.

    Args:
        lives: by replica, by life of it, in their order: what it last said of itself.
        counts: of the router.
        batch_tokens: most tokens of a forward.
        queued_tokens: that the replicas were handed and have not answered.
    """
    every = [said for by_life in lives for said in by_life.values()]
    now = [list(by_life.values())[-1] for by_life in lives if by_life]
    names = [name for each in every[:1] for name in each if name not in _OF_NOW]
    sums = {name: float(sum(each[name] for each in every)) for name in names}
    full = sums.get("batches", 0.0) * batch_tokens
    seconds = sums.get("compute_s", 0.0)
    return {
        **{name: float(count) for name, count in asdict(counts).items()},
        **sums,
        "batch_fill": sums["tokens"] / full if full else 0.0,
        "tokens_per_s": sums["tokens"] / seconds if seconds else 0.0,
        "queue_age_s": max((each["queue_age_s"] for each in now), default=0.0),
        "queued_tokens": float(queued_tokens),
    }
