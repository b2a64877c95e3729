"""What weighs the losses of several tasks against each other while they are learnt.

loss of a task ──► Balancer.weigh ──► backward ──► (pcgrad: gradients of tasks, projected) ──► step
                      ▲                                                         │
                      └──────────────── Balancer.observe: loss of the whole batch ┘
"""

from raybrew.balancing.balancer import Balancer
from raybrew.balancing.descent import LossDescent
from raybrew.balancing.projection import TaskGradients, project_conflicts
from raybrew.balancing.uncertainty import UncertaintyWeights
from raybrew.config import MixingConfig

__all__ = [
    "Balancer",
    "LossDescent",
    "TaskGradients",
    "UncertaintyWeights",
    "make_balancer",
    "project_conflicts",
]


def make_balancer(mixing: MixingConfig, num_tasks: int) -> Balancer:
    """Return what the job asks for; it leaves the loss of a single task alone."""
    if num_tasks > 1 and mixing.balancing == "uncertainty":
        return UncertaintyWeights(num_tasks)
    if num_tasks > 1 and mixing.balancing == "dwa":
        return LossDescent(num_tasks, mixing.dwa_temperature)
    return Balancer()
