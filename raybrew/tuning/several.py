"""A trial that needs several workers: a `TorchTrainer` inside of the trial's function.

A Trainer handed to `Tuner` fails in Ray 2.60; this is the way that Ray names instead.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.actor import ActorHandle
from ray.train import RunConfig, ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from raybrew.mailbox import Follower, Message, start_mailbox
from raybrew.preparation import Readings
from raybrew.student.trainer import fit
from raybrew.tuning.brief import Brief

__all__ = ["CHECKPOINTS", "train_with_workers"]

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of several workers in that of the trial."""


def train_with_workers(
    config: Mapping[str, Any], brief: Brief, mailbox: ActorHandle, scaling: ScalingConfig
) -> None:
    """Train the student of a trial on its workers; Tune is told of each evaluation.

    Args:
        config: the trial's paths.
        brief: what trials share.
        mailbox: where curves go, with the trial's name.
        scaling: the workers, Ray Train's own.
    """
    context = tune.get_context()
    trial, folder = context.get_trial_id(), context.get_trial_dir()
    assert folder is not None, "a trial has a folder"
    plan = brief.plan(brief.job(config), Readings(brief.fingerprints))

    def forward(message: Message) -> None:
        mailbox.put.remote({**message, "trial": trial})

    inner = start_mailbox()
    with Follower(inner, forward):
        fit(
            plan,
            teachers=None,
            mailbox=inner,
            # Ray Train changes the object that it is given.
            scaling_config=copy.copy(scaling),
            run_config=RunConfig(
                name="workers", storage_path=folder, callbacks=[TuneReportCallback()]
            ),
            # A trial that is continued goes on from the newest in there.
            checkpoints=Path(folder) / CHECKPOINTS,
        )
