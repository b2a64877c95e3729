"""The teachers that a rank hosts itself (`placement: worker`), beside those of the pool. No Ray.

plan ──► LocalAsker ──► before the first step: this rank's share of the labels, on disk
└──► Askers (with the pool's) ──► LabelSource
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from raybrew.events import Event
from raybrew.labels.source import Asker
from raybrew.student.batches import StudentTask
from raybrew.student.building import RankPlan
from raybrew.student.world import World
from raybrew.teachers.local import Askers, LocalAsker

__all__ = ["asker_of", "fill_shares", "host_teachers", "kept"]


def host_teachers(
    plan: RankPlan,
    num_threads: int,
    world: World,
    on_event: Callable[[Event], None] = lambda event: None,
) -> LocalAsker | None:
    """Return the teachers that this rank hosts; they are loaded at their first label.

    Args:
        plan: of the rank.
        num_threads: PyTorch threads of the rank.
        world: the rank.
        on_event: called with what befalls a teacher.
    """
    mine = [(t.hosted, t.signals) for t in plan.teachers if t.hosted is not None]
    return LocalAsker(mine, plan.store, num_threads, world.device, on_event) if mine else None


def asker_of(plan: RankPlan, local: LocalAsker | None, pool: Asker | None) -> Asker | None:
    """Return who computes the labels of all teachers; None if the store has everything."""
    if local is None:
        return pool
    askers = {t.name: pool if t.hosted is None else local for t in plan.teachers}
    return Askers({name: asker for name, asker in askers.items() if asker is not None})


def fill_shares(
    plan: RankPlan, tasks: Sequence[StudentTask], local: LocalAsker, world: World
) -> None:
    """Compute what can't wait until it is asked for; every rank calls it, and all are done then.

    Evaluation rows are never asked for by a step. Ranks don't ask each other, so with several of
    them all labels are computed before the first step, each rank its share.
    """
    at_once = plan.labels_ahead or world.size > 1
    for teacher in plan.teachers:
        if teacher.hosted is None:
            continue
        task = tasks[teacher.task]
        needed = [task.train] if at_once else []
        if not at_once:
            local.expect(teacher.name, task.train.views[teacher.view])
        for split in [*needed, task.eval]:
            if split is not None:
                local.fill_share(teacher.name, split.views[teacher.view], world.rank, world.size)
    local.unload()
    # Nobody goes on before all shares are on disk.
    world.total(torch.zeros(1, device=world.device))


@contextlib.contextmanager
def kept(local: LocalAsker | None) -> Iterator[None]:
    """Write what the rank's teachers computed when training ends, however it ends."""
    try:
        yield
    finally:
        if local is not None:
            local.flush()
