"""A trial that needs one worker: the student's loop in the trial's own process.

setup, reset_config   config ──► RankPlan ──► StudentTraining      (a process serves many trials)
step                  to the next evaluation, which is what Tune sees
save, load            the student's checkpoint; PBT's new settings hold over the saved ones
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.actor import ActorHandle

from raybrew.devices import check_device, device_for
from raybrew.events import Event, event_message
from raybrew.mailbox import Message
from raybrew.preparation import Readings
from raybrew.student.building import build_training
from raybrew.student.checkpoint import Snapshot
from raybrew.student.loop import Saver, StudentTraining
from raybrew.student.world import World
from raybrew.tuning.brief import Brief

__all__ = ["StudentTrial", "trial_figures"]


class StudentTrial(tune.Trainable):
    """One configuration after another, in one process."""

    def setup(
        self,
        config: dict[str, Any],
        brief: Brief | None = None,
        mailbox: ActorHandle | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Begin with the first configuration."""
        assert brief is not None, "tune.with_parameters gives it"
        assert mailbox is not None, "tune.with_parameters gives it"
        self._brief, self._mailbox = brief, mailbox
        self._resources = resources or {}
        self._readings = Readings(brief.fingerprints)
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
        return trial_figures(training, hooks.values)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the student's checkpoint."""
        self._training.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a checkpoint, this trial's or, under PBT, another's."""
        self._training.resume(Path(checkpoint), own_settings=True)

    def _begin(self, config: Mapping[str, Any]) -> None:
        job = self._brief.job(config)
        plan = self._brief.plan(job, self._readings)
        cpus = self._resources.get("CPU", 1)
        torch.set_num_threads(plan.training.num_threads or max(1, int(cpus)))
        device = device_for(self._resources.get("GPU", 0))
        check_device(device, "a trial", "scaling.use_gpu to false")
        self._training = build_training(plan, World(device=device), None)
        self._hooks = _TrialHooks(self._mailbox, self.trial_id)
        self._begun = False


def trial_figures(training: StudentTraining, values: Mapping[str, float]) -> dict[str, Any]:
    """Return what Tune is told: the evaluation, and which labels there were."""
    figures = dict(values)
    if training.labels is not None:
        figures["labels/hits"] = float(training.labels.figures.hits)
        figures["labels/misses"] = float(training.labels.figures.misses)
    return {**figures, "step": training.step, "done": training.step >= training.num_steps}


class _TrialHooks:
    """Sends the curves to the driver, and keeps the last evaluation for Tune."""

    def __init__(self, mailbox: ActorHandle, trial: str):
        self._mailbox, self._trial = mailbox, trial
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

    def save_asked(self) -> bool:
        return False

    def survived(self, event: Event) -> None:
        self._put(event_message(event))

    def _put(self, message: Message) -> ray.ObjectRef:
        return self._mailbox.put.remote({**message, "trial": self._trial})
