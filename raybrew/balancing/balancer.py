"""What every balancing of tasks can do; by itself it changes nothing."""

from torch import Tensor, nn

__all__ = ["Balancer"]


class Balancer(nn.Module):
    """Leaves every loss as it is. Parameters and buffers of its kinds are kept in checkpoints."""

    observes = False
    """Whether it wants to see the losses."""

    def parameter_of(self, task: int) -> Tensor | None:
        """Return what is learnt for a task besides the student.

        DDP has to meet it among the outputs of the forward pass.
        """
        return None

    def weigh(self, loss: Tensor, task: int, parameter: Tensor | None, share: float) -> Tensor:
        """Weigh a part of a task's loss.

        Args:
            loss: of this rank's rows of one forward pass, a scalar; the parts add up.
            task: whose.
            parameter: that of `parameter_of`, out of the forward pass.
            share: this part's of what is added once a batch; the shares add up to 1.
        """
        return loss

    def enter(self, epoch: int) -> None:
        """Begin a step of this epoch, or go on with it."""

    def observe(self, task: int, loss: Tensor) -> None:
        """See the loss of a whole batch, the same on every rank."""
