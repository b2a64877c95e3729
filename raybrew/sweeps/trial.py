"""One trial: the student's loop in the trial's process, or a TorchTrainer for several workers."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.actor import ActorHandle
from ray.train import RunConfig, ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from raybrew.errors import Event
from raybrew.models.devices import check_device, device_for
from raybrew.runs.events import EventSubscriber, Message, start_event_channel
from raybrew.runs.resolve import MetadataCache
from raybrew.sweeps.prepare import TrialContext
from raybrew.training.build import build_training
from raybrew.training.callbacks import Saver
from raybrew.training.loop import StudentTraining
from raybrew.training.ray_train import fit
from raybrew.training.snapshot import Snapshot
from raybrew.training.world import World

# A trial that needs one worker: the student's loop in the trial's own process.
#
# setup, reset_config   config ──► ResolvedJob ──► StudentTraining   (a process serves many trials)
# step                  to the next evaluation, which is what Tune sees
# save, load            the student's checkpoint; PBT's new settings hold over the saved ones


class StudentTrial(tune.Trainable):
    """One configuration after another, in one process."""

    def setup(
        self,
        config: dict[str, Any],
        brief: TrialContext | None = None,
        channel: ActorHandle | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Begin with the first configuration."""
        assert brief is not None, "tune.with_parameters gives it"
        assert channel is not None, "tune.with_parameters gives it"
        self._brief, self._channel = brief, channel
        self._resources = resources or {}
        self._cache = MetadataCache(brief.fingerprints)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin with another configuration; what this process has loaded stays."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation."""
        training, hooks = self._training, self._hooks
        if not self._begun:
            training.begin(hooks)
            self._begun = True
        if training.step < training.num_steps:
            training.advance(hooks)
        else:  # a copy of a trial that was done, under PBT
            values = training.evaluate(hooks) | {"train/progress": 1.0}
            hooks.evaluated(training.step, values, training.save)
        return trial_metrics(training, hooks.values)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the student's checkpoint."""
        self._training.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a checkpoint, this trial's or, under PBT, another's."""
        self._training.resume(Path(checkpoint), own_settings=True)

    def _begin(self, config: Mapping[str, Any]) -> None:
        job = self._brief.resolve(self._brief.job(config), self._cache)
        cpus = self._resources.get("CPU", 1)
        torch.set_num_threads(job.config.training.num_threads or max(1, int(cpus)))
        device = device_for(self._resources.get("GPU", 0))
        check_device(device, "a trial", "scaling.use_gpu to false")
        self._training = build_training(job, World(device=device), None)
        self._hooks = _TrialHooks(self._channel, self.trial_id)
        self._begun = False


def trial_metrics(training: StudentTraining, values: Mapping[str, float]) -> dict[str, Any]:
    """Return what Tune is told: the evaluation, and which labels there were."""
    figures = dict(values)
    if training.labels is not None:
        figures["labels/hits"] = float(training.labels.figures.hits)
        figures["labels/misses"] = float(training.labels.figures.misses)
    return {**figures, "step": training.step, "done": training.step >= training.num_steps}


class _TrialHooks:
    """Sends the curves to the driver, and keeps the last evaluation for Tune."""

    def __init__(self, channel: ActorHandle, trial: str):
        self._channel, self._trial = channel, trial
        self._losses: dict[str, float] = {}
        self.values: dict[str, float] = {}

    def begin(self, step: int, num_steps: int) -> None: ...

    def losses(self, step: int, values: dict[str, float]) -> None:
        self._losses = values
        self._put({"kind": "values", "step": step, "values": values})

    def progress(self, step: int) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def evaluated(self, step: int, values: dict[str, float], save: Saver) -> None:
        self.values = {**self._losses, **values}
        # Waited for, so that nothing of a trial that is stopped here is lost.
        ray.get(self._put({"kind": "values", "step": step, "values": values}))

    def checkpoint(self, snapshot: Snapshot) -> None: ...  # Tune asks for its own

    def save_requested(self) -> bool:
        return False

    def survived(self, event: Event) -> None:
        self._put(event.message())

    def _put(self, message: Message) -> ray.ObjectRef:
        return self._channel.put.remote({**message, "trial": self._trial})


# A trial that needs several workers: a `TorchTrainer` inside of the trial's function.
#
# A Trainer handed to `Tuner` fails in Ray 2.60; this is the way that Ray names instead.

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of several workers in that of the trial."""


def train_with_workers(
    config: Mapping[str, Any], brief: TrialContext, channel: ActorHandle, scaling: ScalingConfig
) -> None:
    """Train the student of a trial on its workers; Tune is told of each evaluation.

    Args:
        config: the trial's paths.
        brief: what trials share.
        channel: where curves go, with the trial's name.
        scaling: the workers, Ray Train's own.
    """
    context = tune.get_context()
    trial, folder = context.get_trial_id(), context.get_trial_dir()
    assert folder is not None, "a trial has a folder"
    job = brief.resolve(brief.job(config), MetadataCache(brief.fingerprints))

    def forward(message: Message) -> None:
        channel.put.remote({**message, "trial": trial})

    inner = start_event_channel()
    with EventSubscriber(inner, forward):
        fit(
            job,
            teachers=None,
            channel=inner,
            # Ray Train changes the object that it is given.
            scaling_config=copy.copy(scaling),
            run_config=RunConfig(
                name="workers", storage_path=folder, callbacks=[TuneReportCallback()]
            ),
            # A trial that is continued goes on from the newest in there.
            checkpoints=Path(folder) / CHECKPOINTS,
        )
